"""Writes the tables of ``benchmarks/README.md`` and ``README.md`` from the results files; nothing is typed by hand.

python -m benchmarks.render
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"

Row = dict[str, Any]


def rows() -> list[Row]:
    """The newest measurement of everything that was measured, in the order of the file."""
    newest: dict[tuple[Any, ...], Row] = {}
    for file in sorted((ROOT / "benchmarks" / "results").glob("*.jsonl")):
        for line in file.read_text().splitlines():
            row = json.loads(line)
            key = (row["machine"], row["model"], row["composite"], row["provider"], row["targets"])
            newest.pop(key, None)
            newest[key] = row
    return list(newest.values())


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)


def detailed(found: list[Row]) -> str:
    """One line per provider."""
    head = "| model | composite | provider | s/target | spread | × Zennit | share of a gradient | differs by |"
    lines = [head, "|---|---|---|---:|---:|---:|---:|---:|"]
    for r in found:
        if "seconds_per_target" in r:
            lines.append(
                f"| {r['model']} | {r['composite']} | {r['provider']} | {_number(r['seconds_per_target'], '{:.4f}')} "
                f"| {_number(r['spread'], '{:.2f}')} | {_number(r['times_faster_than_zennit'], '{:.1f}')} "
                f"| {_number(r['share_of_gradient'], '{:.2f}')} | {_number(r['error'], '{:.0e}')} |"
            )
    return "\n".join(lines)


def source(found: list[Row]) -> str:
    """Which command, machine and commit made the numbers."""
    made = sorted({f"commit {r['commit']}, {r['machine']}, PyTorch {r['torch']}, {r['date']}" for r in found})
    return "Made by `make bench` (`python -m benchmarks.compare`): " + "; ".join(made) + "."


def short(found: list[Row]) -> str:
    """fastlrp's default backend beside Zennit's better way and the gradient."""
    lines = [
        "| one 224×224 image | targets | times faster than Zennit | share of a plain gradient's time |",
        "|---|---:|---:|---:|",
    ]
    for r in found:
        if r["provider"] == "fastlrp auto" and "seconds_per_target" in r:
            faster, share = _number(r["times_faster_than_zennit"], "{:.1f}"), _number(r["share_of_gradient"], "{:.2f}")
            lines.append(f"| {r['model']}, {r['composite']} | {r['targets']} | {faster} | {share} |")
    small = [r for r in found if r["model"] == "small"]
    text = "\n".join(lines)
    if small:
        text += (
            f"\n\nTen classes of one 8×8 digit on a small network, forward pass included, cost "
            f"{small[-1]['times_one_gradient']:.1f} times one forward pass and one gradient, measured in turns."
        )
    return text


def between(path: Path, text: str) -> None:
    """Replace what stands between the markers."""
    before, rest = path.read_text().split(BEGIN)
    after = rest.split(END)[1]
    path.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")


def main() -> None:
    """Render both pages."""
    found = rows()
    between(ROOT / "benchmarks" / "README.md", f"{detailed(found)}\n\n{source(found)}")
    between(ROOT / "README.md", f"{short(found)}\n\n{source(found)} All figures: [benchmarks](benchmarks/README.md).")


if __name__ == "__main__":
    main()
