"""The folder of results: whole files only, and a manifest from which the same command goes on where it stopped.

``fastlrp-manifest.jsonl`` begins with a line of settings; each further line is one finished input, written after its
files. A line that was cut off by a crash does not count.
"""

from __future__ import annotations

import fnmatch
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

from fastlrp.cli.errors import Failure, one_line
from fastlrp.cli.file_names import below, is_inside
from fastlrp.cli.inputs import Item
from fastlrp.files import whole

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows has no locks of this kind.
    fcntl = None

MANIFEST = "fastlrp-manifest.jsonl"
_TEMPORARY = ".fastlrp-"
_BEGIN = b'{"fastlrp_manifest": 1, "settings": '

Record = dict[str, Any]


class Store:
    """One folder of results, open for one run.

    Args:
        out: the folder; made if it is not there. settings: what the results depend on, as JSON has it.
        overwrite: remove the results that the manifest lists, whatever their settings.
        by_class: results belong to an input and its class in a list, not to an input alone.

    Raises:
        Failure: if the folder cannot be written to, is in use, or holds results of other settings.
    """

    def __init__(self, out: Path, settings: dict[str, Any], overwrite: bool = False, by_class: bool = False) -> None:
        self.out, self._by_class = out, by_class
        self._settings = json.loads(json.dumps(settings))
        self._records: dict[str, Record] = {}
        self._folders: set[Path] = set()
        try:
            out.mkdir(parents=True, exist_ok=True)
            if (out / MANIFEST).is_symlink() or ((out / MANIFEST).exists() and not (out / MANIFEST).is_file()):
                raise Failure(f"{out / MANIFEST} is a link or no regular file: move it away, or name another folder")
            self._log: BinaryIO = open(out / MANIFEST, "a+b")  # noqa: SIM115 - open for as long as the store is.
        except OSError as error:
            raise Failure(f"--out: cannot write to {str(out)!r}: {one_line(error)}") from error
        try:
            self._lock()
            self._begin(overwrite)
        except BaseException:
            self._log.close()
            raise

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *exc: object) -> None:
        self._log.close()

    def abandon(self) -> None:
        """Leave no trace of a run that could not begin."""
        if not self._records:
            with suppress(OSError):
                (self.out / MANIFEST).unlink()
                self.out.rmdir()  # Only if nothing else is in it.

    def _lock(self) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(self._log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Failure(
                f"--out: another run is writing to {str(self.out)!r}: wait for it, or name another folder"
            ) from None
        except OSError:  # A file system without locks.
            return

    def _begin(self, overwrite: bool) -> None:
        try:
            self._log.seek(0)
            lines = self._log.read().splitlines(keepends=True)
            torn = bool(lines) and not lines[-1].endswith(b"\n")
            old = self._load(lines[:-1] if torn else lines)
            if torn:  # Only now is it known that the file is a manifest.
                self._cut(lines)
            if old is not None and old != self._settings and self._records and not overwrite:
                raise Failure(
                    f"--out: {str(self.out)!r} holds results of other settings "
                    f"({_difference(old, self._settings)}): name another folder, or start anew with --overwrite"
                )
            if overwrite:
                for record in self._records.values():
                    self._remove(record)
                self._records.clear()
            if old != self._settings or overwrite:
                self._log.truncate(0)
                self._append({"fastlrp_manifest": 1, "settings": self._settings})
            for base, _, files in os.walk(self.out):  # Of a run that was killed. Links to folders are not followed.
                for name in fnmatch.filter(files, f"{_TEMPORARY}*.tmp"):
                    (Path(base) / name).unlink(missing_ok=True)
        except OSError as error:
            raise Failure(f"--out: cannot write to {str(self.out)!r}: {one_line(error)}") from error

    def _cut(self, lines: list[bytes]) -> None:
        """Take off a last line that was not written to its end."""
        if len(lines) == 1 and not lines[0].startswith(_BEGIN[: len(lines[0])]):
            raise Failure(f"{self.out / MANIFEST} is no manifest: move it away, or name another folder")
        self._log.truncate(sum(map(len, lines[:-1])))

    def _load(self, lines: Sequence[bytes]) -> dict[str, Any] | None:
        """The settings, None in an empty file; and the records."""
        if not lines:
            return None
        try:
            head, *rest = map(json.loads, lines)
            if head["fastlrp_manifest"] != 1:
                raise ValueError("it is of another version of fastlrp")
            for record in rest:
                _check(record)
            self._records = {record["key"]: record for record in rest}
            return dict(head["settings"])
        except (ValueError, KeyError, TypeError) as error:
            raise Failure(
                f"{self.out / MANIFEST} is no manifest ({error}): move it away, or name another folder"
            ) from None

    def _append(self, line: Record) -> None:
        self._log.write(json.dumps(line).encode() + b"\n")
        self._log.flush()

    # Items

    def key(self, item: Item) -> str:
        """What an item is known by."""
        sample = "" if item.sample is None else f"[{item.sample}]"
        return f"{item.path.absolute()}{sample}{f'#{item.target}' if self._by_class else ''}"

    def adopt(self, items: Sequence[Item]) -> list[Item]:
        """The items with the names that they have here: their own of old, or such as no other input's results have."""
        keys = [self.key(item) for item in items]
        taken = {record["name"].casefold() for record in self._records.values()}
        found = []
        for item, key in zip(items, keys, strict=True):
            name, number = item.name, 2
            if key in self._records:
                name = self._records[key]["name"]
            else:
                while name.casefold() in taken:
                    name, number = f"{item.name}~{number}", number + 1
                taken.add(name.casefold())
            found.append(replace(item, name=name))
        return found

    def done(self, item: Item) -> Record | None:
        """The record of an item whose results are all there, and whose input has not changed since."""
        record = self._records.get(self.key(item))
        if record is None or record["stamp"] != item.stamp():
            return None
        return record if all((self.out / name).is_file() for name in record["files"]) else None

    def prepare(self, item: Item) -> None:
        """Forget older results of an item that is to be explained."""
        record = self._records.pop(self.key(item), None)
        if record is not None:
            self._remove(record)

    def write(self, name: str, data: bytes | memoryview) -> None:
        """A file in the folder: whole, or as it was before."""
        with whole(self.place(name), _TEMPORARY) as stream:
            stream.write(data)

    def place(self, name: str) -> Path:
        """The path of a file to be; its folder is there."""
        path = self._path(name)
        if path.parent not in self._folders:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._folders.add(path.parent)
        if path.is_symlink():  # Whatever it leads to is not ours.
            path.unlink()
        return path

    def _path(self, name: str) -> Path:
        try:
            return below(self.out, name)
        except ValueError as error:
            raise Failure(f"--out: {error}: name another folder") from None

    def finish(self, item: Item, stamp: list[int], record: Record) -> None:
        """All files of an item are written: from now on it is done, as long as its file has the ``stamp``."""
        line = {"key": self.key(item), "name": item.name, "stamp": stamp, **record}
        self._append(line)
        self._records[line["key"]] = line

    def _remove(self, record: Record) -> None:
        for name in record["files"]:
            self._path(name).unlink(missing_ok=True)


def _check(record: Any) -> None:
    """A record names its own files in this folder and nothing else.

    Raises:
        ValueError, KeyError, TypeError: for any other record.
    """
    name, files = record["name"], record["files"]
    if not isinstance(record["key"], str) or not isinstance(record["stamp"], list) or not isinstance(files, list):
        raise TypeError("a line of it has fields of other types")
    for file in (name, *files):
        if not is_inside(file) or not file.startswith(name):
            raise ValueError(f"it lists {file!r}, which is no name of a result here")


def _difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    parts = [f"{key}: {_short(old.get(key))} there, {_short(new.get(key))} here"
             for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]  # fmt: skip
    return "; ".join(parts[:3]) + ("; …" if len(parts) > 3 else "")


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 80 else text[:80] + "…"
