"""Plain-text tables of a plan and of a verification report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastlrp.plan import Plan
    from fastlrp.program import Row


def align(header: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    """Columns padded to their widest cell; those in ``numbers`` to the right."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        cells = [c.rjust(w) if i in numbers else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        return "  ".join(cells).rstrip()

    return "\n".join([line(header), "  ".join("-" * w for w in widths), *map(line, rows)])


def size_text(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


def _path(plan: Plan, row: Row) -> str:
    return str(plan.paths.get(row.node.path, "-")) if row.node.kind in ("conv", "linear") else "-"


def plan_table(plan: Plan) -> str:
    """Per layer, from the output down: path, operation, rule, what flows to its input, backend, cached bytes."""
    read = plan.coefficients
    rows, total, counted = [], 0, set()
    for row in plan.builder.rows:
        kept = [s for s in dict.fromkeys(row.slots) if s in read and s not in counted]
        counted.update(kept)
        size = sum(plan.builder.slot_bytes.get(s, 0) for s in kept)
        total += size
        rows.append(
            (
                row.node.path or "(model)", row.node.operation, row.rule, row.flows, row.backend or "-",
                _path(plan, row), size_text(size),
            )
        )  # fmt: skip
    header = ("layer", "operation", "rule", "flows", "backend", "path", "cached/sample")
    title = (
        f"{plan.composite.name}: {len(plan.builder.backward)} steps per block of targets, "
        f"{size_text(total)} cached per sample, {plan.dtype}, {plan.device}"
    )
    legend = (
        "flows: c = relevance per unit of activation, R = relevance, f*F = either with a cached factor still to come\n"
        "path: of the latest call, with the shares of neurons above and below that carry relevance"
    )
    return f"{title}\n{align(header, rows, numbers=(6,))}\n{legend}"
