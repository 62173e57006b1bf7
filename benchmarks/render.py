"""Writes the tables of ``benchmarks/README.md`` and ``README.md``, and a chart; nothing is typed by hand.

python -m benchmarks.render
"""

from __future__ import annotations

from pathlib import Path

from benchmarks import chart, overview, tables

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"
CHART = "benchmarks/results/speed.svg"


def between(path: Path, text: str) -> None:
    """Replace what stands between the markers.

    Raises:
        ValueError: if the file does not have both markers once.
    """
    whole = path.read_text()
    if whole.count(BEGIN) != 1 or whole.count(END) != 1 or whole.index(END) < whole.index(BEGIN):
        raise ValueError(f"{path.name} needs the lines {BEGIN} and {END}, each once")
    before, rest = whole.split(BEGIN)
    after = rest.split(END)[1]
    path.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")


def render(root: Path) -> None:
    """Both pages and the chart of the repository at ``root``."""
    rows = tables.read(root / "benchmarks" / "results")
    drawn = chart.draw(rows, root / CHART) if rows else False
    image = (
        f"![Times faster than Zennit, and time in plain gradients, for 1, 8 and 32 targets]({CHART})\n\n"
        if drawn
        else ""
    )
    between(root / "benchmarks" / "README.md", tables.detailed(rows))
    between(root / "README.md", f"{image}{overview.text(rows)}")


if __name__ == "__main__":
    render(ROOT)
