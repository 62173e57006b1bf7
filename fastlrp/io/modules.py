"""Between a file's entries and modules: layouts turned, weights in the asked-for dtype."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fastlrp import nn
from fastlrp.io.entries import ConvolutionEntry, Entry, LinearEntry, PoolEntry


def build(entries: Sequence[Entry], dtype: torch.dtype) -> nn.Sequential:
    """A network in NCHW, in evaluation mode.

    Raises:
        ValueError: a weight is too large for ``dtype``.
    """
    return nn.Sequential(*(_module(number, entry, dtype) for number, entry in enumerate(entries))).eval()


def _module(number: int, entry: Entry, dtype: torch.dtype) -> torch.nn.Module:
    if isinstance(entry, LinearEntry):
        m, n = entry.weight.shape
        # On the meta device: no random initialisation, which would cost time and move the generator.
        with torch.device("meta"):
            linear = nn.Linear(m, n)
        return _filled(number, linear, entry.weight.T, entry.bias, dtype)
    if isinstance(entry, ConvolutionEntry):
        h, w, d, n = entry.weight.shape
        with torch.device("meta"):
            convolution = nn.Convolution(filtersize=(h, w, d, n), stride=entry.stride)
        return _filled(number, convolution, entry.weight.transpose(3, 2, 0, 1), entry.bias, dtype)
    if isinstance(entry, PoolEntry):
        pool = nn.SumPool2d if entry.kind == "SumPool" else nn.MaxPool2d
        return pool(pool=entry.pool, stride=entry.stride)
    if entry.kind == "Flatten":
        return nn.Flatten(order="hwc")
    return {"Rect": nn.Rect, "Tanh": nn.Tanh, "SoftMax": nn.Softmax}[entry.kind]()


def _filled(
    number: int, module: torch.nn.Module, weight: np.ndarray, bias: np.ndarray, dtype: torch.dtype
) -> torch.nn.Module:
    module.weight = torch.nn.Parameter(_tensor(number, weight, dtype))
    module.bias = torch.nn.Parameter(_tensor(number, bias, dtype))
    return module


def _tensor(number: int, values: np.ndarray, dtype: torch.dtype) -> Tensor:
    # A copy of our own in any case: what comes may be a view of another layout.
    tensor = torch.from_numpy(np.array(values, dtype=np.float64, order="C")).to(dtype)
    if not bool(torch.isfinite(tensor).all()):
        largest = float(np.abs(values).max())
        raise ValueError(f"layer {number} has the weight {largest:g}, too large for {dtype}: read with a wider dtype=")
    return tensor
