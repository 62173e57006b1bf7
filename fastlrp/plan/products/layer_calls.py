"""What a layer computes in each call, with all that its sizes and its rule settle settled beforehand.

A small network's products take a few microseconds, as long as a few such questions in Python.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastlrp.aten import _product
from fastlrp.aten.conv import TransposedProduct, few_channels
from fastlrp.plan.geometry import ConvGeometry


def product(
    weight: Tensor, input_sizes: tuple[int, ...], geometry: ConvGeometry | None
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """``(register, coefficient, W) -> W^T (coefficient register)`` as PyTorch's backend computes it.

    Args:
        weight: the layer's own. input_sizes: of one sample. geometry: of a convolution; None for a linear layer.
    """
    if geometry is None:
        return lambda flow, coefficient, matrix: _product.product(flow * coefficient.unsqueeze(1), matrix)
    stride, padding, dilation, transposed, _, groups = geometry.arguments
    few = few_channels(weight, transposed, groups)
    return TransposedProduct(list(input_sizes[1:]), stride, padding, dilation, transposed, groups, few)


def coefficients(
    op: Callable[..., Any], missing: list[bool], arguments: tuple[Any, ...], is_map: bool
) -> Callable[..., Any]:
    """``op`` of the tensors that are there, with None in the place of the others. Those of a map end channels-last."""
    places = [place for place, absent in enumerate(missing) if absent]
    last = torch.channels_last

    def of_tensors(*tensors: Tensor) -> Any:
        operands: list[Any] = list(tensors)
        turned = is_map and not tensors[0].is_contiguous()
        if turned:  # A kernel that has to bring the others into that order itself takes twice as long.
            operands = [t.contiguous(memory_format=last) if t.is_contiguous() else t for t in operands]
        for place in places:
            operands.insert(place, None)
        u, v = op(*operands, *arguments)
        if is_map:
            u = None if u is None else u.contiguous(memory_format=last)
            v = None if v is None else v.contiguous(memory_format=last)
        return u, v

    return of_tensors
