"""Where the relevance of each target stayed, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastlrp.run.record import ForwardRecord
from fastlrp.targets.targets import Targets
from fastlrp.verify.compare import Comparison
from fastlrp.verify.verification import Verification

Rows = list[dict[str, Any]]


def ledger_rows(verification: Verification) -> Rows:
    """The ledger of :meth:`fastlrp.Explainer.verify` for :class:`fastlrp.report.Sample`: all targets together.

    Args:
        verification: what :meth:`fastlrp.Explainer.verify` returns.

    Example::

        rows = fastlrp.report.ledger_rows(explainer.verify(x, "top1"))
    """
    return [
        {
            "layer": row.path, "operation": row.operation, "rule": row.rule, "arrived": row.arrived, "sent": row.sent,
            "bias": row.bias, "stabilizer": row.stabilizer, "dead": row.dead, "error": row.error,
        }
        for row in verification.rows
    ]  # fmt: skip


def by_target(record: ForwardRecord, asked: Targets, chosen: Sequence[Sequence[int]]) -> list[Rows]:
    """For each sample the ledger of each chosen target, by the reference in float64.

    Args:
        asked: all targets of the record. chosen: ``(B, n)`` positions in them.

    Returns:
        for each sample its rows, target after target, each from the output down.
    """
    with torch.no_grad():
        check = Comparison(record.plan, record.state(), record.batch)
        count = len(chosen[0])
        rows: list[Rows] = [[] for _ in range(record.batch)]
        block = check.block(count)
        for start in range(0, count, block):
            part = [positions[start : start + block] for positions in chosen]
            for sums, row in _walk(check, _initial(asked, part)):
                for i, positions in enumerate(part):
                    for j, target in enumerate(positions):
                        numbers = {name: None if t is None else float(t[i, j]) for name, t in sums.items()}
                        rows[i].append({"target": target, **row, **numbers})
    for found in rows:
        found.sort(key=lambda row: row["target"])  # Stable: layers stay in order.
    return rows


def _initial(asked: Targets, chosen: Sequence[Sequence[int]]) -> Tensor:
    """Initial relevance ``(B, n, …)`` of each sample's own targets."""
    found: dict[int, Tensor] = {}
    for k in {k for row in chosen for k in row}:
        block = asked.block(k, 1)
        found[k] = block if isinstance(block, Tensor) else block.dense()
    return torch.stack([torch.stack([found[k][i, 0] for k in row]) for i, row in enumerate(chosen)])


def _walk(check: Comparison, initial: Tensor) -> list[tuple[dict[str, Tensor | None], dict[str, str]]]:
    """For each layer what arrived, was sent and kept, as sums ``(B, n)``, and what layer it is."""
    fast = check.fast(initial)
    found: list[tuple[dict[str, Tensor | None], dict[str, str]]] = []
    for row in check.rows:
        arrived = fast[row.node.output]
        share = check.walker.through(row.node, arrived)
        if share is None:  # A user's rule has no reference.
            share = check.unchecked(row.node, arrived)
        sent = sum((_total(relevance) for relevance in share.relevance.values()), torch.zeros_like(_total(arrived)))
        sums: dict[str, Tensor | None] = {"arrived": _total(arrived), "sent": sent}
        for name in ("bias", "stabilizer", "dead"):
            sums[name] = None if share.ledger is None else _total(getattr(share.ledger, name))
        what = {"layer": row.node.path, "operation": row.node.operation, "rule": row.rule}
        found.append((sums, what))
    return found


def _total(t: Tensor) -> Tensor:
    return t.flatten(2).sum(2) if t.dim() > 2 else t
