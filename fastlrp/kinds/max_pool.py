"""Max-pools. Chained form passes through them unchanged: the winner's activation is the output's."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from fastlrp import rules
from fastlrp.capture.graph import Node
from fastlrp.kinds import textbook
from fastlrp.kinds.avg_pool import as_average
from fastlrp.kinds.chained import is_chained
from fastlrp.kinds.kind import Kind
from fastlrp.kinds.pool_windows import lower_pool_rule, read_pool, shares_at_pools, through_windows
from fastlrp.kinds.textbook import Share, Walk
from fastlrp.plan.builder import Builder
from fastlrp.plan.forms import MaxPool
from fastlrp.plan.geometry import PoolGeometry
from fastlrp.plan.products.channels_last import channels_last
from fastlrp.plan.steps import Factor, Flow, SweepPart
from fastlrp.plan.total import multiply
from fastlrp.reference import weightless
from fastlrp.stabilizer import Stabilizer

_MAX_POOL: list[Any] = [None, F.max_pool1d, F.max_pool2d, F.max_pool3d]
_ADAPTIVE_MAX: list[Any] = [None, F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d]


def max_pool_forward(node: Node) -> Any:
    """``x -> (y, index)``: the pool with the winners' flat indices."""
    a, n = node.attributes, node.attributes["dims"]
    if a["adaptive"]:
        size = list(node.output.shape[2:])  # Also where frames stand in the batch.
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


def lower(b: Builder, node: Node, rule: rules.Rule, flow: Flow) -> None:
    """A max-pool: the winner's index was kept by the forward pass."""
    index = b.beside[node]
    _send(b, node, rule, flow, index)
    b.drafts[-1].slots.append(index)


def _send(b: Builder, node: Node, rule: rules.Rule, flow: Flow, index: int) -> None:
    x, y, mode = node.inputs[0], node.output, b.max_pool
    a = node.attributes
    if shares_at_pools(rule) == "equal":
        lower_pool_rule(b, node, rule, flow)
        return
    if not isinstance(rule, (rules.Norm, rules.Epsilon, rules.Pass, rules.Gradient)):
        raise TypeError(
            f"{rule} is not defined for {node}, whose relevance goes by the composite's max_pool, here {mode!r}: use "
            "Norm or Epsilon (the stabilizer of max_pool='average' and 'sum'), Flat, WSquare or Gradient"
        )
    if mode in ("average", "sum") and not isinstance(rule, rules.Gradient):
        as_average(b, node, flow, mode, max_pool_stabilizer(rule))
        return
    # c passes as it is when it belongs to the pool's own output; anything else becomes R here.
    chained = is_chained(flow, y)
    scale = flow.factor.scale if chained else b.slot_of(flow.factor)
    if chained and a["dims"] == 2:  # Otherwise a dark window's relevance may be as large as a bright one's.
        b.passed.add(node)
    size = list(x.sizes[1:])
    if mode == "ties" and not isinstance(rule, rules.Gradient):
        if a["adaptive"]:
            raise TypeError(f"tie-splitting is not defined for {node}: use max_pool='winner'")
        ties = b.operation("pool_ties_relevance")
        geometry = (a["kernel_size"], a["stride"], a["padding"], a["dilation"])

        def split_at_ties(f: Tensor, x: Tensor, y: Tensor, s: Tensor | None) -> Tensor:
            relevance: Tensor = ties(f, x, y, s, *geometry)
            return relevance

        register = b.step(split_at_ties, [flow.register], [x.index, y.index, scale], x.numel)
    else:
        winner = b.operation("pool_max_relevance")
        b.slot_bytes[index] = y.numel * 8

        def at_winners(f: Tensor, index: Tensor, s: Tensor | None) -> Tensor:
            relevance: Tensor = winner(f, index, s, size)
            return relevance

        def from_winners(t: Tensor, index: Tensor, s: Tensor | None) -> Tensor:
            where = index.flatten(2).unsqueeze(1).expand(-1, t.shape[1], -1, -1)
            taken = t.flatten(3).gather(3, where).unflatten(3, y.sizes[1:])
            return taken if s is None else multiply(taken, s)

        register = b.step(
            at_winners, [flow.register], [index, scale], x.numel, form=max_pool_form(b, node, index, scale),
            unpool=_disjoint_windows(node), takes_bf16=scale is None, up=from_winners,
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


def title(b: Builder, rule: rules.Rule | None) -> rules.Rule | str:
    """Who takes the relevance of a pool's output, where that is what decides."""
    decides = isinstance(rule, rules.Gradient) or shares_at_pools(rule) == "equal"
    return rule if rule is not None and decides else f"max: {b.max_pool}"


def forward(b: Builder, node: Node) -> None:
    """The pool with its winners' indices, which may become one step with the ReLU before it."""
    b.beside[node] = b.add_forward(node, 1, max_pool_forward(node), sweep_part(node))


def through(walk: Walk, node: Node, rule: rules.Rule, R: Tensor) -> Share:
    """The textbook step."""
    x, a = node.sources[0], node.attributes
    if isinstance(rule, rules.Gradient):
        return textbook.gradient(walk, node, R)
    if shares_at_pools(rule) == "equal":
        return through_windows(walk, node, rule, R)
    if a["adaptive"]:
        return Share(textbook.gradient(walk, node, R).relevance, textbook.nothing_kept(R))
    geometry = (a["kernel_size"], a["stride"], a["padding"], a["dilation"], a["ceil_mode"])
    stabilizer = max_pool_stabilizer(rule)
    relevance, ledger = weightless.max_pool(walk.values[x], R, walk.max_pool, *geometry, stabilizer)
    return Share({x: relevance}, ledger)


KIND = Kind(
    name="max_pool",
    operations="max_pool1d max_pool2d max_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d",
    lower=lower,
    textbook=through,
    read=read_pool,
    forward=forward,
    title=title,
    preset=lambda sums: sums,
    fallback=rules.Norm(),
    modules={"max_pool1d": nn.MaxPool1d, "max_pool2d": nn.MaxPool2d, "max_pool3d": nn.MaxPool3d},
)
