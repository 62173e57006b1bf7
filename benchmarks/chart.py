"""The bar chart of the results: times faster than Zennit, and share of a gradient's time."""

from __future__ import annotations

from pathlib import Path

from benchmarks.overview import PRECISIONS, grouped
from benchmarks.tables import Row, ours

SHADES = ("#a9cbe6", "#5b9bd0", "#1b6ca8", "#0d3d63")
"""From few targets to many."""

PANELS = (
    ("times_faster_than_zennit", "times faster than Zennit's better way"),
    ("share_of_gradient", "time, in plain gradients"),
)


def draw(rows: list[Row], path: Path) -> bool:
    """Write the chart as SVG. Returns False, and writes nothing, if there is nothing to show."""
    shown = [r for r in ours(rows, "targets", PRECISIONS["float32"]) if _complete(r)]
    if not shown:
        return False
    narrow = {_question(r): r for r in ours(rows, "targets", PRECISIONS["bfloat16"]) if _complete(r)}
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    # The same rows give the same file.
    matplotlib.rcParams.update({"svg.hashsalt": "fastlrp", "svg.fonttype": "none"})
    names = list(dict.fromkeys((r["model"], r["composite"]) for r in grouped(shown)))
    counts = sorted({r["targets"] for r in shown})
    thickness = 0.8 / len(counts)
    figure, axes = pyplot.subplots(
        1, 2, figsize=(9, 0.8 + 0.2 * len(names) * len(counts)), sharey=True, layout="constrained"
    )
    for ax, (key, title) in zip(axes, PANELS, strict=True):
        for i, count in enumerate(counts):
            some = [r for r in shown if r["targets"] == count]
            places = [names.index((r["model"], r["composite"])) + (i - (len(counts) - 1) / 2) * thickness for r in some]
            colour = SHADES[min(i, len(SHADES) - 1)]
            label = f"{count} target{'s' * (count > 1)}"
            ax.barh(places, [r[key] for r in some], thickness * 0.9, color=colour, label=label)
            dots = [(narrow[_question(r)][key], y) for r, y in zip(some, places, strict=True) if _question(r) in narrow]
            if dots:
                first = "products of bfloat16" if i == 0 else None
                ax.scatter(*zip(*dots, strict=True), s=14, color="#e08e0b", zorder=3, label=first)
        ax.axvline(1, color="#888888", linewidth=1)
        ax.set_title(title, fontsize=10)
        ax.xaxis.grid(visible=True, color="#dddddd", linewidth=0.5)
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(range(len(names)), [f"{model}\n{composite}" for model, composite in names], fontsize=8)
    axes[0].invert_yaxis()
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=8, frameon=False)
    figure.savefig(path, format="svg", metadata={"Date": None})
    pyplot.close(figure)
    return True


def _complete(row: Row) -> bool:
    """Whether a row can be drawn: one image of the usual size, its weights as they are, everything measured."""
    return row["size"] == 224 and row["density_asked"] is None and all(row.get(key) is not None for key, _ in PANELS)


def _question(row: Row) -> tuple[str, str, int]:
    return row["model"], row["composite"], row["targets"]
