"""The bar chart of the results: times faster than Zennit, and share of a gradient's time."""

from __future__ import annotations

from pathlib import Path

from benchmarks.tables import Row, ours

COLOURS = ("#1b6ca8", "#e08e0b", "#3a9d5d", "#a23b72")


def draw(rows: list[Row], path: Path) -> bool:
    """Write the chart as SVG. Returns False, and writes nothing, if there is nothing to show."""
    shown = [
        r for r in ours(rows, "targets") if r["size"] == 224
        and r.get("times_faster_than_zennit") is not None and r.get("share_of_gradient") is not None
    ]  # fmt: skip
    if not shown:
        return False
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    # The same rows give the same file.
    matplotlib.rcParams.update({"svg.hashsalt": "fastlrp", "svg.fonttype": "none"})
    kinds = list(dict.fromkeys(_kind(r) for r in shown))
    shown.sort(key=lambda r: (-r["targets"], r["density_asked"] is not None))
    labels = [f"{r['model']}, {r['composite']}, {_targets(r)}" for r in shown]
    colours = [COLOURS[kinds.index(_kind(r)) % len(COLOURS)] for r in shown]
    figure, axes = pyplot.subplots(1, 2, figsize=(9, 0.6 + 0.32 * len(shown)), sharey=True, layout="constrained")
    panels = (
        ("times_faster_than_zennit", "times faster than Zennit's better way", "{:.1f}"),
        ("share_of_gradient", "time, in plain gradients", "{:.2f}"),
    )
    for ax, (key, title, form) in zip(axes, panels, strict=True):
        bars = ax.barh(range(len(shown)), [r[key] for r in shown], color=colours)
        ax.bar_label(bars, [form.format(r[key]) for r in shown], padding=3, fontsize=8)
        ax.axvline(1, color="#888888", linewidth=1)
        ax.set_title(title, fontsize=10)
        ax.margins(x=0.15)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(range(len(shown)), labels, fontsize=8)
    axes[0].invert_yaxis()
    if len(kinds) > 1:
        handles = [matplotlib.patches.Patch(color=COLOURS[i % len(COLOURS)], label=k) for i, k in enumerate(kinds)]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(kinds), fontsize=8, frameon=False)
    figure.savefig(path, format="svg", metadata={"Date": None})
    pyplot.close(figure)
    return True


def _kind(row: Row) -> str:
    asked = row["density_asked"]
    return "weights as they are" if asked is None else f"biases shifted: {asked:g} of the neurons alive"


def _targets(row: Row) -> str:
    return "1 target" if row["targets"] == 1 else f"{row['targets']} targets"
