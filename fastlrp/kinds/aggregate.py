"""Message passing: what arrives at the nodes of a graph, added up or the largest; a softmax over each node's edges.

``y = A x`` with a constant sum over places: relevance goes to the messages in proportion, ``c_x = A^T (R / st(y))``, as
at sums. Of the largest message, entry by entry, the winner takes all, and equal ones share in equal parts. Attention
coefficients, a softmax over the edges that arrive at one node, are treated as other attention weights are: by their
Taylor expansion, ``c_s = p * (c_p - sum p c_p)``, with the sum over the node's edges.

Sources: sums over neighbours, Schnake et al. 2021 (GNN-LRP); winner takes all, Bach et al. 2015; the softmax, Achtibat
et al. 2024 (AttnLRP), prop. 3.1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastlrp import rules
from fastlrp.capture.aggregation import added
from fastlrp.capture.graph import Constant, Node
from fastlrp.kinds import textbook
from fastlrp.kinds.chained import is_chained
from fastlrp.kinds.jacobian import transpose_at
from fastlrp.kinds.kind import Kind
from fastlrp.kinds.textbook import Share, Walk
from fastlrp.plan.builder import Builder
from fastlrp.plan.steps import Factor, Flow
from fastlrp.plan.total import multiply
from fastlrp.reference.redistribution import total
from fastlrp.stabilizer import Stabilizer


def _places(node: Node) -> tuple[int, Tensor, int]:
    """The axis of ``(B, …)``, the place of each entry along it, and how many places there are."""
    axis, index, count = node.args[1:4]
    assert isinstance(index, Constant)
    return axis, index.tensor(), count


def lower_sum(b: Builder, node: Node, rule: rules.Rule, flow: Flow) -> None:
    """In proportion, or the gradient; the transpose of a sum over places is a copy from them."""
    x, y = node.sources[0], node.output
    axis, index, count = _places(node)

    def to_messages(f: Tensor, s: Tensor | None) -> Tensor:
        return (f if s is None else multiply(f, s)).index_select(axis + 1, index)

    def to_nodes(t: Tensor, s: Tensor | None) -> Tensor:
        t = added(t, axis + 1, index, count)
        return t if s is None else multiply(t, s)

    if isinstance(rule, rules.Gradient):
        scale = b.slot_of(flow.factor)
        b.send(x, Flow(b.step(to_messages, [flow.register], [scale], x.numel, up=to_nodes)))
    elif isinstance(rule, (rules.Norm, rules.Epsilon)):
        stabilizer = Stabilizer.ensure(rule.stabilizer)
        b.send_shares(x, y.index, y.numel, flow, stabilizer, to_messages, up=to_nodes)
    else:
        raise TypeError(f"{rule} is not defined for {node}: use Norm, Epsilon or Gradient")


def lower_largest(b: Builder, node: Node, rule: rules.Rule, flow: Flow) -> None:
    """To the winner of each node and channel; what flows per unit of activation stays as it is."""
    if not isinstance(rule, (rules.Pass, rules.Gradient)):
        raise TypeError(f"{rule} is not defined for {node}: use Pass (the largest message takes all) or Gradient")
    x, y = node.sources[0], node.output
    axis, index, count = _places(node)
    chained = is_chained(flow, y)
    scale = flow.factor.scale if chained else b.slot_of(flow.factor)

    def shares(x: Tensor, y: Tensor, s: Tensor | None = None) -> Tensor:
        winner = (x == y.index_select(axis, index)).to(x.dtype)
        ties = added(winner, axis, index, count).index_select(axis, index)
        winner = winner / ties.clamp_(min=1)
        return winner if s is None else winner * s.index_select(axis, index)

    mask = b.cache(shares, [x.index, y.index, *([] if scale is None else [scale])], x.numel)

    def to_winners(f: Tensor, mask: Tensor) -> Tensor:
        return multiply(f.index_select(axis + 1, index), mask)

    def from_winners(t: Tensor, mask: Tensor) -> Tensor:
        return added(multiply(t, mask), axis + 1, index, count)

    register = b.step(to_winners, [flow.register], [mask], x.numel, up=from_winners)
    b.send(x, Flow(register, Factor(x) if chained else Factor()))


def through_largest(walk: Walk, node: Node, rule: rules.Rule, R: Tensor) -> Share:
    """The textbook step, for the gradient too: a node without messages keeps what arrives.

    PyTorch's own derivative counts the zeros that it begins with among equal messages, which no model means.
    """
    x = node.sources[0]
    axis, index, _ = _places(node)
    values, same = walk.values[x].movedim(axis, -1), _same_node(index, R)
    winner = (values == walk.values[node.output].movedim(axis, -1)[..., index]).to(R.dtype)
    winner = winner / (winner @ same).clamp(min=1)
    relevance = (R.movedim(axis + 1, -1)[..., index] * winner.unsqueeze(1)).movedim(-1, axis + 1)
    if isinstance(rule, rules.Gradient):
        return Share({x: relevance}, None)
    ledger = textbook.nothing_kept(R)
    ledger.bias = torch.as_tensor(total(R) - total(relevance))
    return Share({x: relevance}, ledger)


def _same_node(index: Tensor, like: Tensor) -> Tensor:
    """``(E, E)``: 1 for edges that arrive at the same node."""
    return (index.unsqueeze(0) == index.unsqueeze(1)).to(like.dtype)


def lower_softmax(b: Builder, node: Node, rule: rules.Rule, flow: Flow) -> None:
    """The Taylor expansion, relevance unchanged, or the gradient."""
    s, p = node.sources[0], node.output
    axis, index, count = _places(node)
    if isinstance(rule, rules.Pass):
        b.send(s, flow)
        return
    if isinstance(rule, rules.Gradient):
        transpose_at(b, node, flow)
        return
    if not isinstance(rule, rules.Taylor):
        raise TypeError(f"{rule} is not defined for {node}: use Taylor, Pass or Gradient")
    share = b.share(flow, p.index, p.numel, Stabilizer.limit())

    def summed(t: Tensor) -> Tensor:
        return added(t, axis + 1, index, count).index_select(axis + 1, index)

    def derivative(f: Tensor, share: Tensor | None, p: Tensor) -> Tensor:
        c = (f if share is None else multiply(f, share)) * p.unsqueeze(1)
        return c - summed(c) * p.unsqueeze(1)

    def derivative_of_all(t: Tensor, share: Tensor | None, p: Tensor) -> Tensor:
        p = p.unsqueeze(1)
        t = p * (t - summed(t * p))
        return t if share is None else multiply(t, share)

    register = b.step(derivative, [flow.register], [share, p.index], s.numel, up=derivative_of_all)
    b.send(s, Flow(register, Factor(s)))


def through_softmax(walk: Walk, node: Node, rule: rules.Rule, R: Tensor) -> Share:
    """The textbook step: ``R_e = s_e (R_e - p_e sum_f R_f)``; the expansion's constant keeps the rest."""
    if isinstance(rule, rules.Pass):
        return textbook.unchanged(node, R)
    if isinstance(rule, rules.Gradient):
        return textbook.gradient(walk, node, R)
    source = node.sources[0]
    axis, index, _ = _places(node)
    sums = (R.movedim(axis + 1, -1) @ _same_node(index, R)).movedim(-1, axis + 1)
    relevance = walk.values[source].unsqueeze(1) * (R - walk.values[node.output].unsqueeze(1) * sums)
    ledger = textbook.nothing_kept(R)
    ledger.bias = torch.as_tensor(total(R) - total(relevance))
    return Share({source: relevance}, ledger)


SUM = Kind("aggregate", "aggregate", lower_sum, textbook.in_proportion, preset=lambda sums: sums)
LARGEST = Kind("aggregate_max", "aggregate_max", lower_largest, through_largest, preset=lambda sums: rules.Pass())
SOFTMAX = Kind("segment_softmax", "segment_softmax", lower_softmax, through_softmax, preset=lambda sums: rules.Taylor())
