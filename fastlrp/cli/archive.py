"""Programs of ``torch.export.save``, read without running anything that stands in the file.

``torch.export.load`` trusts its file. It runs pickles without restriction (sample inputs, pickled weights, opaque
constants), loads compiled libraries, evaluates the text of symbolic sizes, resolves any name below ``torch`` as an
operator, and pastes names of nodes into source code. So the archive is taken apart here first. Everything that an
ordinary program consists of, tensors as raw bytes and a graph of operators as JSON, is checked and copied into a new
archive in memory, and only that one is loaded: what is checked and what is loaded cannot differ. Anything else is
refused.
"""

from __future__ import annotations

import io
import json
import math
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from fastlrp.cli import archive_graph
from fastlrp.cli.archive_graph import Refused

_MODEL = "models/model.json"
_SAMPLES = "data/sample_inputs/model.pt"
_PAYLOADS = {
    "data/weights/model_weights_config.json": ("data/weights/", re.compile(r"weight_\d{1,9}")),
    "data/constants/model_constants_config.json": ("data/constants/", re.compile(r"tensor_\d{1,9}")),
}
_SMALL = {"archive_format", "archive_version", "byteorder"}
_LEFT_OUT = re.compile(r"\.data/[\w.]+|extra/.*", re.DOTALL)
_JSON_BYTES = 2**28


def repacked(path: Path) -> io.BytesIO:
    """A new archive that holds what is harmless of the one at ``path``, for ``torch.export.load``.

    The sample inputs are left out, because they can only be read as a pickle and nothing here needs them; so are extra
    files and guards.

    Raises:
        Refused: for anything that would, or could, run code from the file; says which part it is.
        ValueError, zipfile.BadZipFile: for a file that is no archive of torch.export.save, or a damaged one.
    """
    with zipfile.ZipFile(path) as archive:
        records = _records(archive, path.stat().st_size)
        kept: dict[str, bytes] = {}
        for name in sorted(_SMALL & records.keys()):
            if records[name].file_size > 64:
                raise ValueError(f"{name} has {records[name].file_size} bytes")
            kept[name] = archive.read(records[name])
        if kept.get("archive_format") != b"pt2":
            raise ValueError("its record archive_format does not say pt2")
        if _SAMPLES in records:
            _check_samples(archive.read(records[_SAMPLES]))
        kept[_SAMPLES] = b""
        tensors: set[str] = set()
        for name, (folder, pattern) in _PAYLOADS.items():
            config = _json(archive, records, name)
            kept[name] = json.dumps(config).encode()
            tensors.update(folder + file for file in _files(config, name, folder, pattern, records))
        kept[_MODEL] = json.dumps(archive_graph.checked(_json(archive, records, _MODEL))).encode()
        _check_nothing_else(set(records), kept.keys() | tensors)
        return _written(archive, records, kept, tensors)


def _records(archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    """The archive's records by their name below its one folder.

    PyTorch and Python read archives each in their own way; only such are taken on which all readers agree.
    """
    members = archive.infolist()
    if not members:
        raise ValueError("the archive is empty")
    if {"serialized_exported_program.json", "serialized_state_dict.pt"} & set(archive.namelist()):
        raise Refused("it has the form that PyTorch up to 2.7 wrote, whose tensors are pickles")
    root = members[0].filename.partition("/")[0]
    records: dict[str, zipfile.ZipInfo] = {}
    for member in members:
        folder, _, name = member.filename.partition("/")
        if folder != root or not name:
            raise Refused(f"its member {_shown(member.filename)} lies outside the archive's folder {_shown(root)}")
        if name.casefold() in map(str.casefold, records):
            raise Refused(f"it has {_shown(name)} more than once")
        if member.compress_type != zipfile.ZIP_STORED:
            raise Refused(f"{_shown(name)} is compressed, which torch.export.save never does")
        records[name] = member
    if sum(member.file_size for member in members) > size:
        raise ValueError("its members are larger than the file")
    return records


def _json(archive: zipfile.ZipFile, records: dict[str, zipfile.ZipInfo], name: str) -> Any:
    if name not in records:
        raise ValueError(f"the archive has no {name}")
    if records[name].file_size > _JSON_BYTES:
        raise ValueError(f"{name} has {records[name].file_size} bytes")
    try:
        return json.loads(archive.read(records[name]))
    except RecursionError:
        raise ValueError(f"{name} is nested too deeply") from None


def _check_samples(data: bytes) -> None:
    """Sample inputs are never loaded; one that only a full pickle could load is no ordinary one."""
    if not data:
        return
    try:
        torch.load(io.BytesIO(data), map_location="meta", weights_only=True)
    except Exception as error:
        raise Refused(
            f"its sample inputs ({_SAMPLES}) hold more than tensors and numbers, and loading those runs code"
        ) from error


def _files(
    config: Any, name: str, folder: str, pattern: re.Pattern[str], records: dict[str, zipfile.ZipInfo]
) -> Iterator[str]:
    """The files of raw tensors that a table of weights or constants names; each is checked against its sizes."""
    if not isinstance(config, dict) or not isinstance(config.get("config"), dict):
        raise ValueError(f"{name} is no table of tensors")
    archive_graph.checked(config)
    for entry, about in config["config"].items():
        if not isinstance(about, dict):
            raise ValueError(f"{name} says nothing of {_shown(entry)}")
        file = about.get("path_name")
        if about.get("use_pickle") is not False or not isinstance(file, str) or not pattern.fullmatch(file):
            raise Refused(f"{name} says that {_shown(entry)} is no plain tensor but a pickle or another object")
        if folder + file not in records:
            raise ValueError(f"{name} names {folder + file}, which the archive does not have")
        _check_sizes(entry, about.get("tensor_meta"), records[folder + file].file_size)
        yield file


def _check_sizes(entry: str, meta: Any, there: int) -> None:
    """Nothing of a size that is only declared: a tensor has no more entries than its file has bytes."""
    try:
        sizes = [size["as_int"] for size in meta["sizes"]]
        if not all(type(size) is int and size >= 0 for size in sizes):
            raise TypeError
    except (KeyError, TypeError):
        raise ValueError(f"the sizes of {_shown(entry)} are no list of integers") from None
    if math.prod(sizes) > there:
        raise ValueError(f"{_shown(entry)} has the sizes {sizes}, but {there} bytes: it is damaged")


def _check_nothing_else(names: set[str], known: set[str]) -> None:
    for name in sorted(names - known):
        if name.startswith("data/aotinductor/"):
            raise Refused(f"it holds compiled code ({_shown(name)})")
        if not _LEFT_OUT.fullmatch(name):
            raise Refused(f"it holds {_shown(name)}, which is no part of an ordinary program")


def _written(
    archive: zipfile.ZipFile, records: dict[str, zipfile.ZipInfo], kept: dict[str, bytes], tensors: set[str]
) -> io.BytesIO:
    buffer = io.BytesIO()
    writer = torch._C.PyTorchFileWriter(buffer)
    writer.set_min_version(6)
    for name, data in kept.items():
        writer.write_record(name, data, len(data))
    for name in sorted(tensors):
        data = archive.read(records[name])
        writer.write_record(name, data, len(data))
    writer.write_end_of_file()
    buffer.seek(0)
    return buffer


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:60] + "…")
