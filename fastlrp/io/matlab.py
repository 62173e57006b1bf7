"""Matlab's ``.mat`` files of version 5: arrays of numbers, without SciPy, whose reader crashes on damaged files.

Source: MathWorks, "MAT-File Format", level 5. A file is a header of 128 bytes and a list of elements; an element is a
tag (type, number of bytes) and its data, and one that holds a matrix is itself a list of elements: flags, sizes, name,
real part, imaginary part. An element may be compressed. (SciPy in a child process would be safe too, at the price of a
dependency and of half a second for each file.)
"""

from __future__ import annotations

import math
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from fastlrp.errors import FormatError
from fastlrp.files import FILE_BYTES, PathLike, read_bytes, unpacked_limit
from fastlrp.io.numpy_files import choose

_MATRIX, _COMPRESSED = 14, 15
_STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_NUMERIC = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
_OTHER = {1: "cell", 2: "struct", 3: "object", 4: "char", 5: "sparse", 16: "function", 17: "opaque"}
_COMPLEX, _LOGICAL = 0x08, 0x02
# Enough of a compressed matrix for its flags, its sizes and its name.
_HEAD = 4096
_HEADER = 128


@dataclass(frozen=True)
class _Variable:
    """What stands before a matrix's numbers, and where they are."""

    name: str
    kind: int
    flags: int
    shape: tuple[int, ...]
    content: memoryview
    numbers: int  # where the real part begins in content


def read(path: PathLike, key: str | None, max_bytes: int | None) -> np.ndarray:
    """One numeric array; at least two axes, as Matlab has it."""
    data = read_bytes(path, max_bytes)
    try:
        order = _byte_order(data)
        bodies = list(_bodies(data, order))
        heads = [_head(_unpacked(body, _HEAD), order) for body in bodies]
        # Matlab keeps a matrix without a name for its functions.
        places = {head.name: place for place, head in enumerate(heads) if head.name}
        name = choose(path, key, list(places))
        head, body = heads[places[name]], bodies[places[name]]
        return _numbers(head, _unpacked(body, _most(head, _limit(body, max_bytes))), order)
    except FormatError:
        raise
    except (ValueError, struct.error, zlib.error) as error:
        raise FormatError(path, f"this is no .mat file of version 5, or it is damaged: {error}") from None


def _byte_order(data: bytes) -> str:
    mark, version = data[126:128], data[124:126]
    if data.startswith(b"MATLAB 7.3") or data[:8] == b"\x89HDF\r\n\x1a\n" or data[512:516] == b"\x89HDF":
        raise ValueError("it is of version 7.3 (HDF5), save it with -v7 or older")
    if mark not in (b"IM", b"MI"):
        raise ValueError("it has no byte-order mark in its header")
    order = "<" if mark == b"IM" else ">"
    if struct.unpack(f"{order}H", version)[0] != 0x0100:
        raise ValueError("the version in its header is not 5")
    return order


@dataclass(frozen=True)
class _Body:
    """An element that holds a matrix, compressed or as it is."""

    data: memoryview
    compressed: bool


def _bodies(data: bytes, order: str) -> Iterator[_Body]:
    position, view = _HEADER, memoryview(data)
    while position < len(data):
        kind, content, position = _element(view, position, order, aligned=False)
        if kind not in (_MATRIX, _COMPRESSED):
            raise ValueError(f"it has an element of type {kind} where a matrix is expected")
        yield _Body(content, kind == _COMPRESSED)


def _element(view: memoryview, position: int, order: str, aligned: bool = True) -> tuple[int, memoryview, int]:
    """Type and data of the element at a position, and the position behind it."""
    kind, size = struct.unpack_from(f"{order}II", view, position)
    start, end = position + 8, position + 8 + size
    if kind >> 16:  # The short form: size and type in one word, data in the other.
        kind, size = kind & 0xFFFF, kind >> 16
        start, end = position + 4, position + 4 + size
        if size > 4:
            raise ValueError(f"a short element has {size} bytes")
        behind = position + 8
    else:
        behind = start + -(-size // 8) * 8 if aligned else end
    if end > len(view):
        raise ValueError(f"an element of {size} bytes ends behind the data")
    return kind, view[start:end], behind


def _unpacked(body: _Body, most: int) -> memoryview:
    """At most ``most`` bytes of a matrix, without the tag that a compressed one brings along."""
    if not body.compressed:
        return body.data
    return memoryview(zlib.decompressobj().decompress(body.data, most + 8))[8:]


def _head(content: memoryview, order: str) -> _Variable:
    if not len(content):
        return _Variable("", 0, 0, (), content, 0)
    _, flags, position = _element(content, 0, order)
    word = struct.unpack_from(f"{order}I", flags)[0]
    _, sizes, position = _element(content, position, order)
    if len(sizes) > 4 * 32:
        raise ValueError(f"a matrix has {len(sizes) // 4} axes")
    shape = tuple(np.frombuffer(sizes, f"{order}i4").tolist())
    if min(shape, default=-1) < 0:
        raise ValueError(f"a matrix has the sizes {shape}")
    _, name, position = _element(content, position, order)
    return _Variable(bytes(name).decode("ascii"), word & 0xFF, word >> 8 & 0xFF, shape, content, position)


def _limit(body: _Body, max_bytes: int | None) -> int:
    if body.compressed:
        return unpacked_limit(len(body.data), max_bytes)
    return FILE_BYTES if max_bytes is None else max_bytes


def _most(head: _Variable, max_bytes: int) -> int:
    """The most bytes that a matrix can have: a compressed one is unpacked no further."""
    label = f"variable {head.name!r}"
    if head.kind not in _NUMERIC:
        raise ValueError(
            f"{label} is a {_OTHER.get(head.kind, 'matrix of an unknown class')}, expected an array of numbers"
        )
    expected = math.prod(head.shape) * np.dtype(_NUMERIC[head.kind]).itemsize
    if expected > max_bytes:
        raise ValueError(f"{label} has {expected} bytes, more than max_bytes={max_bytes}: raise it if that is right")
    # Two parts of at most 8 bytes for each number, each with its tag and padding.
    return head.numbers + 2 * (8 * math.prod(head.shape) + 16)


def _numbers(head: _Variable, content: memoryview, order: str) -> np.ndarray:
    label = f"variable {head.name!r}"
    real, position = _part(head, content, head.numbers, order, label)
    values = real.astype(_NUMERIC[head.kind])
    if head.flags & _COMPLEX:
        imaginary, _ = _part(head, content, position, order, label)
        values = values + 1j * imaginary.astype(values.dtype)
    elif head.flags & _LOGICAL:
        values = values.astype(bool)
    # Columns come first in the file.
    return np.ascontiguousarray(values.reshape(head.shape[::-1]).T)


def _part(head: _Variable, content: memoryview, at: int, order: str, label: str) -> tuple[np.ndarray, int]:
    """Real or imaginary part: the type that the numbers are stored as may be smaller than the matrix's own."""
    kind, data, behind = _element(content, at, order)
    if kind not in _STORED:
        raise ValueError(f"{label} has numbers of type {kind}")
    stored = np.dtype(order + _STORED[kind])
    if len(data) != math.prod(head.shape) * stored.itemsize:
        raise ValueError(
            f"{label} has the sizes {head.shape}, but {len(data)} bytes of {stored.itemsize} for each number"
        )
    return np.frombuffer(data, stored), behind


def write(stream: BinaryIO, key: str, values: np.ndarray) -> None:
    """One array under a name; one axis becomes a row, a single number a 1 x 1 matrix."""
    if not re.fullmatch(r"[A-Za-z]\w{0,62}", key, re.ASCII):
        raise ValueError(f"key must be a name of Matlab: a letter, then up to 62 letters, digits and _; got {key!r}")
    logical = values.dtype.kind == "b"
    kinds: dict[str, int] = {code: kind for kind, code in _NUMERIC.items()}
    code = "u1" if logical else f"{values.dtype.kind}{values.dtype.itemsize}"
    if code not in kinds:
        raise TypeError(f"Matlab has no {values.dtype}: convert to float32 or float64")
    matrix = values.reshape((1,) * (2 - values.ndim) + values.shape)
    numbers: Any = np.asarray(matrix.T, dtype=f"<{code}", order="C").tobytes()
    stored = {code: kind for kind, code in _STORED.items()}[code]
    parts = (
        _packed(6, struct.pack("<II", kinds[code] | (_LOGICAL << 8 if logical else 0), 0)),
        _packed(5, struct.pack(f"<{matrix.ndim}i", *matrix.shape)),
        _packed(1, key.encode("ascii")),
        _packed(stored, numbers),
    )
    size = sum(map(len, parts))
    if size >= 2**31:
        raise ValueError(
            f"a .mat file of version 5 holds arrays of less than 2 GiB, got {values.nbytes} bytes: write .npy"
        )
    stream.write(b"MATLAB 5.0 MAT-file, written by fastlrp".ljust(116) + bytes(8) + struct.pack("<H", 0x0100) + b"IM")
    stream.write(struct.pack("<II", _MATRIX, size))
    for part in parts:
        stream.write(part)


def _packed(kind: int, data: bytes) -> bytes:
    return struct.pack("<II", kind, len(data)) + data + bytes(-len(data) % 8)
