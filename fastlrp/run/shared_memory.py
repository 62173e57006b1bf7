"""Whether two tensors have entries in common: results must not be written into what is still read."""

from __future__ import annotations

import torch
from torch import Tensor


def share_entries(a: Tensor, b: Tensor) -> bool:
    """Whether a byte of the one's entries is a byte of the other's; views that only interleave share none."""
    if a.device != b.device or a.layout != torch.strided or b.layout != torch.strided or not (a.numel() and b.numel()):
        return False
    begin, end = max(a.data_ptr(), b.data_ptr()), min(_end(a), _end(b))
    if begin >= end:
        return False
    # Seldom, and exact: the bytes between the first and the last that both may have.
    first = min(a.data_ptr(), b.data_ptr())
    marks = torch.zeros(max(_end(a), _end(b)) - first, dtype=torch.bool, device="cpu")
    _bytes(a, marks, first).fill_(True)
    return bool(_bytes(b, marks, first).any())


def _end(t: Tensor) -> int:
    last = sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))
    return t.data_ptr() + (last + 1) * t.element_size()


def _bytes(t: Tensor, marks: Tensor, first: int) -> Tensor:
    """The bytes of the entries of ``t``, in a row of bytes that begins at the address ``first``."""
    size = t.element_size()
    strides = [*(stride * size for stride in t.stride()), 1]
    return marks.as_strided([*t.shape, size], strides, t.data_ptr() - first)
