"""NumPy's ``.npy`` and ``.npz``, with every declared size held against what the file has."""

from __future__ import annotations

import math
import zipfile
from typing import IO, BinaryIO

import numpy as np

from fastlrp.errors import FormatError
from fastlrp.files import PathLike, opened, unpacked_limit

_MOST_AXES, _LONGEST_AXIS = 32, 2**40


def read_npy(path: PathLike, max_bytes: int | None) -> np.ndarray:
    """The array of an ``.npy`` file."""
    with opened(path, max_bytes) as (stream, size):
        return _read(path, stream, size, "")


def read_npz(path: PathLike, key: str | None, max_bytes: int | None) -> np.ndarray:
    """One array of an ``.npz`` file."""
    with opened(path, max_bytes) as (stream, _):
        try:
            with zipfile.ZipFile(stream) as archive:
                members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
                name = choose(path, key, list(members))
                size = members[name].file_size
                most = unpacked_limit(members[name].compress_size, max_bytes)
                if size > most:
                    reason = f"array {name!r} unpacks to {size} bytes, more than max_bytes={most}"
                    raise FormatError(path, f"{reason}: raise it if that is right")
                with archive.open(members[name]) as member:
                    return _read(path, member, size, f"array {name!r}: ")
        except (FormatError, MemoryError):
            raise
        except Exception as error:  # Damage to an archive shows as whatever zipfile meets first, OSError too.
            raise FormatError(path, f"this is no .npz file (a zip archive of arrays): {error!r}") from error


def write_npz(stream: BinaryIO, key: str, values: np.ndarray) -> None:
    """One array under a name, as :func:`numpy.savez` writes it."""
    if not key or "/" in key or "\\" in key:
        raise ValueError(f"key must be a name without slashes, got {key!r}")
    # Not numpy.savez(**{key: …}): that cannot name an array "file".
    with zipfile.ZipFile(stream, "w") as archive, archive.open(f"{key}.npy", "w", force_zip64=True) as member:
        np.lib.format.write_array(member, values, allow_pickle=False)


def choose(path: PathLike, key: str | None, names: list[str]) -> str:
    """The name that is meant.

    Raises:
        FormatError: no such name, none at all, or several and no key; the message lists them.
    """
    listed = ", ".join(map(repr, names[:20])) + (", …" if len(names) > 20 else "")
    if not names:
        raise FormatError(path, "the file holds no array")
    if key is not None:
        if key not in names:
            raise FormatError(path, f"there is no array {key!r}: the file holds {listed}")
        return key
    if len(names) > 1:
        raise FormatError(path, f"the file holds {len(names)} arrays, name one with key=: {listed}")
    return names[0]


def _read(path: PathLike, stream: IO[bytes], size: int, label: str) -> np.ndarray:
    try:
        version = np.lib.format.read_magic(stream)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"version {version} is for structured arrays, expected 1.0 or 2.0")
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, columns_first, dtype = header(stream)
    except Exception as error:  # The header is a Python literal of at most 10 kB; parsing it fails in many ways.
        raise FormatError(path, f"{label}this is no .npy file: {error}") from error
    if dtype.hasobject:
        raise FormatError(path, f"{label}the array holds pickled Python objects, which are not read: expected numbers")
    if dtype.kind not in "biufc" or dtype.subdtype is not None:
        raise FormatError(path, f"{label}the array has the dtype {dtype}, expected numbers")
    expected, there = math.prod(shape) * dtype.itemsize, size - stream.tell()
    if len(shape) > _MOST_AXES or max(shape, default=0) > _LONGEST_AXIS:
        raise FormatError(path, f"{label}the shape {str(shape)[:80]} is none that an array can have: it is damaged")
    if min(shape, default=0) < 0 or expected != there:
        raise FormatError(
            path, f"{label}shape {shape} and dtype {dtype} make {expected} bytes, the file has {there}: it is damaged"
        )
    values = np.frombuffer(bytearray(stream.read(expected)), dtype)
    if len(values) != math.prod(shape):
        raise FormatError(path, f"{label}the file ends before the array does")
    values = values.reshape(shape[::-1]).T if columns_first else values.reshape(shape)
    return values.astype(dtype.newbyteorder("="), copy=False)
