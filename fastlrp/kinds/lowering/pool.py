"""Pooling layers. Chained form passes through max-pools unchanged: the winner's activation is the output's."""

from __future__ import annotations

import math
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from fastlrp import rules
from fastlrp.capture.graph import Node
from fastlrp.composites import MaxPoolMode
from fastlrp.kinds.lowering.pool_rules import POOL_RULES, Windows, lower_pool_rule, window_size
from fastlrp.plan.builder import Builder, channels_last
from fastlrp.plan.forms import AvgPool, MaxPool
from fastlrp.plan.geometry import PoolGeometry
from fastlrp.plan.steps import Factor, Flow, SweepPart
from fastlrp.stabilizer import Stabilizer

_MAX_POOL: list[Any] = [None, F.max_pool1d, F.max_pool2d, F.max_pool3d]
_ADAPTIVE_MAX: list[Any] = [None, F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d]

MOST_WINDOWS = 16
"""With more windows over one entry, gathering their rows costs more than the dense pool."""


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


def sweep_part(node: Node) -> SweepPart | None:
    """The pool as a part of one sweep over the map that it reads."""
    a = node.attributes
    if a["adaptive"]:
        return None
    geometry = tuple(list(a[key]) for key in ("kernel_size", "stride", "padding", "dilation"))
    return SweepPart("pool", (*geometry, a["ceil_mode"]))


def lower_max(b: Builder, node: Node, rule: rules.Rule, flow: Flow, mode: MaxPoolMode, index: int) -> None:
    """A max-pool: the winner's index was kept by the forward pass in slot ``index``."""
    x, y = node.inputs[0], node.output
    a = node.attributes
    if isinstance(rule, (rules.Flat, rules.WSquare)):
        lower_pool_rule(b, node, rule, flow)
        return
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
            form=max_pool_form(b, node, index, scale), unpool=_disjoint_windows(node),
        )  # fmt: skip
    b.send(x, Flow(register, Factor(x) if chained else Factor()))


def _max_windows(node: Node) -> PoolGeometry:
    a = node.attributes
    return PoolGeometry(*(list(a[key]) for key in ("kernel_size", "stride", "padding", "dilation")))


def _disjoint_windows(node: Node) -> PoolGeometry | None:
    """Of a max-pool whose windows don't overlap; None for others."""
    windows = None if node.attributes["adaptive"] else _max_windows(node)
    return None if windows is None or windows.overlaps else windows


def max_pool_form(b: Builder, node: Node, index: int, scale: int | None) -> MaxPool | None:
    """The pool in the terms of the sparse kernels, where they can take it."""
    if node.attributes["adaptive"] or not b.has_sparse_kernels:
        return None
    return MaxPool(index, scale, node.inputs[0].sizes, _max_windows(node))


def max_pool_stabilizer(rule: rules.Rule | None) -> Stabilizer:
    """What the modes that divide use: that of the pool's own rule, Norm or Epsilon."""
    return Stabilizer.ensure(rule.stabilizer) if isinstance(rule, (rules.Norm, rules.Epsilon)) else Stabilizer()


def _as_average(b: Builder, node: Node, flow: Flow, mode: MaxPoolMode, stabilizer: Stabilizer) -> None:
    """The max-pool's relevance as if it had been an average (or sum) pool of the same geometry."""
    x, y = node.inputs[0], node.output
    windows = Windows(b, node, 1 if mode == "sum" else window_size(node))
    sums = b.cache(windows.sums, [x.index], y.numel, key=(mode, node))
    form_of = lambda scale: _average_form(b, node, scale, windows.divisor)  # noqa: E731
    b.send_shares(x, sums, y.numel, flow, stabilizer, windows.transpose, form_of)


def _average_form(b: Builder, node: Node, scale: int | None, divisor: int | None) -> AvgPool | None:
    """Of windows that are as far apart everywhere: all but those of most adaptive pools."""
    if not b.has_sparse_kernels:
        return None
    a, arriving, leaving = node.attributes, node.output.sizes, node.inputs[0].sizes
    if node.kind == "adaptive_avg_pool":
        kernel = [i // o if o and i % o == 0 else 0 for i, o in zip(leaving[1:], arriving[1:], strict=True)]
        geometry, include_pad = PoolGeometry(kernel, kernel, [0] * len(kernel)), True
    else:
        geometry = PoolGeometry(*(list(a[key]) for key in ("kernel_size", "stride", "padding")))
        include_pad = a.get("count_include_pad", True)
    if not all(geometry.kernel_size) or len(geometry.kernel_size) != len(leaving) - 1:
        return None
    if math.prod(-(-k // s) for k, s in zip(geometry.kernel_size, geometry.stride, strict=True)) > MOST_WINDOWS:
        return None
    shares = AvgPool.shares_of(arriving[1:], leaving[1:], geometry, include_pad, divisor, b.dtype)
    return AvgPool(scale, shares, arriving, leaving, geometry)


def lower_average(b: Builder, node: Node, rule: rules.Rule, flow: Flow) -> None:
    """Average and adaptive average pools: in proportion (Norm), a rule for weights, or their gradient."""
    x, y = node.inputs[0], node.output
    a = node.attributes
    if isinstance(rule, POOL_RULES):
        lower_pool_rule(b, node, rule, flow)
        return
    if isinstance(rule, rules.Norm) and rule.of_sum and node.kind == "avg_pool" and a["divisor_override"] != 1:
        _as_average(b, node, flow, "sum", Stabilizer.ensure(rule.stabilizer))
        return
    if not isinstance(rule, (rules.Gradient, rules.Norm, rules.Epsilon)):
        raise TypeError(f"{rule} is not defined for {node}: use Norm, AlphaBeta, ZPlus, Flat, WSquare or Gradient")
    spatial = list(x.sizes[1:])
    if node.kind == "adaptive_avg_pool":
        adaptive, divisor = b.operation("pool_adaptive_avg_relevance"), None
        transpose = lambda f, s: adaptive(f, s, spatial)  # noqa: E731
    else:
        average, divisor = b.operation("pool_avg_relevance"), a["divisor_override"]
        geometry = (a["kernel_size"], a["stride"], a["padding"], a["ceil_mode"], a["count_include_pad"], divisor)
        transpose = lambda f, s: average(f, s, spatial, *geometry)  # noqa: E731
    form_of = lambda scale: _average_form(b, node, scale, divisor)  # noqa: E731
    if isinstance(rule, rules.Gradient):
        scale = b.slot_of(flow.factor)
        b.send(x, Flow(b.step(transpose, [flow.register], [scale], x.numel, form=form_of(scale))))
    else:
        b.send_shares(x, y.index, y.numel, flow, Stabilizer.ensure(rule.stabilizer), transpose, form_of)
