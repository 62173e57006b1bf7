"""The transpose of a backward step: its own, or by automatic differentiation of the step.

A step that is linear in its registers, ``y = A x``, has the transpose ``t -> A^T t``. That is the derivative of
``<t, A x>`` by ``x``, at any ``x``: zeros are as good as others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from fastlrp.errors import UnsupportedOperationError
from fastlrp.plan.steps import BackwardStep
from fastlrp.targets.one_hot import AtPositions


@dataclass(frozen=True)
class Shape:
    """Of a register: sizes of one sample and target, and dtype."""

    sizes: tuple[int, ...]
    dtype: torch.dtype


def results(made: Any) -> tuple[Tensor, ...]:
    """What a step gave, each whole."""
    several = made if isinstance(made, tuple) else (made,)
    return tuple(t.dense() if isinstance(t, AtPositions) else t for t in several)


def transposed(step: BackwardStep, shapes: Callable[[], dict[int, Shape]]) -> Callable[..., Any]:
    """``(cotangents of outs…, slots…) -> cotangents of ins``; of several ins a tuple. ``shapes``: of all registers."""
    return step.up if step.up is not None else _by_derivative(step, shapes)


def _by_derivative(step: BackwardStep, shapes: Callable[[], dict[int, Shape]]) -> Callable[..., Any]:
    def up(*operands: Any) -> Any:
        arriving, slots = operands[: len(step.outs)], operands[len(step.outs) :]
        first = next(t for t in arriving if t is not None)
        try:
            return derivative(first, arriving, slots)
        except (NotImplementedError, RuntimeError) as error:
            if "not implemented" not in str(error):
                raise
            raise UnsupportedOperationError(
                f"{step.name} has no way up: PyTorch has no second derivative of it. Use direction='down'"
            ) from error

    def derivative(first: Tensor, arriving: Sequence[Tensor | None], slots: Sequence[Any]) -> Any:
        known = [shapes()[register] for register in step.ins]
        # Inference mode records nothing, and its tensors cannot take part: their copies made outside it can.
        with torch.inference_mode(False), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            own = [t.clone() if isinstance(t, Tensor) and t.is_inference() else t for t in slots]
            points = [
                torch.zeros((*first.shape[:2], *shape.sizes), dtype=shape.dtype, device=first.device).requires_grad_()
                for shape in known
            ]
            made = step.run(*points, *own)
            found = _derivative(results(made), points, arriving)
        return found[0] if len(found) == 1 else found

    return up


def _derivative(
    made: Sequence[Tensor], points: Sequence[Tensor], arriving: Sequence[Tensor | None]
) -> tuple[Tensor, ...]:
    pairs = [(y, t) for y, t in zip(made, arriving, strict=True) if t is not None and y.requires_grad]
    if not pairs:
        return tuple(torch.zeros_like(point) for point in points)
    outputs, cotangents = zip(*pairs, strict=True)
    cotangents = tuple(t.clone() if t.is_inference() else t for t in cotangents)
    found = torch.autograd.grad(outputs, points, cotangents, allow_unused=True)
    return tuple(torch.zeros_like(p) if g is None else g for p, g in zip(points, found, strict=True))
