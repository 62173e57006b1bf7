"""Bags of ids: the sum or mean of the rows that the ids of a sample choose, without a tensor of the rows in between.

In proportion to the contributions, as in any sum: ``R_id = sum_d (w e_d) R_d / st(y_d)`` with ``w`` 1 or 1 / number of
ids; ids of padding have no part in it. Under the gradient rule ``sum_d w e_d dy/dy_d``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fastlrp import rules
from fastlrp.capture.graph import Constant, Node, Value
from fastlrp.kinds.embedding import add_checked_lookup, refuse_unknown
from fastlrp.kinds.kind import Kind
from fastlrp.kinds.textbook import Share, Walk
from fastlrp.plan.builder import Builder
from fastlrp.plan.steps import Flow
from fastlrp.plan.total import multiply
from fastlrp.reference import weightless
from fastlrp.stabilizer import Stabilizer

_MODES = ("sum", "mean")
_RESHAPES = ("reshape", "view", "flatten")


def bag(table: Tensor, ids: Tensor, mode: str, padding: int | None) -> Tensor:
    """``(V, D), (B, S) -> (B, D)``."""
    return functional.embedding_bag(ids, table, mode=mode, padding_idx=padding)


def weights(ids: Tensor, mode: str, padding: int | None, dtype: torch.dtype) -> Tensor:
    """What each id's row is multiplied with, ``(B, S, 1)``."""
    counted = torch.ones_like(ids, dtype=dtype) if padding is None else (ids != padding).to(dtype)
    counted = counted / counted.sum(1, keepdim=True).clamp(min=1) if mode == "mean" else counted
    return counted.unsqueeze(-1)


def read(node: Node, bound: dict[str, Any]) -> str | None:
    """Bags of one size, one for each sample, as ``nn.EmbeddingBag`` makes them of ids ``(B, S)``.

    PyTorch sees one row of all ids of all samples, and where each bag begins: here the node gets the ids themselves.
    """
    if not node.output.is_tensor:
        return None  # All results together, of which the first is taken.
    flat, offsets, table = bound.get("indices"), bound.get("offsets"), bound.get("weight")
    made = _arguments_of(flat, *_RESHAPES)
    ids = made[0] if made else None
    regular = (
        isinstance(ids, Value) and len(ids.shape) == 2 and ids.has_batch_first
        and _arguments_of(offsets, "arange")[::2] == (0, ids.sizes[0])
        and bound.get("mode") in (0, 1) and bound.get("per_sample_weights") is None
        and not bound.get("include_last_offset") and isinstance(table, Constant)
    )  # fmt: skip
    if not regular or not isinstance(ids, Value):
        node.attributes["fault"] = (
            f"{node} has bags of several sizes, weights or the mode 'max', for which there is no rule: use "
            "nn.Embedding, and pool what it gives"
        )
        return None
    padding = bound.get("padding_idx")
    padding = None if padding is None or padding < 0 else padding
    node.args, node.kwargs, node.inputs = (table, ids, _MODES[bound["mode"]], padding), {}, (ids,)
    node.call = bag
    return None


def _arguments_of(value: Any, *operations: str) -> tuple[Any, ...]:
    """What the value was made from, if one of these operations made it; nothing otherwise."""
    maker = value.producer if isinstance(value, Value) else None
    return maker.args if maker is not None and maker.operation in operations else ()


def lower(b: Builder, node: Node, rule: rules.Rule, flow: Flow) -> None:
    """``(B, K, D)`` times the rows that were summed, ``(B, D, S)``."""
    y, (table, ids, mode, padding) = node.output, node.args
    if isinstance(rule, rules.Gradient):
        scale = b.slot_of(flow.factor)
    elif isinstance(rule, rules.Norm) and rule.of_sum and mode == "mean":
        raise TypeError(f"{rule} is not defined for {node}: use Norm or Epsilon, which divide by the mean itself")
    elif isinstance(rule, (rules.Norm, rules.Epsilon)):
        scale = b.share(flow, y.index, y.numel, Stabilizer.ensure(rule.stabilizer))
    else:
        raise TypeError(f"{rule} is not defined for {node}: use Norm, Epsilon or Gradient")

    def summed_rows(ids: Tensor) -> Tensor:
        refuse_unknown(ids, table.tensor().shape[0], node)
        rows = functional.embedding(ids, table.tensor())
        return (rows * weights(ids, mode, padding, rows.dtype)).transpose(1, 2)

    def of_ids(f: Tensor, scale: Tensor | None, rows: Tensor) -> Tensor:
        return torch.matmul(f if scale is None else multiply(f, scale), rows)

    if node.sources:
        rows = b.cache(summed_rows, [ids.index], ids.numel * y.numel)
        work = 2 * ids.numel * y.numel

        def up(t: Tensor, scale: Tensor | None, rows: Tensor) -> Tensor:
            summed = torch.matmul(t, rows.transpose(1, 2))
            return summed if scale is None else multiply(summed, scale)

        b.send(ids, Flow(b.step(of_ids, [flow.register], [scale, rows], ids.numel, work=work, up=up)))


def through(walk: Walk, node: Node, rule: rules.Rule, R: Tensor) -> Share:
    """The textbook step."""
    table, ids, mode, padding = node.args
    rows = functional.embedding(walk.values[ids], table.tensor().double())
    weight = weights(walk.values[ids], mode, padding, rows.dtype)

    def pooled(rows: Tensor) -> Tensor:
        return (rows * weight).sum(1)

    if isinstance(rule, rules.Gradient):
        relevance = (rows.unsqueeze(1) * weightless.gradient(pooled, rows, R)).sum(-1)
        return Share(dict.fromkeys(node.sources, relevance), None)
    assert isinstance(rule, (rules.Norm, rules.Epsilon))
    of_rows, ledger = weightless.norm(pooled, rows, R, Stabilizer.ensure(rule.stabilizer))
    if not node.sources:
        ledger.bias = ledger.bias + of_rows.flatten(2).sum(2)
    return Share(dict.fromkeys(node.sources, of_rows.sum(-1)), ledger)


KIND = Kind(
    name="embedding_bag",
    operations="embedding_bag",
    lower=lower,
    textbook=through,
    read=read,
    forward=add_checked_lookup,
    preset=lambda sums: sums,
    keeps=True,
)
