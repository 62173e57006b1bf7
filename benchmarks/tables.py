"""Rows of the results files, and the tables made of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

Row = dict[str, Any]

TITLES = {
    "targets": "One image, many targets",
    "batch": "A batch of images, one target each",
    "top5": "A batch of images, the five highest classes of each",
    "small": "The small network, ten classes of one digit",
    "toolbox": "LeNet-5 of the LRP Toolbox, ten classes of 50 digits",
    "sweep": "LeNet-5 of the LRP Toolbox, ten classes of 50 digits under three epsilons",
    "stream": "Targets in a stream of blocks",
    "transformers": "Transformers: one text of 128 tokens or one image, many targets",
    "basis": "More targets than the network is wide",
}
"""Scenarios in the order of the page."""

_QUESTION = ("machine", "scenario", "model", "composite", "targets", "batch", "size", "density_asked")
_KEY = (*_QUESTION, "provider", "dtype")


def read(folder: Path) -> list[Row]:
    """The newest measurement of everything that was measured, by scenario, then in the order of the files.

    Rows of before there were scenarios give way to the first newer one that answers the same question. Rows with a
    ``part`` are not of ``benchmarks.compare`` and have no table here.
    """
    newest: dict[tuple[Any, ...], Row] = {}
    answered = set()
    for file in sorted(folder.glob("*.jsonl")):
        for text in filter(None, file.read_text().splitlines()):
            plain = json.loads(text)
            if "part" in plain:
                continue
            row = _completed(plain)
            key = tuple(row[name] for name in _KEY)
            if "scenario" in plain:
                answered.add(tuple(row[name] for name in _QUESTION))
            newest.pop(key, None)
            newest[key] = {**row, "old": "scenario" not in plain}
    found = [r for r in newest.values() if not r["old"] or tuple(r[name] for name in _QUESTION) not in answered]
    scenarios = list(TITLES)
    return sorted(found, key=lambda r: (scenarios.index(r["scenario"]), *_section(r)[1:]))


def _completed(row: Row) -> Row:
    """With what a row of an earlier form does not say."""
    small = row["model"] == "small"
    defaults = {
        "scenario": "small" if small else "targets",
        "batch": 1,
        "size": 8 if small else 224,
        "density_asked": None,
        "command": "python -m benchmarks.compare",
        "seconds_per_target": row["seconds"] / row["targets"] if "seconds" in row else None,
    }
    return {**defaults, **row}


def _section(row: Row) -> tuple[Any, ...]:
    asked = row["density_asked"]
    return (row["scenario"], asked is not None, -(asked or 0), row["size"], row["batch"])


@dataclass(frozen=True)
class Column:
    """One column of a table; left out where no row has a value."""

    head: str
    value: Callable[[Row], Any]
    form: str = "{}"
    number: bool = True

    def cell(self, row: Row) -> str:
        value = self.value(row)
        return "–" if value is None else self.form.format(value)


def mebibytes(key: str) -> Callable[[Row], Any]:
    return lambda row: None if row.get(key) is None else row[key] / 2**20


def _of(key: str) -> Callable[[Row], Any]:
    return lambda row: row.get(key)


DETAILED = (
    Column("model", _of("model"), number=False),
    Column("composite", _of("composite"), number=False),
    Column("alive", _of("density"), "{:.2f}"),
    Column("reached", _of("density_reached"), "{:.2f}"),
    Column("targets", _of("targets")),
    Column("threads", _of("threads")),
    Column("provider", _of("provider"), number=False),
    Column("ms/target", lambda r: r["seconds_per_target"] and r["seconds_per_target"] * 1e3, "{:.4g}"),
    Column("spread", _of("spread"), "{:.2f}"),
    Column("× Zennit", _of("times_faster_than_zennit"), "{:.1f}"),
    Column("× Captum", _of("times_faster_than_captum"), "{:.1f}"),
    Column("× Toolbox", _of("times_faster_than_toolbox"), "{:.1f}"),
    Column("× LXT", _of("times_faster_than_lxt"), "{:.1f}"),
    Column("× autoLRP", _of("times_faster_than_autolrp"), "{:.1f}"),
    Column("of a gradient", _of("share_of_gradient"), "{:.2f}"),
    Column("of the floor", _of("share_of_floor"), "{:.2f}"),
    Column("in gradients of one class", _of("times_one_gradient"), "{:.2f}"),
    Column("peak MiB", mebibytes("peak_bytes"), "{:.0f}"),
    Column("over one target, MiB", mebibytes("peak_over_one_target"), "{:.0f}"),
    Column("differs by", _of("error"), "{:.0e}"),
    Column("not timed, because", _of("reason"), number=False),
)


def table(columns: tuple[Column, ...], rows: list[Row]) -> str:
    """Markdown."""
    shown = [c for c in columns if any(c.value(row) is not None for row in rows)]
    lines = [[c.head for c in shown], ["---:" if c.number else "---" for c in shown]]
    lines += [[c.cell(row) for c in shown] for row in rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def detailed(rows: list[Row]) -> str:
    """Everything, a table per question."""
    parts = []
    for (scenario, shifted, *_), found in groupby(rows, key=_section):
        some = list(found)
        first = some[0]
        of = "" if scenario in ("toolbox", "sweep", "small", "transformers") else f", {first['size']}×{first['size']}"
        images = f", {first['batch']} images" if scenario in ("batch", "top5") else ""
        alive = f"; biases shifted so that {first['density_asked']:g} of the neurons are alive" if shifted else ""
        parts.append(f"### {TITLES[scenario]}{of}{images}{alive}\n\n{table(DETAILED, some)}\n\n{source(some)}")
    return "\n\n".join(parts) if parts else "Nothing has been measured yet: `make bench`."


def source(rows: list[Row]) -> str:
    """Which commands, machines and commits made the numbers."""
    made: dict[str, dict[str, None]] = {}
    for r in rows:
        made.setdefault(place(r), {})[f"`{r['command']}`"] = None
    texts = [f"{', '.join(commands)}: {where}" for where, commands in made.items()]
    return f"Made by {'; '.join(texts)}." if texts else ""


def place(row: Row) -> str:
    """The commit, machine, libraries and date of one measurement."""
    machine = row["machine"].replace(", 1 threads", ", 1 thread")
    return f"commit {row['commit']}, {machine}, PyTorch {row['torch']}{_peers(row)}, {row['date']}"


def _peers(row: Row) -> str:
    names = (("zennit", "Zennit"), ("captum", "Captum"))
    return "".join(f", {name} {row[key]}" for key, name in names if row.get(key))


def ours(rows: list[Row], scenario: str, provider: str = "fastlrp auto") -> list[Row]:
    """fastlrp with the backend that it chooses itself; of one question the latest answer, on whichever machine."""
    found = {
        tuple(r[name] for name in _QUESTION[1:]): r for r in rows
        if r["scenario"] == scenario and r["provider"] == provider and r["seconds_per_target"] is not None
    }  # fmt: skip
    return list(found.values())
