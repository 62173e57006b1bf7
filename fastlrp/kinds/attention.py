"""Scaled dot-product attention: the uniform rule, all to the values, or the gradient.

``o = P V``, ``P = softmax(scale Q K^T + mask)``. Queries, keys and values are ``(B, H, S, D)``, ``(B, G, T, D)`` and
``(B, G, T, E)`` or have other axes in the place of the heads, or none. A mask is a condition: it gets no relevance.
One that is computed from the input is a summand of the scores: such attention is written out, and not of this kind
(:mod:`fastlrp.capture.translate.rewrite_attention`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastlrp import rules
from fastlrp.capture.graph import Constant, Node, Value
from fastlrp.errors import UnsupportedOperationError, module_text
from fastlrp.kinds import textbook
from fastlrp.kinds.attention_step import Operands, Sharing, add_step
from fastlrp.kinds.heads import lower_each, through_each
from fastlrp.kinds.jacobian import transpose_at
from fastlrp.kinds.kind import Kind
from fastlrp.kinds.textbook import Share, Walk
from fastlrp.plan.builder import Builder
from fastlrp.plan.steps import Factor, Flow
from fastlrp.reference.redistribution import divide
from fastlrp.stabilizer import Stabilizer


def read(node: Node, bound: dict[str, Any]) -> str | None:
    """Operands by name and the softmax's parameters."""
    operands = [bound["query"], bound["key"], bound["value"]]
    if any(not isinstance(v, Value) or len(v.shape) < 3 or not v.has_batch_first for v in operands):
        return "unknown"
    scale = bound.get("scale")
    node.attributes.update(
        operands=tuple(operands),
        mask=bound.get("attn_mask"),
        causal=bool(bound.get("is_causal")),
        scale=1 / math.sqrt(operands[0].sizes[-1]) if scale is None else float(scale),
        grouped=bool(bound.get("enable_gqa")),
    )
    if bound.get("dropout_p"):
        node.attributes["fault"] = (
            f"{node.operation} in module {module_text(node.path)} drops attention weights at random "
            f"(dropout_p={bound['dropout_p']}): its output is another one each time. Pass dropout_p=0.0, or "
            "self.dropout if self.training else 0.0"
        )
    return None


def forward(b: Builder, node: Node) -> None:
    """Output and log-sum-exp of the scores from one pass."""
    if b.graph.batch is None or node.output.has_batch_first:
        b.beside[node] = b.add_forward(node, 1, partial(_Operands(node).forward, b.operation("attention_forward")))
    else:
        b.add_forward(node)


class _Operands(Operands):
    """A node's operands as ``(B, H, S, D)``, from the tensors in its slots."""

    def __init__(self, node: Node) -> None:
        a = node.attributes
        self.node, self.inputs = node, node.inputs
        self.mask = a["mask"]
        super().__init__(a["operands"], node.output, a["causal"], a["scale"], 0.0, [v.index for v in node.inputs])

    def apart(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Query, key, value and mask."""
        table = dict(zip(self.inputs, tensors, strict=True))
        query, key, value = (table[v] for v in self.values)
        mask = table[self.mask] if isinstance(self.mask, Value) else self.mask
        mask = mask.tensor() if isinstance(mask, Constant) else mask
        return query, key, value, mask

    def forward(self, attention: Callable[..., tuple[Tensor, Tensor]], *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """Output as the model has it, and log-sum-exp ``(B, H, S)``."""
        output, log_sum = attention(*self.of(tensors), self.causal, self.scale, 0.0)
        return output.reshape(len(output), *self.node.output.sizes), log_sum

    def send(self, b: Builder, x: Value, register: int) -> None:
        b.send(x, Flow(register, Factor(x)))


def lower(b: Builder, node: Node, rule: rules.Rule, flow: Flow) -> None:
    """See :func:`fastlrp.reference.attention.attention_relevance`, which is the definition."""
    if isinstance(rule, rules.Heads):
        lower_each(b, node, rule, flow, lower)
        return
    if isinstance(rule, rules.Gradient):
        transpose_at(b, node, flow)
        return
    if not isinstance(rule, (rules.Uniform, rules.ValueOnly)):
        raise TypeError(f"{rule} is not defined for {node}: use Uniform, ValueOnly, Heads or Gradient")
    stabilizer = Stabilizer.ensure(rule.stabilizer)
    y, operands = node.output, _Operands(node)
    share = b.share(flow, y.index, y.numel, stabilizer)
    uniform = isinstance(rule, rules.Uniform)
    if uniform and operands.mask in node.sources:
        raise UnsupportedOperationError(
            f"{node}: its mask is computed from the input and takes a share of the scores, which {rule} at attention "
            "in one operation does not give it: write the attention out, softmax(scale * q @ k.mT + mask) @ v, or use "
            "ValueOnly() or Gradient() for it"
        )
    if uniform and not stabilizer.is_absolute:
        raise TypeError(f"{rule} at {node}: attention takes one absolute epsilon, Uniform(1e-6) or Uniform(0.0)")
    sharing = Sharing(uniform_shares(node) if uniform else None, stabilizer.epsilon)
    targets = operands.values if uniform else operands.values[2:]
    for x, register in zip(targets, add_step(b, operands, sharing, flow, share, b.beside[node]), strict=True):
        if x.gets_relevance:
            operands.send(b, x, register)


def uniform_shares(node: Node) -> tuple[float, float, float]:
    """What query, key and value take: half of each product for each factor, all where the other does not carry any.

    Queries that are parameters (the first decoder layer of a detector) are no factor: the scores are linear in the
    keys alone.
    """
    query, key, value = (x.gets_relevance for x in node.attributes["operands"])
    weights = (0.5 if value else 1.0) if query or key else 0.0
    each = weights * (0.5 if query and key else 1.0)
    return each * query, each * key, (1.0 - weights) * value


def through(walk: Walk, node: Node, rule: rules.Rule, R: Tensor) -> Share:
    """The textbook step: both products by halves, the softmax by its Taylor expansion."""
    if isinstance(rule, rules.Heads):
        return through_each(walk, node, rule, R, through)
    if isinstance(rule, rules.Gradient):
        return textbook.gradient(walk, node, R)
    assert isinstance(rule, (rules.Uniform, rules.ValueOnly))
    a, st = node.attributes, Stabilizer.ensure(rule.stabilizer)
    q, k, v = (walk.values[x] for x in a["operands"])
    times = q.shape[-3] // k.shape[-3] if a["grouped"] else 1
    keys, values = (t.repeat_interleave(times, -3) if times > 1 else t for t in (k, v))
    scores = a["scale"] * (q @ keys.transpose(-1, -2))
    P = _weights(walk, node, scores)
    s, ledger = divide(R, walk.values[node.output], torch.zeros_like(R[:, 0]), st)
    to_values = P.unsqueeze(1).transpose(-1, -2) @ s
    found: dict[Value, Tensor] = {}

    def add(x: Value, relevance: Tensor) -> None:
        if not x.gets_relevance:
            return
        own = relevance.sum_to_size(*relevance.shape[:2], *walk.values[x].shape[1:])  # Heads may share one of its axes.
        found[x] = found[x] + own if x in found else own

    share_query, share_key, share_value = uniform_shares(node)
    if isinstance(rule, rules.ValueOnly):
        add(a["operands"][2], v.unsqueeze(1) * _grouped(to_values, times))
        return Share(found, ledger)
    R_weights = P.unsqueeze(1) * (s @ values.transpose(-1, -2).unsqueeze(1)) * (1 - share_value)
    c = R_weights - P.unsqueeze(1) * R_weights.sum(-1, keepdim=True)
    R_scores, of_scores = scores.unsqueeze(1) * c, textbook.nothing_kept(R)
    if not st.in_limit:
        c, of_scores = divide(R_scores, scores, torch.zeros_like(scores), st)
    of_scores_to = [share / ((1 - share_value) or 1.0) for share in (share_query, share_key)]
    to_keys = a["scale"] * (c.transpose(-1, -2) @ q.unsqueeze(1)) * of_scores_to[1]
    add(a["operands"][0], q.unsqueeze(1) * (a["scale"] * (c @ keys.unsqueeze(1)) * of_scores_to[0]))
    add(a["operands"][1], k.unsqueeze(1) * _grouped(to_keys, times))
    add(a["operands"][2], v.unsqueeze(1) * _grouped(to_values, times) * share_value)
    # The expansion's constant term, and the mask as a summand of the scores, keep the rest as a bias does.
    ledger.bias = ledger.bias + (R_weights - R_scores).flatten(2).sum(2) + of_scores.bias
    ledger.stabilizer, ledger.dead = ledger.stabilizer + of_scores.stabilizer, ledger.dead + of_scores.dead
    return Share(found, ledger)


def _weights(walk: Walk, node: Node, scores: Tensor) -> Tensor:
    """``softmax(scores + mask)``; 0 in rows that may attend to nothing."""
    a = node.attributes
    mask = walk.values[a["mask"]] if isinstance(a["mask"], Value) else textbook.double(a["mask"])
    if a["causal"]:
        allowed = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~allowed, -math.inf)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(-1).nan_to_num(0.0)


def _grouped(x: Tensor, times: int) -> Tensor:
    """The sum over the query heads of each key head, ``(B, K, H, T, D)`` to ``(B, K, H / times, T, D)``."""
    return x.unflatten(-3, (-1, times)).sum(-3) if times > 1 else x


KIND = Kind(
    name="attention",
    operations="scaled_dot_product_attention",
    lower=lower,
    textbook=through,
    read=read,
    forward=forward,
    preset=lambda sums: rules.Uniform(textbook.stabilizer_of(sums)),
)
