"""Writes the tables of ``benchmarks/README.md`` and ``README.md``, and a chart; nothing is typed by hand.

python -m benchmarks.render
"""

from __future__ import annotations

from pathlib import Path

from benchmarks import chart, overview, tables
from benchmarks.markers import Markers

ROOT = Path(__file__).parents[1]
MARKERS = Markers.of("benchmarks")
CHART = "benchmarks/results/speed.svg"


def render(root: Path) -> None:
    """Both pages and the chart of the repository at ``root``."""
    rows = tables.read(root / "benchmarks" / "results")
    drawn = chart.draw(rows, root / CHART) if rows else False
    image = (
        f"![Times faster than Zennit, and time in plain gradients, for 1, 8 and 32 targets]({CHART})\n\n"
        if drawn
        else ""
    )
    MARKERS.write(root / "benchmarks" / "README.md", tables.detailed(rows))
    MARKERS.write(root / "README.md", f"{image}{overview.text(rows)}")


if __name__ == "__main__":
    render(ROOT)
