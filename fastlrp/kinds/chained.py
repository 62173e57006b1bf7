"""Relevance per unit of a value: what rules in the limit of epsilon to 0 send on in the place of relevance."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastlrp.capture.graph import Constant, Node, Value
from fastlrp.kinds.broadcasting import sum_to_shape
from fastlrp.plan.builder import Builder
from fastlrp.plan.steps import Factor, Flow


def is_chained(flow: Flow, y: Value) -> bool:
    """Whether the flow is relevance per unit of ``y``, times a cached scale where it has one."""
    return flow.factor.value is y


def pass_on(b: Builder, flow: Flow, y: Value, x: Value) -> None:
    """Send ``x``, which holds the numbers of ``y`` in the same order, the relevance of ``y``."""
    b.send(x, Flow(flow.register, Factor(x, flow.factor.scale)) if is_chained(flow, y) else flow)


def send_times(b: Builder, node: Node, x: Value, others: list[Any], inverse: Any, part: float, flow: Flow) -> None:
    """Send ``c_x = c_y * part * others / inverse`` for an element-wise product ``y = x * others / inverse``.

    Args:
        others: values, constants and numbers. inverse: the same, or None for 1.
        part: of ``x`` in the product's relevance. flow: relevance per unit of ``y``.
    """
    y = node.output
    operands = [*others, *([] if inverse is None else [inverse])]
    values = [v for v in operands if isinstance(v, Value)]
    ins = [y.index, *(v.index for v in values), *(() if flow.factor.scale is None else (flow.factor.scale,))]
    scaled = flow.factor.scale is not None

    def multiplier(y: Tensor, *tensors: Tensor) -> Tensor:
        rest = iter(tensors)
        found = [_as_floats(next(rest), y) if isinstance(v, Value) else _plain(v, y) for v in operands]
        result: Any = part
        for other in found if inverse is None else found[:-1]:
            result = result * other
        if inverse is not None:
            result = result / found[-1]
        if scaled:
            result = result * next(rest)
        if not isinstance(result, Tensor):
            result = torch.full((), result, dtype=y.dtype, device=y.device)  # Not a copy from the host.
        return result.to(device=y.device, dtype=y.dtype).expand_as(y)

    number = _number(b, others, inverse, part, flow.factor.scale)
    if number is not None:
        scale: int | None = b.number(number, x if x.shape == y.shape else y)
    elif operands or part != 1:
        scale = b.cache(multiplier, ins, y.numel)
    else:
        scale = flow.factor.scale
    if x.shape == y.shape:
        b.send(x, Flow(flow.register, Factor(x, scale)))
    else:
        summed = sum_to_shape(b, Flow(flow.register, Factor(None, scale)), y, x)
        b.send(x, Flow(summed.register, Factor(x)))


def _number(b: Builder, others: list[Any], inverse: Any, part: float, scale: int | None) -> float | None:
    """The product, if everything in it is a number; None if not, or if there is nothing in it."""
    divisor = 1 if inverse is None else inverse
    operands = [part, divisor, *others, *([] if scale is None else [b.numbers.get(scale)])]
    if (not others and inverse is None and part == 1) or divisor == 0:
        return None
    if any(isinstance(v, bool) or not isinstance(v, (int, float)) for v in operands):
        return None
    return float(part * math.prod(operands[2:]) / divisor)


def _as_floats(t: Any, y: Tensor) -> Any:
    """Integers and truth values as numbers of the result's precision: PyTorch would make float32 of ``1 / count``."""
    if not isinstance(t, Tensor) or t.is_floating_point():
        return t
    return t.to(torch.promote_types(y.dtype, torch.float32))


def _plain(operand: Any, y: Tensor) -> Any:
    plain = operand.tensor() if isinstance(operand, Constant) else operand
    return plain.to(y.dtype) if isinstance(plain, Tensor) else plain
