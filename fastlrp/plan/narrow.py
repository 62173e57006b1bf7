"""Quotients in 16 bits: computed in float32, and only then brought into the range of the narrow type.

``1 / epsilon`` is infinite in float16 (the largest number is 65504, the stabilizer 1e-6), and infinity times the zero
that it is multiplied with is NaN. A cached coefficient ``factor / st(z)`` is therefore formed as one quotient in
float32, which is at most about 1 where the factor is the activation of ``z``. What still does not fit is

* 0 where ``z`` is 0: nothing contributes there, so that nothing is to be passed on;
* the largest finite number elsewhere.

Where relevance arrives without a factor the quotient has no such bound: layers with a weight then make their product in
float32 (:func:`in_float32`); average pools, other linear maps and additions form relevance itself. Sums that
broadcast and linear maps with a constant don't, nor do z-box and alpha-beta at pools: there the quotient saturates
below ``|z|`` of 1.5e-5.

bfloat16 has the range of float32 and gains the digits only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

NARROW = (torch.float16, torch.bfloat16)


def wide(tensor: Any) -> Any:
    """A 16-bit tensor in float32; anything else (other dtypes, None) as it is."""
    return tensor.float() if isinstance(tensor, Tensor) and tensor.dtype in NARROW else tensor


def representable(coefficient: Tensor | None, denominator: Tensor, dtype: torch.dtype) -> Tensor | None:
    """A coefficient in ``dtype``, within its range, and 0 where a float16 denominator is 0."""
    if coefficient is None or denominator.dtype != torch.float16:
        return coefficient if coefficient is None else coefficient.to(dtype)
    largest = torch.finfo(dtype).max
    finite = coefficient.nan_to_num().clamp(-largest, largest)
    return torch.where(denominator == 0, 0.0, finite).to(dtype)


def in_float32(product: Callable[..., Tensor], dtype: torch.dtype) -> Callable[..., Tensor]:
    """A step whose operands are made float32, and its result ``dtype`` again, without infinities."""

    def product_in_float32(flow: Any, *operands: Any) -> Tensor:
        result = product(wide(flow), *map(wide, operands))
        largest = torch.finfo(dtype).max
        return result.clamp(-largest, largest).to(dtype)

    return product_in_float32
