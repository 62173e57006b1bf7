"""Arrays from and to ``.npy``, ``.npz``, ``.txt`` and ``.mat``. Nothing pickled is ever read."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from torch import Tensor

from fastlrp.files import FILE_BYTES, PathLike, replacing
from fastlrp.io import array_text, matlab, numpy_files

FORMATS = ("npy", "npz", "txt", "mat")
ARRAY_BYTES = FILE_BYTES


def read_array(
    path: PathLike, key: str | None = None, *, format: str | None = None, max_bytes: int | None = None
) -> np.ndarray:
    """One array of numbers from a file.

    Args:
        path: the file. key: which array of an ``.npz`` or ``.mat`` file; may be left out where there is one.
        format: ``"npy"``, ``"npz"``, ``"txt"`` or ``"mat"`` where the suffix does not say it.
        max_bytes: the largest file, and the largest array, that is read: 4 GiB by default, and of what unpacks to
            more than 256 MiB a hundred times its packed size.

    Returns:
        The array in native byte order. From text always two axes and float64: one row for each line. Matlab has no
        arrays of one axis.

    Raises:
        fastlrp.io.FormatError: a malformed or truncated file, one that holds other things than numbers, or several
            arrays and no ``key``; the message lists their names. OSError: as :func:`open`.
        ValueError: for a ``key`` where arrays have no names, or an unknown format.

    Example::

        fastlrp.io.write_array(relevance[0, 0, 0], "map.txt")
        assert fastlrp.io.read_array("map.txt").shape == (16, 16)
    """
    kind = _format(path, format)
    if key is not None and kind not in ("npz", "mat"):
        raise ValueError(f"key={key!r}, but a .{kind} file holds one array without a name")
    if kind == "npy":
        return numpy_files.read_npy(path, max_bytes)
    if kind == "npz":
        return numpy_files.read_npz(path, key, max_bytes)
    if kind == "mat":
        return matlab.read(path, key, max_bytes)
    return array_text.read(path, max_bytes)


def write_array(array: Any, path: PathLike, key: str | None = None, *, format: str | None = None) -> None:
    """Write one array of numbers. The file is replaced in one step.

    Args:
        array: a NumPy array, a tensor or nested lists. Text takes one or two axes; one axis becomes one column.
        path: the file. key: its name in an ``.npz`` or ``.mat`` file, ``"data"`` as in the LRP Toolbox by default.
        format: as for :func:`read_array`.

    Raises:
        TypeError, ValueError: what cannot be written. OSError: as :func:`open`.

    Example::

        fastlrp.io.write_array(relevance, "relevance.npy")
    """
    kind = _format(path, format)
    if key is not None and kind not in ("npz", "mat"):
        raise ValueError(f"key={key!r}, but a .{kind} file holds one array without a name")
    values, name = _numbers(array), "data" if key is None else key
    # Whole in memory before the file is touched: a writer that fails half-way leaves no trace.
    stream: BinaryIO = io.BytesIO()
    if kind == "npy":
        np.lib.format.write_array(stream, values, allow_pickle=False)
    elif kind == "npz":
        numpy_files.write_npz(stream, name, values)
    elif kind == "mat":
        matlab.write(stream, name, values)
    else:
        array_text.write(stream, values)
    assert isinstance(stream, io.BytesIO)
    with replacing(path) as file:
        file.write(stream.getbuffer())


def _format(path: PathLike, format: str | None) -> str:
    kind = Path(path).suffix.lower().removeprefix(".") if format is None else format
    if kind not in FORMATS:
        source = f"the suffix of {Path(path).name!r}" if format is None else f"format={format!r}"
        raise ValueError(f"{source} is none of {', '.join(FORMATS)}: name the format with format=")
    return kind


def _numbers(array: Any) -> np.ndarray:
    if isinstance(array, Tensor):
        tensor = array.detach().cpu()
        try:
            array = tensor.numpy()
        except TypeError:
            raise TypeError(f"NumPy has no {tensor.dtype}: convert with .float()") from None
    values = np.asarray(array)
    if values.dtype.kind not in "biuf":
        raise TypeError(f"array has the dtype {values.dtype}, expected real numbers")
    return values
