"""What the repository's README says of the results: one small table, and a sentence for each other scenario."""

from __future__ import annotations

from itertools import product

from benchmarks.tables import Row, mebibytes, ours, place

PRECISIONS = {"float32": "fastlrp auto", "bfloat16": "fastlrp auto/bf16"}
"""The table's halves, and who is shown in each."""

UNMEASURED = "Nothing has been measured yet: `make bench`."
FURTHER = "Commands, times, memory and errors: [benchmarks](benchmarks/README.md)."


def text(rows: list[Row]) -> str:
    """One image beside Zennit and the gradient, a sentence for each other scenario, and where all was measured."""
    parts = [(sentence, used) for part in PARTS for sentence, used in part(rows)]
    if not parts:
        return UNMEASURED
    places = dict.fromkeys(place(row) for _, used in parts for row in used)
    return "\n\n".join([*(sentence for sentence, _ in parts), f"Measured at {'; '.join(places)}. {FURTHER}"])


Part = list[tuple[str, list[Row]]]
"""Texts, each with the rows that it is made of."""


def _one_image(rows: list[Row]) -> Part:
    """Times faster than Zennit and time in gradients, by model and composite, for each number of targets."""
    found = {
        (precision, row["targets"], _name(row)): row
        for precision, provider in PRECISIONS.items()
        for row in ours(rows, "targets", provider)
        if row["size"] == 224 and row["density_asked"] is None and row.get("times_faster_than_zennit") is not None
    }
    if not found:
        return []
    counts = sorted({count for _, count, _ in found})
    shown = [pair for pair in product(PRECISIONS, counts) if pair in {key[:2] for key in found}]
    heads = [f"{precision}, {count} target{'s' * (count > 1)}" for precision, count in shown]
    lines = [["one 224×224 image", *heads], ["---", *["---:"] * len(shown)]]
    for name in dict.fromkeys(_name(row) for row in grouped(list(found.values()))):
        lines.append([name, *(_cell(found.get((*pair, name))) for pair in shown)])
    table = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
    differences = [row["error"] for (precision, *_), row in found.items() if precision == "bfloat16"]
    differs = f" Products of bfloat16 change the relevance by at most {max(differences):.0e}." if differences else ""
    lead = (
        "How many times faster than Zennit one target is explained; in brackets its time, where a plain gradient takes "
        f"1. Forward passes are included. Of the ways to use Zennit, and PyTorch, the fastest is taken.{differs}"
    )
    return [(f"{lead}\n\n{table}", list(found.values()))]


def grouped(rows: list[Row]) -> list[Row]:
    """Model by model, composite by composite, each in the order in which they come first."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    composites = list(dict.fromkeys(row["composite"] for row in rows))
    return sorted(rows, key=lambda row: (models.index(row["model"]), composites.index(row["composite"])))


def _name(row: Row) -> str:
    return f"{row['model']}, `{row['composite']}`"


def _cell(row: Row | None) -> str:
    if row is None:
        return "–"
    share = row.get("share_of_gradient")
    return f"{row['times_faster_than_zennit']:.1f}" + ("" if share is None else f" ({share:.2f})")


def _few_alive(rows: list[Row]) -> Part:
    """The share of a gradient's time where fewer neurons are alive than random weights leave."""
    found = [
        r for r in ours(rows, "targets")
        if r["density_asked"] is not None and r["targets"] > 1 and r.get("share_of_gradient") is not None
    ]  # fmt: skip
    alike: dict[str, list[Row]] = {}
    for r in found:
        alike.setdefault(
            f"Where only {r['density_asked']:g} of the neurons are alive, each of {r['targets']} targets takes this "
            f"part of a gradient's time under `{r['composite']}`",
            [],
        ).append(r)
    return [
        (f"{text}: " + ", ".join(f"{r['model']} {r['share_of_gradient']:.2f}" for r in some) + ".", some)
        for text, some in alike.items()
    ]


def _small(rows: list[Row]) -> Part:
    found = [r for r in ours(rows, "small") if r.get("times_one_gradient") is not None][-1:]
    return [
        (
            "A small network's forward pass and the relevance of all ten classes of one 8×8 digit cost "
            f"{r['times_one_gradient']:.1f} times one forward pass with one gradient.",
            [r],
        )
        for r in found
    ]


def _toolbox(rows: list[Row]) -> Part:
    found = [r for r in ours(rows, "toolbox") if r.get("times_faster_than_toolbox") is not None][:1]
    swept = [r for r in ours(rows, "sweep") if r.get("times_faster_than_toolbox") is not None][:1]
    parts = [
        (
            f"Ten classes of {r['batch']} digits on the LRP Toolbox's LeNet-5: {r['times_faster_than_toolbox']:.0f} "
            "times faster than the Toolbox's procedure (`lrp_aware`, NumPy), with its numbers.",
            [r],
        )
        for r in found
    ]
    return parts + [
        (
            "The same ten classes under three epsilons, from one forward pass: "
            f"{r['times_faster_than_toolbox']:.0f} times faster.",
            [r],
        )
        for r in swept
    ]


def _stream(rows: list[Row]) -> Part:
    streamed = [r for r in ours(rows, "stream") if r["density_asked"] is None and r["targets"] > 1]
    if len(streamed) < 2:
        return []
    few, many = streamed[0], streamed[-1]
    over = mebibytes("peak_over_one_target")(many)
    memory = "" if over is None else f", with {over:.0f} MiB more memory than one target takes"
    sentence = (
        f"{many['targets']} targets of {many['model']} in a stream take {many['seconds_per_target']:.3f} s each, where "
        f"{few['targets']} take {few['seconds_per_target']:.3f} s each{memory}."
    )
    return [(sentence, [few, many])]


PARTS = (_one_image, _few_alive, _small, _toolbox, _stream)
