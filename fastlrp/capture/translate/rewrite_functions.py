"""Functions that stand for a few operations: differences, soft maxima, Kronecker products."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from fastlrp.capture.graph import Constant, Value
from fastlrp.capture.translate import rewrite
from fastlrp.capture.translate.rewrite import Step, Steps, shape_of
from fastlrp.capture.translate.rewrite_attention import written_out
from fastlrp.capture.translate.rewrite_losses import negative_log_likelihood
from fastlrp.capture.translate.rewrite_masked_scatter import filled_in_order

aten = torch.ops.aten


def _difference(a: dict[str, Any], shape: Any) -> Steps | None:
    """Each entry less the one before it, ``n`` times, of what stands between ``prepend`` and ``append``."""
    parts = [part for part in (a.get("prepend"), a["self"], a.get("append")) if part is not None]
    axis, times = a.get("dim", -1) % len(shape), a.get("n", 1)
    if not isinstance(shape[axis], int) or not isinstance(times, int) or times < 1:
        return None

    def of_length(length: int) -> tuple[Any, ...]:
        return (*shape[:axis], length, *shape[axis + 1 :])

    steps: Steps = []
    x, length = a["self"], shape[axis] + times
    if len(parts) > 1:
        steps.append((aten.cat.default, "cat", (parts, axis), {}, of_length(length)))
        x = Step(0)
    for rest in range(length - 1, shape[axis] - 1, -1):
        at = len(steps)
        steps += [
            (aten.narrow.default, "narrow", (x, axis, 1, rest), {}, of_length(rest)),
            (aten.narrow.default, "narrow", (x, axis, 0, rest), {}, of_length(rest)),
            (aten.sub.Tensor, "sub", (Step(at), Step(at + 1)), {}, of_length(rest)),
        ]
        x = Step(at + 2)
    return steps


def _soft_maximum(base: float | None) -> Callable[[dict[str, Any], Any], Steps | None]:
    """``log(exp(a) + exp(b))`` of two activations of one shape, or the same with another base."""

    def steps(a: dict[str, Any], shape: Any) -> Steps | None:
        pair = [a["self"], a["other"]]
        if not all(isinstance(x, Value) and x.shape == shape for x in pair):
            return None
        if base is None:
            return joined(pair, shape, 0)
        scale = math.log(base)
        scaled: Steps = [(aten.mul.Tensor, "mul", (x, scale), {}) for x in pair]
        return [*scaled, *joined([Step(0), Step(1)], shape, 2), (aten.mul.Tensor, "mul", (Step(3), 1 / scale), {})]

    def joined(pair: list[Any], shape: Any, start: int) -> Steps:
        last = len(shape)
        return [
            (aten.stack.default, "stack", (pair, last), {}, (*shape, 2)),
            (aten.logsumexp.default, "logsumexp", (Step(start), [last]), {}),
        ]

    return steps


def _kronecker(a: dict[str, Any], shape: Any) -> Steps | None:
    """Every entry of one times a whole constant, which must not repeat samples: its axis 0 has one entry, or none."""
    operands = [a["self"], a["other"]]
    value = next((x for x in operands if isinstance(x, Value)), None)
    constant = next((x for x in operands if isinstance(x, Constant)), None)
    if value is None or constant is None or len(value.shape) != len(shape) or value.shape[0] is not None:
        return None
    rank = len(shape)
    sizes = [(1,) * (rank - len(shape_of(x))) + shape_of(x) for x in operands]
    factor = sizes[operands.index(constant)]
    if factor[0] != 1 or not all(isinstance(n, int) for n in value.shape[1:]):
        return None
    first, second = ([-1 if n is None else n for n in own] for own in sizes)
    apart = [first[0], *(m for n in first[1:] for m in (n, 1))]  # The constant's axis 0 is 1: samples stay in front.
    together = [second[0], *(m for n in second[1:] for m in (1, n))]
    shapes = [[None if n == -1 else n for n in form] for form in (apart, together)]
    product = rewrite.broadcast(*map(tuple, shapes))
    return [
        (aten.reshape.default, "reshape", (operands[0], apart), {}, tuple(shapes[0])),
        (aten.reshape.default, "reshape", (operands[1], together), {}, tuple(shapes[1])),
        (aten.mul.Tensor, "mul", (Step(0), Step(1)), {}, product),
        (aten.reshape.default, "reshape", (Step(2), [-1, *shape[1:]]), {}),
    ]


def _outer(a: dict[str, Any], shape: Any) -> Steps | None:
    """Each entry of one vector times all of a constant one."""
    first, second = a["self"], a["vec2"]
    if not isinstance(second, Constant):
        return None
    return [
        (aten.unsqueeze.default, "unsqueeze", (first, 1), {}, (shape[0], 1)),
        (aten.mul.Tensor, "mul", (Step(0), second), {}),
    ]


def _computed_bias(name: str) -> Callable[[dict[str, Any], Any], Steps | None]:
    """A convolution whose bias is computed from the input: without one, then the sum."""
    transposed = ["stride", "padding", "output_padding", "groups", "dilation"]
    geometry = transposed if "transpose" in name else ["stride", "padding", "dilation", "groups"]

    def steps(a: dict[str, Any], shape: Any) -> Steps | None:
        bias = a.get("bias")
        if not isinstance(bias, Value):
            return None
        overloads = getattr(aten, name)
        call = getattr(overloads, "padding" if isinstance(a["padding"], str) else overloads.overloads()[0])
        sizes = [-1, *[1] * int(name[-2])]
        return [
            (call, name, (a["input"], a["weight"], None, *(a[key] for key in geometry)), {}),
            (aten.reshape.default, "reshape", (bias, sizes), {}, (*bias.shape, *sizes[1:])),
            (aten.add.Tensor, "add", (Step(0), Step(1)), {}),
        ]

    return steps


def _computed_matrix(a: dict[str, Any], shape: Any) -> Steps | None:
    """A linear layer whose matrix is computed from the input: a product with its transpose, then the bias."""
    weight, bias = a["weight"], a.get("bias")
    if not isinstance(weight, Value) or len(weight.shape) != 2:
        return None
    product: Steps = [
        (aten.t.default, "t", (weight,), {}, weight.shape[::-1], weight.dtype),
        (aten.matmul.default, "matmul", (a["input"], Step(0)), {}),
    ]
    return product if bias is None else [*product, (aten.add.Tensor, "add", (Step(1), bias), {})]


REWRITES: dict[str, Callable[[dict[str, Any], Any], Steps | None]] = {
    **rewrite.REWRITES,
    "diff": _difference,
    "logaddexp": _soft_maximum(None),
    "logaddexp2": _soft_maximum(2.0),
    "kron": _kronecker,
    "outer": _outer,
    "ger": _outer,
    "scaled_dot_product_attention": written_out,
    "masked_scatter": filled_in_order,
    "cross_entropy_loss": negative_log_likelihood(of_logits=True),
    "nll_loss": negative_log_likelihood(of_logits=False),
    "nll_loss_nd": negative_log_likelihood(of_logits=False),
    "linear": _computed_matrix,
    **{f"conv{n}d": _computed_bias(f"conv{n}d") for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": _computed_bias(f"conv_transpose{n}d") for n in (1, 2, 3)},
}
"""All of :data:`fastlrp.capture.translate.rewrite.REWRITES` and these, by the operation's name."""
