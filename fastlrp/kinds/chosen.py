"""Largest, smallest and sorted entries: each result is one entry of the input, which takes all of its relevance.

``amax``, ``amin``, ``maximum`` and ``minimum`` share among entries that are equal, in equal parts, as PyTorch's own
derivative does. ``max``, ``min``, ``median``, ``kthvalue``, ``mode``, ``topk``, ``sort``, ``cummax`` and ``cummin``
along an axis give all to the entry whose index PyTorch returns. The indices themselves carry no relevance.

Source: winner takes all, Bach et al. 2015, section "Multilayer networks"; the same choice as at max-pools.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fastlrp import rules
from fastlrp.capture.arguments import bind
from fastlrp.capture.bind import bind_forward
from fastlrp.capture.graph import Node
from fastlrp.kinds import textbook
from fastlrp.kinds.broadcasting import sum_to_shape
from fastlrp.kinds.chained import is_chained
from fastlrp.kinds.kind import Kind
from fastlrp.kinds.textbook import Share, Walk
from fastlrp.plan.builder import Builder
from fastlrp.plan.steps import Factor, Flow
from fastlrp.plan.total import multiply
from fastlrp.reference.redistribution import total

_REDUCED = ("amax", "amin")
_PAIRS = ("maximum", "minimum", "fmax", "fmin")


def read(node: Node, bound: dict[str, Any]) -> str | None:
    """How entries are chosen: of two operands, over axes, or by an index along one axis."""
    if node.operation in _PAIRS or bound.get("other") is not None:
        node.attributes["chosen"] = "pair"
        return None
    if node.operation in _REDUCED:
        node.attributes["chosen"] = "reduced"
        return None
    whole = getattr(node.call, "whole", None)
    if whole is None:
        # All entries of the batch (x.max()), or the operation before its results are taken apart.
        return "unknown" if node.output.is_tensor else "scalar"
    found = bind(whole, node.args, node.kwargs)
    node.attributes.update(chosen="index", dim=found.get("dim"))
    return None if isinstance(found.get("dim"), int) else "unknown"


def forward(b: Builder, node: Node) -> None:
    """The chosen entries with their indices, where the operation returns them."""
    if node.attributes["chosen"] != "index" or not node.output.is_differentiable:
        b.add_forward(node)
        return
    both = bind_forward(replace(node, call=getattr(node.call, "whole")))  # noqa: B009

    def values_and_indices(*inputs: Any) -> tuple[Tensor, Tensor]:
        values, indices = both(*inputs)
        return values, indices

    b.beside[node] = b.add_forward(node, 1, values_and_indices)


def lower(b: Builder, node: Node, rule: rules.Rule, flow: Flow) -> None:
    """To the chosen entry; what flows per unit of activation stays as it is, since the entry is the result."""
    if not isinstance(rule, (rules.Pass, rules.Gradient)):
        raise TypeError(f"{rule} is not defined for {node}: use Pass (the chosen entry takes all) or Gradient")
    {"pair": _of_two, "reduced": _over_axes, "index": _by_index}[node.attributes["chosen"]](b, node, flow)


def _scale(b: Builder, node: Node, flow: Flow) -> tuple[bool, int | None]:
    """Whether the flow belongs to the result itself, and the slot of what else it has to be multiplied with."""
    chained = is_chained(flow, node.output)
    return chained, flow.factor.scale if chained else b.slot_of(flow.factor)


def _of_two(b: Builder, node: Node, flow: Flow) -> None:
    y = node.output
    chained, scale = _scale(b, node, flow)
    operands = list(node.args[:2])
    ties = bind_forward(replace(node, call=lambda first, second: 1 + (first == second).int()))
    slots = [v.index for v in node.inputs]
    for x in node.sources:
        times = operands.count(x)

        def share(y: Tensor, s: Any, *values: Any, place: int = node.inputs.index(x), times: int = times) -> Tensor:
            part = (values[place] == y).to(y.dtype) * times / ties(*values)
            return part if s is None else part * s

        ins = [y.index, *([] if scale is None else [scale]), *slots]
        run = share if scale is not None else _without_scale(share)
        part = Flow(flow.register, Factor(None, b.cache(run, ins, y.numel)))
        if chained and x.shape == y.shape:
            b.send(x, Flow(part.register, Factor(x, part.factor.scale)))
            continue
        summed = sum_to_shape(b, part, y, x)
        b.send(x, Flow(summed.register, Factor(x, summed.factor.scale) if chained else summed.factor))


def _without_scale(run: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda y, *values: run(y, None, *values)


def _over_axes(b: Builder, node: Node, flow: Flow) -> None:
    x, y = node.sources[0], node.output
    chained, scale = _scale(b, node, flow)
    dims = bind(node.call, node.args, node.kwargs).get("dim")
    axes = [d % len(x.shape) for d in ([dims] if isinstance(dims, int) else dims or range(len(x.shape)))]
    kept = [1 if i + 1 in axes else n for i, n in enumerate(x.sizes)]

    def shares(x: Tensor, y: Tensor, s: Tensor | None = None) -> Tensor:
        winner = (x == y.reshape(-1, *kept)).to(x.dtype)
        winner = winner / winner.sum(axes, keepdim=True)
        return winner if s is None else winner * s.reshape(-1, *kept)

    mask = b.cache(shares, [x.index, y.index, *([] if scale is None else [scale])], x.numel)

    def to_the_winners(f: Tensor, mask: Tensor) -> Tensor:
        return multiply(f.reshape(*f.shape[:2], *kept), mask)

    def from_the_winners(t: Tensor, mask: Tensor) -> Tensor:
        return multiply(t, mask).sum([axis + 1 for axis in axes], keepdim=True).reshape(*t.shape[:2], *y.sizes)

    register = b.step(to_the_winners, [flow.register], [mask], x.numel, up=from_the_winners)
    b.send(x, Flow(register, Factor(x) if chained else Factor()))


def _by_index(b: Builder, node: Node, flow: Flow) -> None:
    x, y = node.sources[0], node.output
    chained, scale = _scale(b, node, flow)
    index = b.beside[node]
    b.slot_bytes[index] = y.numel * 8
    axis = node.attributes["dim"] % len(x.shape)
    dropped = len(y.shape) < len(x.shape)
    sizes = x.sizes

    def to_the_chosen(f: Tensor, index: Tensor, s: Tensor | None) -> Tensor:
        f = f if s is None else multiply(f, s)
        if dropped:
            f, index = f.unsqueeze(axis + 1), index.unsqueeze(axis)
        where = index.unsqueeze(1).expand_as(f)
        return f.new_zeros(*f.shape[:2], *sizes).scatter_add_(axis + 1, where, f)

    def from_the_chosen(t: Tensor, index: Tensor, s: Tensor | None) -> Tensor:
        index = index.unsqueeze(axis) if dropped else index
        where = index.unsqueeze(1).expand(-1, t.shape[1], *index.shape[1:])
        taken = t.gather(axis + 1, where).reshape(*t.shape[:2], *y.sizes)
        return taken if s is None else multiply(taken, s)

    register = b.step(to_the_chosen, [flow.register], [index, scale], x.numel, up=from_the_chosen)
    b.drafts[-1].slots.append(index)
    b.send(x, Flow(register, Factor(x) if chained else Factor()))


def through(walk: Walk, node: Node, rule: rules.Rule, R: Tensor) -> Share:
    """The textbook step: the derivative of a choice is the choice, and conserves relevance between activations."""
    sent = textbook.gradient(walk, node, R).relevance
    if isinstance(rule, rules.Gradient):
        return Share(sent, None)
    ledger = textbook.nothing_kept(R)
    if node.attributes["chosen"] == "pair":  # Where a constant is chosen, it keeps all.
        ledger.bias = total(R) - torch.stack([total(r) for r in sent.values()]).sum(0)
    return Share(sent, ledger)


KIND = Kind(
    name="chosen",
    operations="max min amax amin maximum minimum fmax fmin median nanmedian mode kthvalue topk sort cummax cummin",
    lower=lower,
    textbook=through,
    read=read,
    forward=forward,
    preset=lambda sums: rules.Pass(),
)
