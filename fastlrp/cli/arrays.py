"""Arrays as inputs: how many samples a file holds, and one of them."""

from __future__ import annotations

import math
import threading
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastlrp import io
from fastlrp.byte_sizes import parse_bytes
from fastlrp.cli import tables
from fastlrp.cli.errors import Failure, InputFailure, one_line

_LOCK = threading.Lock()


def limit(options: dict[str, Any]) -> int | None:
    """Bytes of the largest file and array that ``--max-input`` allows; None for those of :func:`fastlrp.io.read_array`.

    Raises:
        Failure: for a size that cannot be read.
    """
    asked = options.get("max_input")
    try:
        return None if asked is None else parse_bytes(asked)
    except ValueError as error:
        raise Failure(f"--max-input: {str(error).replace('max_memory', 'the size')}") from error


def count(path: Path, key: str | None, shape: tuple[int, ...] | None, limit: int | None = None) -> int | None:
    """Number of samples in a file; None if the whole array is one sample.

    Without a shape, four axes are ``(N, C, H, W)``, two are ``(N, features)``, three are one ``(C, H, W)`` and one is
    one vector. With it, the array holds as many samples as it has room for.

    Raises:
        ValueError, TypeError, OSError: for a file that cannot be read, or a shape that does not fit.
    """
    found = _read(path, key, limit)
    if shape is not None:
        size = math.prod(shape)
        if found.size % size or found.size == 0:
            raise ValueError(
                f"{path} holds {found.size} numbers, {found.shape}, which is no whole number of samples of {shape} "
                f"with {size} each: change --sample-shape"
            )
        return None if found.shape == shape else found.size // size
    if found.ndim not in (1, 2, 3, 4) or found.size == 0:
        raise ValueError(f"{path} has the shape {found.shape}: say with --sample-shape what one sample is")
    return found.shape[0] if found.ndim in (2, 4) else None


def sample(
    path: Path, key: str | None, shape: tuple[int, ...] | None, number: int | None, limit: int | None = None
) -> Tensor:
    """One sample, as float32 or float64.

    Raises:
        InputFailure: if it cannot be read any more.
    """
    try:
        with _LOCK:  # Several threads want samples of the same file: it is read once.
            found = _read(path, key, limit)
    except (ValueError, TypeError, OSError) as error:
        raise InputFailure(one_line(error)) from error
    if shape is not None:
        found = found.reshape(-1, *shape)
        number = number or 0
    values = found if number is None else found[number]
    if not np.isfinite(values).all():
        bad = int((~np.isfinite(values)).sum())
        raise InputFailure(f"{path}: {bad} of its {values.size} numbers are NaN or infinite")
    if values.dtype != np.float32:
        values = values.astype(np.float64)
    return torch.from_numpy(np.ascontiguousarray(values))


def _read(path: Path, key: str | None, limit: int | None) -> np.ndarray:
    if path.suffix.lower() == ".csv":
        return tables.read(path).values
    status = path.stat()
    named = key if path.suffix.lower() in (".npz", ".mat") else None
    return _kept(path, named, limit, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=2)
def _kept(path: Path, key: str | None, limit: int | None, size: int, changed: int) -> np.ndarray:
    return io.read_array(path, key, max_bytes=limit)
