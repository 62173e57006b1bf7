"""Pooling layers. Chained form passes through max-pools unchanged: the winner's activation is the output's."""

from __future__ import annotations

import math
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from fastlrp import rules
from fastlrp.builder import Builder, channels_last
from fastlrp.composites import MaxPoolMode
from fastlrp.graph import Node
from fastlrp.program import Factor, Flow
from fastlrp.sparse.forms import MaxPool
from fastlrp.stabilizer import Stabilizer

_AVG_POOL: list[Any] = [None, None, F.avg_pool2d, F.avg_pool3d]
_MAX_POOL: list[Any] = [None, F.max_pool1d, F.max_pool2d, F.max_pool3d]
_ADAPTIVE_MAX: list[Any] = [None, F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d]


def max_pool_forward(node: Node) -> Any:
    """``x -> (y, index)``: the pool with the winners' flat indices."""
    a, n = node.attributes, node.attributes["dims"]
    if a["adaptive"]:
        size = list(node.output.sizes[1:])
        return lambda x: _ADAPTIVE_MAX[n](x, size, return_indices=True)
    geometry = (a["kernel_size"], a["stride"], a["padding"], a["dilation"], a["ceil_mode"])

    def pooled(x: Tensor) -> tuple[Tensor, Tensor]:
        y, index = _MAX_POOL[n](x, *geometry, return_indices=True)
        return y, channels_last(index)

    return pooled


def lower_max(b: Builder, node: Node, rule: rules.Rule, flow: Flow, mode: MaxPoolMode, index: int) -> None:
    """A max-pool: the winner's index was kept by the forward pass in slot ``index``."""
    x, y = node.inputs[0], node.output
    a = node.attributes
    if mode in ("average", "sum") and not isinstance(rule, rules.Gradient):
        _as_average(b, node, flow, mode, max_pool_stabilizer(rule))
        return
    # c passes as it is when it belongs to the pool's own output; anything else becomes R here.
    chained = flow.factor.value is y
    scale = flow.factor.scale if chained else b.slot_of(flow.factor)
    size = list(x.sizes[1:])
    if mode == "ties" and not isinstance(rule, rules.Gradient):
        if a["adaptive"]:
            raise TypeError(f"tie-splitting is not defined for {node}: use max_pool='winner'")
        ties = b.operation("pool_ties_relevance")
        geometry = (a["kernel_size"], a["stride"], a["padding"], a["dilation"])
        register = b.step(
            lambda f, x, y, s: ties(f, x, y, s, *geometry), [flow.register], [x.index, y.index, scale], x.numel
        )
    else:
        winner = b.operation("pool_max_relevance")
        b.slot_bytes[index] = y.numel * 8
        register = b.step(
            lambda f, i, s: winner(f, i, s, size), [flow.register], [index, scale], x.numel,
            form=_form(b, node, index, scale),
        )  # fmt: skip
    b.send(x, Flow(register, Factor(x) if chained else Factor()))


def _form(b: Builder, node: Node, index: int, scale: int | None) -> MaxPool | None:
    a, x = node.attributes, node.inputs[0]
    if a["adaptive"] or not b.has_sparse_kernels:
        return None
    geometry = tuple(list(a[key]) for key in ("kernel_size", "stride", "padding", "dilation"))
    return MaxPool(index, scale, x.sizes, geometry)  # type: ignore[arg-type]


def max_pool_stabilizer(rule: rules.Rule | None) -> Stabilizer:
    """What the modes that divide use: that of the pool's own rule, Norm or Epsilon."""
    return Stabilizer.ensure(rule.stabilizer) if isinstance(rule, (rules.Norm, rules.Epsilon)) else Stabilizer()


def _as_average(b: Builder, node: Node, flow: Flow, mode: MaxPoolMode, stabilizer: Stabilizer) -> None:
    """The max-pool's relevance as if it had been an average (or sum) pool of the same geometry."""
    x, y = node.inputs[0], node.output
    a, n = node.attributes, node.attributes["dims"]
    if a["adaptive"] or any(d != 1 for d in a["dilation"]):
        raise TypeError(f"{node} is adaptive or dilated and has no average pool of its shape: use max_pool='winner'")
    if any(p > k // 2 for p, k in zip(a["padding"], a["kernel_size"], strict=True)):
        raise TypeError(f"{node} pads more than half its kernel: use max_pool='winner'")
    divisor = 1 if mode == "sum" else math.prod(a["kernel_size"])
    kernel, stride, padding, ceil = a["kernel_size"], a["stride"], a["padding"], a["ceil_mode"]

    def pooled(x: Tensor) -> Tensor:
        if n == 1:  # avg_pool1d knows no divisor.
            flat = F.avg_pool2d(
                x.unsqueeze(2), (1, *kernel), (1, *stride), (0, *padding), ceil, divisor_override=divisor
            )
            return flat.squeeze(2)
        result: Tensor = _AVG_POOL[n](x, kernel, stride, padding, ceil, True, divisor)
        return result

    z = b.cache(pooled, [x.index], y.numel)
    transpose = b.operation("pool_avg_relevance")
    spatial = list(x.sizes[1:])
    scale = b.share(flow, z, y.numel, stabilizer)
    geometry = (spatial, kernel, stride, padding, ceil, True, divisor)
    register = b.step(lambda f, s: transpose(f, s, *geometry), [flow.register], [scale], x.numel)
    b.send(x, Flow(register, Factor(x)))


def lower_average(b: Builder, node: Node, rule: rules.Rule, flow: Flow) -> None:
    """Average and adaptive average pools: in proportion (Norm), or their gradient."""
    x, y = node.inputs[0], node.output
    a = node.attributes
    if isinstance(rule, rules.Gradient):
        scale, left = b.slot_of(flow.factor), Factor()
    elif isinstance(rule, (rules.Norm, rules.Epsilon)):
        scale, left = b.share(flow, y.index, y.numel, Stabilizer.ensure(rule.stabilizer)), Factor(x)
    else:
        raise TypeError(f"{rule} is not defined for {node}: use Norm or Gradient")
    spatial = list(x.sizes[1:])
    if node.kind == "adaptive_avg_pool":
        adaptive = b.operation("pool_adaptive_avg_relevance")
        register = b.step(lambda f, s: adaptive(f, s, spatial), [flow.register], [scale], x.numel)
    else:
        transpose = b.operation("pool_avg_relevance")
        geometry = (a["kernel_size"], a["stride"], a["padding"], a["ceil_mode"], a["count_include_pad"])
        last = (*geometry, a["divisor_override"])
        register = b.step(lambda f, s: transpose(f, s, spatial, *last), [flow.register], [scale], x.numel)
    b.send(x, Flow(register, left))
