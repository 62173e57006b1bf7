"""Inputs that are no tensors yet: NumPy arrays become tensors, pictures and lists of numbers say what to do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


def accepted(x: Any, home: Tensor | None) -> Any:
    """``x`` with tensors in the place of NumPy arrays: on the model's device, floats in the model's dtype.

    NumPy makes float64 unless told otherwise, so that the precision of an array says nothing of what is wanted. The
    numbers are copied: an array that changes later changes no record.

    Args:
        home: a parameter that shows the model's dtype and device, if it has one.

    Raises:
        TypeError: for pictures, lists of numbers and arrays of anything but numbers; the message has the way out.
    """
    if isinstance(x, np.ndarray):
        return _tensor(x, "x", home)
    _refuse_picture(x, "x is a Pillow image", "[None]")
    if isinstance(x, Mapping):
        if any(isinstance(value, np.ndarray) for value in x.values()):
            return {name: _part(value, repr(name), home) for name, value in x.items()}
        return x
    if isinstance(x, (tuple, list)) and type(x) in (tuple, list):
        for item in x:
            _refuse_picture(item, "x is a list of Pillow images", " of each, put together by torch.stack")
        if _is_numbers(x):
            raise TypeError(
                "x is a list of numbers: give a tensor with a batch axis, torch.tensor(x) if the outer list holds the "
                "samples"
            )
        if any(isinstance(item, np.ndarray) for item in x):
            return type(x)(_part(item, str(i), home) for i, item in enumerate(x))
    return x


def _part(value: Any, name: str, home: Tensor | None) -> Any:
    return _tensor(value, f"input {name}", home) if isinstance(value, np.ndarray) else value


def _tensor(array: np.ndarray, label: str, home: Tensor | None) -> Tensor:
    if isinstance(array, np.ma.MaskedArray) and array.mask is not np.ma.nomask and array.mask.any():
        raise TypeError(
            f"{label} is a masked array, and a model reads what is masked as well: give array.filled(…) with the "
            "number that it should see there"
        )
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{label} is an array of {array.dtype}: relevance is defined for numbers")
    dtype = None
    if array.dtype.kind == "f":
        dtype = torch.get_default_dtype() if home is None else home.dtype
        array = array if array.dtype.itemsize <= 8 else array.astype(np.float64)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    return torch.tensor(np.ascontiguousarray(array), dtype=dtype, device=None if home is None else home.device)


def _refuse_picture(x: Any, what: str, how: str) -> None:
    module = type(x).__module__
    if module == "PIL" or module.startswith("PIL."):
        raise TypeError(
            f"{what}: a model sees a picture through the preprocessing it was trained with. Give what that makes, "
            f"for a model of torchvision weights.transforms()(image){how}; `fastlrp explain` takes picture files"
        )


def _is_numbers(x: Any) -> bool:
    """Whether a list has numbers at its bottom."""
    while isinstance(x, (list, tuple)) and x:
        x = x[0]
    return isinstance(x, (int, float)) and not isinstance(x, bool)
