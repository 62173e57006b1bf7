"""Looking ids up in a table: an id's relevance is that of the row that it chooses, summed over its channels.

``R_id = sum_d R_d``, with ``R_d = e_d c_d`` in chained form. Under the gradient rule, where a derivative flows, it is
``sum_d e_d dy/de_d``. An embedding whose ids do not come from the model's input by moves alone (positions that are
counted from a mask) keeps what arrives, as a bias does.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastlrp import rules
from fastlrp.capture.bind import bind_forward
from fastlrp.capture.graph import Constant, Node, Value
from fastlrp.errors import module_text
from fastlrp.kinds import textbook
from fastlrp.kinds.kind import Kind
from fastlrp.kinds.textbook import Share, Walk
from fastlrp.looking import may_wait
from fastlrp.plan.builder import Builder
from fastlrp.plan.steps import Flow
from fastlrp.plan.total import multiply
from fastlrp.reference.redistribution import Ledger


def read(node: Node, bound: dict[str, Any]) -> str | None:
    """The table must be fixed: rows of an activation are chosen by an operation without a rule."""
    return "unknown" if isinstance(node.args[0], Value) and node.args[0].depends else None


def add_checked_lookup(b: Builder, node: Node) -> None:
    """Look the ids up, if the table has them."""
    lookup = bind_forward(node)
    table, ids = node.args[0], node.args[1]
    if not isinstance(table, Constant) or not isinstance(ids, Value):
        b.add_forward(node)
        return
    rows, position = table.tensor().shape[0], node.inputs.index(ids)

    def checked_lookup(*values: Any) -> Any:
        refuse_unknown(values[position], rows, node)
        return lookup(*values)

    b.add_forward(node, call=checked_lookup)


def refuse_unknown(ids: Tensor, rows: int, node: Node) -> None:
    """Raise IndexError for an id that the table does not have, which on a GPU would break the whole process."""
    if not may_wait(ids):
        return
    unknown = (ids < 0) | (ids >= rows)
    if bool(unknown.any()):
        place = unknown.nonzero()[0].tolist()
        where = f"sample {place[0]}" + (f", position {', '.join(map(str, place[1:]))}" if place[1:] else "")
        raise IndexError(
            f"id {int(ids[tuple(place)])} ({where}) is not in the table of the embedding "
            f"{module_text(node.path)}, which has {rows} rows: ids go from 0 to {rows - 1}"
        )


def lower(b: Builder, node: Node, rule: rules.Rule, flow: Flow) -> None:
    """Sum what arrives over the channels, times the row itself where it is a derivative."""
    if not isinstance(rule, (rules.Pass, rules.Gradient)):
        raise TypeError(f"{rule} is not defined for {node}: use Pass or Gradient")
    y, slot = node.output, b.slot_of(flow.factor)
    if isinstance(rule, rules.Gradient):
        slot = y.index if slot is None else b.cache(torch.mul, [y.index, slot], y.numel)
    axes = len(y.shape) - 2  # Of the ids, without the batch.
    for x in node.sources:

        def sum_over_channels(f: Tensor, factor: Tensor | None) -> Tensor:
            if factor is None:
                return f.sum(-1)
            if axes != 1:
                return (f * factor.unsqueeze(1)).sum(-1)
            # (B, S, K, D) times (B, S, D, 1): no product of full size.
            return torch.matmul(f.transpose(1, 2), factor.unsqueeze(-1)).squeeze(-1).transpose(1, 2)

        def to_channels(t: Tensor, factor: Tensor | None) -> Tensor:
            wide = t.unsqueeze(-1)
            return wide.expand(*t.shape, y.sizes[-1]) if factor is None else multiply(wide, factor)

        register = b.step(sum_over_channels, [flow.register], [slot], x.numel, work=2 * y.numel, up=to_channels)
        b.send(x, Flow(register))


def through(walk: Walk, node: Node, rule: rules.Rule, R: Tensor) -> Share:
    """The textbook step."""
    if isinstance(rule, rules.Gradient):
        relevance = (R * walk.values[node.output].unsqueeze(1)).sum(-1)
        return Share(dict.fromkeys(node.sources, relevance), None)
    nothing = textbook.nothing_kept(R)
    if not node.sources:
        return Share({}, Ledger(bias=R.flatten(2).sum(2), stabilizer=nothing.stabilizer, dead=nothing.dead))
    return Share(dict.fromkeys(node.sources, R.sum(-1)), nothing)


KIND = Kind(
    name="embedding",
    operations="embedding",
    lower=lower,
    textbook=through,
    read=read,
    forward=add_checked_lookup,
    preset=lambda sums: rules.Pass(),
    fallback=rules.Pass(),
    keeps=True,
)
