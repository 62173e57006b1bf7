"""Plain-text tables of a plan and of a verification."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fastlrp import markup
from fastlrp.byte_sizes import size_text
from fastlrp.plan.rows import Filtered, Row
from fastlrp.plan.step_names import NO_RULE
from fastlrp.plan.steps import Program


def align(header: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    """Columns padded to their widest cell; those in ``numbers`` to the right."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        cells = [c.rjust(w) if i in numbers else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        return "  ".join(cells).rstrip()

    return "\n".join([line(header), "  ".join("-" * w for w in widths), *map(line, rows)])


@dataclass(frozen=True)
class PlanTable:
    """What a plan shows of itself, as text or as HTML."""

    title: str
    rows: tuple[tuple[str, ...], ...]
    legend: str

    header = ("layer", "operation", "rule", "flows", "backend", "path", "cached/sample")

    def __str__(self) -> str:
        return f"{self.title}\n{align(self.header, self.rows, numbers=(6,))}\n{self.legend}"

    def html(self) -> str:
        """The table folded up beyond a screenful."""
        table = markup.table(self.header, self.rows, numbers=(6,), rules=2)
        return markup.card(self.title, markup.folded(table, len(self.rows), "layers"), self.legend)


_LETTERS: dict[Filtered, str] = {"forward": "f", "denominators": "z", "down": "d"}


def _backend(row: Row) -> str:
    """Who computes, and which of the products Winograd's filtering makes."""
    made = row.filtered | row.looked
    letters = "".join(letter + "?" * (what not in row.filtered) for what, letter in _LETTERS.items() if what in made)
    return "+".join(filter(None, (row.backend, letters and f"winograd {letters}"))) or "-"


def plan_table(
    program: Program, name: str, where: str, read: frozenset[int], paths: Mapping[str, object], products: str = ""
) -> PlanTable:
    """Per layer, from the output down: path, operation, rule, what flows to its input, backend, cached bytes.

    Args:
        name: of the composite. where: dtype and device. read: slots that are kept. paths: how a call computed its
            layers, by module path. products: what they read, if that is to be said.
    """
    rows, total, counted = [], 0, set()
    for row in program.rows:
        kept = [s for s in dict.fromkeys(row.slots) if s in read and s not in counted]
        counted.update(kept)
        size = sum(program.slot_bytes.get(s, 0) for s in kept)
        total += size
        path = str(paths.get(row.node.path, "-")) if row.node.kind in ("conv", "linear") else "-"
        rows.append(
            (
                row.node.path or "(model)", row.node.operation, row.rule, row.flows, _backend(row), path,
                size_text(size),
            )
        )  # fmt: skip
    legend = (
        "flows: c = relevance per unit of activation, R = relevance, f*F = either with a cached factor still to come\n"
        "path: of the latest call, with the shares of neurons above and below that carry relevance"
    )
    if any(row.filtered | row.looked for row in program.rows):
        legend += (
            "\nwinograd: 3x3 products by the filtering, f = of the forward pass, z = of denominators, "
            "d = of the dense way down; ? = where the numbers of a call are even"
        )
    if products:
        legend += f"\nproducts: {products}"
    if any(row.rule == NO_RULE for row in program.rows):
        legend += f"\n{NO_RULE}: input times gradient, as unsupported='gradient' asks for"
    title = f"{name}: {len(program.backward)} steps per block of targets, {size_text(total)} cached per sample, {where}"
    return PlanTable(title, tuple(rows), legend)
