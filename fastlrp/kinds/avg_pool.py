"""Average and adaptive average pools: in proportion, a rule for weights, or the gradient."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from fastlrp import rules
from fastlrp.capture.arguments import dims
from fastlrp.capture.bind import bind_forward
from fastlrp.capture.graph import Node
from fastlrp.kinds import textbook
from fastlrp.kinds.kind import Kind
from fastlrp.kinds.pool_windows import (
    Windows,
    lower_pool_rule,
    read_pool,
    shares_at_pools,
    through_windows,
    window_size,
    window_sums,
)
from fastlrp.kinds.textbook import Share, Walk
from fastlrp.plan.builder import Builder
from fastlrp.plan.forms import AvgPool
from fastlrp.plan.geometry import PoolGeometry
from fastlrp.plan.steps import Flow
from fastlrp.plan.total import multiply
from fastlrp.reference import weightless
from fastlrp.reference.weightless import MaxPoolMode
from fastlrp.stabilizer import Stabilizer

MOST_WINDOWS = 16
"""With more windows over one entry, gathering their rows costs more than the dense pool."""


def read_adaptive(node: Node, bound: dict[str, Any]) -> str | None:
    """How many spatial axes an adaptive pool has."""
    node.attributes["dims"] = dims(node)
    if len(node.inputs[0].shape) != dims(node) + 2:
        return "unknown"
    return None


def lower(b: Builder, node: Node, rule: rules.Rule, flow: Flow) -> None:
    """Average and adaptive average pools: in proportion (Norm), a rule for weights, or their gradient."""
    x, y = node.inputs[0], node.output
    a = node.attributes
    if shares_at_pools(rule) is not None:
        lower_pool_rule(b, node, rule, flow)
        return
    if isinstance(rule, rules.Norm) and rule.of_sum and node.kind == "avg_pool" and a["divisor_override"] != 1:
        as_average(b, node, flow, "sum", Stabilizer.ensure(rule.stabilizer))
        return
    if not isinstance(rule, (rules.Gradient, rules.Norm, rules.Epsilon)):
        known = "Norm, Epsilon, AlphaBeta, ZPlus, Flat, WSquare or Gradient"
        raise TypeError(f"{rule} is not defined for {node}: use {known}")
    spatial = list(x.sizes[1:])
    if node.kind == "adaptive_avg_pool":
        adaptive, divisor = b.operation("pool_adaptive_avg_relevance"), None

        def transposed(f: Tensor, s: Tensor | None) -> Tensor:
            relevance: Tensor = adaptive(f, s, spatial)
            return relevance
    else:
        average, divisor = b.operation("pool_avg_relevance"), a["divisor_override"]
        geometry = (a["kernel_size"], a["stride"], a["padding"], a["ceil_mode"], a["count_include_pad"], divisor)

        def transposed(f: Tensor, s: Tensor | None) -> Tensor:
            relevance: Tensor = average(f, s, spatial, *geometry)
            return relevance

    forward = bind_forward(node)

    def up(t: Tensor, s: Tensor | None) -> Tensor:
        pooled: Tensor = forward(t.flatten(0, 1)).unflatten(0, t.shape[:2])
        return pooled if s is None else multiply(pooled, s)

    form_of = lambda scale: _average_form(b, node, scale, divisor)  # noqa: E731
    if isinstance(rule, rules.Norm) and rule.of_sum and node.kind == "adaptive_avg_pool":
        counts = _entries(node, b)
        sums = b.cache(lambda y: y * counts, [y.index], y.numel)
        down, back = (lambda f, s, call=call: call(f, s * counts) for call in (transposed, up))
        of_sums = lambda scale: _average_form(b, node, scale, 1)  # noqa: E731
        b.send_shares(x, sums, y.numel, flow, Stabilizer.ensure(rule.stabilizer), down, of_sums, back)
        return
    if isinstance(rule, rules.Gradient):
        scale = b.slot_of(flow.factor)
        b.send(x, Flow(b.step(transposed, [flow.register], [scale], x.numel, form=form_of(scale), up=up)))
    else:
        b.send_shares(x, y.index, y.numel, flow, Stabilizer.ensure(rule.stabilizer), transposed, form_of, up)


def as_average(b: Builder, node: Node, flow: Flow, mode: MaxPoolMode, stabilizer: Stabilizer) -> None:
    """The max-pool's relevance as if it had been an average (or sum) pool of the same geometry."""
    x, y = node.inputs[0], node.output
    pool = Windows(b, node, 1 if mode == "sum" else window_size(node))
    sums = b.cache(pool.sums, [x.index], y.numel, key=(mode, node))
    form_of = lambda scale: _average_form(b, node, scale, pool.divisor)  # noqa: E731
    b.send_shares(x, sums, y.numel, flow, stabilizer, pool.transpose, form_of, pool.up)


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


def _entries(node: Node, b: Builder | None = None) -> Tensor:
    """How many entries each window of an adaptive pool has, ``(1, 1, *S')``: of the builder's dtype, or in float64."""
    x, y = node.inputs[0], node.output
    counts = torch.ones((1, 1), dtype=torch.float64)
    for size, out in zip(x.sizes[1:], y.sizes[1:], strict=True):
        axis = [-(-(i + 1) * size // out) - i * size // out for i in range(out)]
        counts = counts.unsqueeze(-1) * torch.tensor(axis, dtype=torch.float64)
    return counts if b is None else counts.to(b.device, b.dtype)


def through(walk: Walk, node: Node, rule: Any, R: Tensor) -> Share:
    """The textbook step."""
    x = node.sources[0]
    if isinstance(rule, rules.Gradient):
        return textbook.gradient(walk, node, R)
    if isinstance(rule, rules.Pass):
        return textbook.unchanged(node, R)
    if shares_at_pools(rule) is not None:
        return through_windows(walk, node, rule, R)
    forward = walk.alone(node, x)
    if isinstance(rule, rules.Norm) and rule.of_sum:
        means, counts = forward, None if node.kind == "avg_pool" else _entries(node).to(R.device)
        forward = window_sums(node) if counts is None else lambda x: means(x) * counts
    relevance, ledger = weightless.norm(forward, walk.values[x], R, Stabilizer.ensure(rule.stabilizer))
    return Share({x: relevance}, ledger)


KIND = Kind(
    name="avg_pool",
    operations="avg_pool1d avg_pool2d avg_pool3d",
    lower=lower,
    textbook=through,
    read=read_pool,
    preset=lambda sums: sums,
    modules={"avg_pool1d": nn.AvgPool1d, "avg_pool2d": nn.AvgPool2d, "avg_pool3d": nn.AvgPool3d},
)


ADAPTIVE = Kind(
    name="adaptive_avg_pool",
    operations="adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d",
    lower=lower,
    textbook=through,
    read=read_adaptive,
    preset=lambda sums: sums,
    modules={
        "adaptive_avg_pool1d": nn.AdaptiveAvgPool1d,
        "adaptive_avg_pool2d": nn.AdaptiveAvgPool2d,
        "adaptive_avg_pool3d": nn.AdaptiveAvgPool3d,
    },
)
