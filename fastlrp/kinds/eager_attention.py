"""One step for attention that a model writes out, so that scores of all targets are never held.

Between them the two products, the softmax, the soft cap and the masks give queries, keys and values exactly what kind
``attention`` gives them: the softmax's gradient passes sums with masks and scales as it is, and the soft cap as
``tanh(u / cap) / (u / cap)``. A sink is in the log-sum-exp, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from fastlrp import rules
from fastlrp.capture.graph import Node, Value
from fastlrp.capture.patterns.eager_attention import EagerAttention, masks_as_numbers
from fastlrp.kinds.attention_step import Operands, Sharing, add_step, heads_in_one_axis
from fastlrp.looking import may_look
from fastlrp.plan.builder import Builder
from fastlrp.plan.steps import Alternative, BackwardStep, Flow
from fastlrp.stabilizer import Stabilizer

_SMALL = 1e-30
"""Weights below this may have been rounded to a number with fewer digits."""


class _Written(Operands):
    """Operands of attention that is written out: its key is transposed, its masks are added to the scores."""

    def __init__(self, attention: EagerAttention) -> None:
        self.attention, self.masks = attention, [v for v in attention.masks if isinstance(v, Value)]
        slots = [v.index for v in (*attention.operands, *self.masks)]
        super().__init__(attention.operands, attention.product.output, False, attention.scale, attention.cap, slots)

    @property
    def keys(self) -> int:
        """How many keys there are."""
        return self.values[1].sizes[-1]

    def key_rows(self, key: Tensor) -> Tensor:
        """``(…, D, T)`` to ``(…, T, D)`` and back."""
        return key.transpose(-1, -2)

    def apart(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Query, key, value and the sum of the masks."""
        query, key, value, *masks = tensors
        mask = masks_as_numbers(self.attention.masks, masks)
        if mask is not None:
            wide = torch.float32 if query.dtype in (torch.float16, torch.bfloat16) else query.dtype
            mask = mask.to(device=query.device, dtype=wide)
        return query, self.key_rows(key), value, mask


def offer(
    b: Builder, attention: EagerAttention, assigned: Mapping[Node, rules.Rule | None], flow: Flow
) -> BackwardStep | None:
    """The step for the whole, with results of its own; None if the rules of its nodes are not those of attention.

    Args:
        flow: what arrives at the output of the attention.
    """
    epsilon = _epsilon(attention, assigned)
    rule = assigned[attention.product]
    if epsilon is None or not all(v.gets_relevance for v in attention.operands):
        return None
    assert isinstance(rule, rules.Uniform)
    y, scores = attention.product.output, attention.softmax.inputs[0]
    share = b.share(flow, y.index, y.numel, Stabilizer.ensure(rule.stabilizer))
    rows = scores.numel // scores.sizes[-1]
    dtype = b.dtype if b.dtype == torch.float64 else torch.float32

    def log_sum(s: Tensor, p: Tensor) -> Tensor:
        return heads_in_one_axis(_log_sum(s.to(dtype), p).unsqueeze(-1)).squeeze(-1)

    sums = b.cache(log_sum, [scores.index, attention.softmax.output.index], rows, itemsize=dtype.itemsize)
    add_step(b, _Written(attention), Sharing((0.25, 0.25, 0.5), epsilon), flow, share, sums)
    return b.backward.pop()


def _log_sum(scores: Tensor, weights: Tensor) -> Tensor:
    """``log sum exp(scores)`` over the last axis, where ``weights`` are the softmax.

    Any weight tells it, ``s - ln p``, if it is not too small. Where every query has a key of its own that is looked at
    first: a hundredth of the numbers of a text or a window.
    """
    alone = weights.dtype == scores.dtype and may_look(scores) and scores.shape[-2] <= scores.shape[-1]
    if alone:
        p = weights.diagonal(dim1=-2, dim2=-1)
        if bool((p > _SMALL).all()):
            return scores.diagonal(dim1=-2, dim2=-1) - p.log()
    return scores.logsumexp(-1)


def settle(b: Builder, offers: Mapping[Node, tuple[EagerAttention, BackwardStep]]) -> None:
    """Note the offered steps as alternatives to those of their nodes, once all of these have been lowered."""
    for attention, step in offers.values():
        own = [s for s in b.backward if s.node is attention.product and s.ins[0] == step.ins[0] and len(s.outs) == 2]
        scores = [s for s in b.backward if s.node is attention.scores and len(s.outs) == 2]
        if len(own) != 1 or len(scores) != 1:
            continue
        nodes = {attention.product, *attention.inner}
        # The sum of what several readers send to the output stands in front of all of them.
        replaced = frozenset(s for s in b.backward if s.node in nodes and not s.senders)
        outs = (*scores[0].outs, own[0].outs[1])
        inner = frozenset(out for s in replaced for out in s.outs).difference(outs)
        if all(s in replaced or inner.isdisjoint(s.ins) for s in b.backward):
            b.alternatives.append(Alternative(replace(step, outs=outs), replaced, inner))


def _epsilon(attention: EagerAttention, assigned: Mapping[Node, rules.Rule | None]) -> float | None:
    """Of the product of scaled queries and keys; None if the rules of some nodes are not those of attention."""
    uniform = [assigned[node] for node in (attention.product, attention.scores)]
    if any(type(rule) is not rules.Uniform or not _of(rule).is_absolute for rule in uniform):
        return None
    if type(assigned[attention.softmax]) is not rules.Taylor:
        return None
    for node in attention.sums:
        rule = assigned[node]
        if not isinstance(rule, (rules.Norm, rules.Epsilon)) or not _of(rule).in_limit:
            return None
    if any(type(assigned[node]) is not rules.Pass for node in attention.passes):
        return None
    # The rule divides the product by itself and epsilon; here it is scaled before.
    return _of(uniform[1]).epsilon * attention.scale


def _of(rule: rules.Rule | None) -> Stabilizer:
    assert isinstance(rule, (rules.Uniform, rules.Norm, rules.Epsilon))
    return Stabilizer.ensure(rule.stabilizer)
