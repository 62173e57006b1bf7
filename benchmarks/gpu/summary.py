"""Tables of a GPU run, from the rows that its parts wrote.

    python -m benchmarks.gpu.summary OUT              # OUT/summary.md, from OUT/rows.jsonl and OUT/status.jsonl
    python -m benchmarks.gpu.summary OUT1 OUT2 --to summary.md
    python -m benchmarks.gpu.summary --write          # benchmarks/README.md, from benchmarks/results/gpu/

Of what was measured more than once the newest row counts.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from benchmarks.gpu.goals import goals
from benchmarks.markers import Markers
from benchmarks.tables import Column, table

Row = dict[str, Any]

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "gpu"
PAGE = ROOT / "benchmarks" / "README.md"
MARKERS = Markers.of("gpu")
NOTHING = "No GPU has been measured yet: `benchmarks/gpu.sh OUT` on a machine with one."

_KEY = (
    "part", "device", "scenario", "model", "composite", "targets", "batch", "size", "precision", "provider", "what",
    "layer", "op", "call", "backend", "density",
)  # fmt: skip


def read(files: Iterable[Path]) -> list[Row]:
    """The newest row of everything that was measured, in the order of the files.

    Raises:
        ValueError: for a line that is no row; it names the file and the line.
    """
    newest: dict[str, Row] = {}
    for file in files:
        for number, line in enumerate(file.read_text().splitlines(), 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{file.name}, line {number} is no row: {error}") from error
            key = json.dumps([row.get(name) for name in _KEY])
            newest.pop(key, None)
            newest[key] = row
    return list(newest.values())


def _get(key: str, scale: float = 1.0) -> Any:
    return lambda row: None if row.get(key) is None else row[key] * scale if scale != 1.0 else row[key]


def _word(head: str, key: str) -> Column:
    return Column(head, _get(key), number=False)


PARTS = (
    _word("part", "part"), _word("result", "result"), Column("seconds", _get("seconds"), "{:.0f}"),
    Column("limit", _get("limit"), "{:.0f}"), _word("what it was", "note"),
)  # fmt: skip
MODELS = (
    _word("model", "model"), _word("composite", "composite"), _word("precision", "precision"),
    Column("targets", _get("targets")), Column("images", _get("batch")), _word("provider", "provider"),
    Column("ms/target", _get("seconds_per_target", 1e3), "{:.4g}"), Column("spread", _get("spread"), "{:.2f}"),
    Column("× Zennit", _get("times_faster_than_zennit"), "{:.1f}"),
    Column("of a gradient", _get("share_of_gradient"), "{:.2f}"),
    Column("of the floor", _get("share_of_floor"), "{:.2f}"),
    Column("peak MiB", _get("peak_bytes", 2.0**-20), "{:.0f}"),
    Column("in all, MiB", _get("peak_bytes_in_all", 2.0**-20), "{:.0f}"),
    Column("differs by", _get("error"), "{:.0e}"), _word("not timed, because", "reason"),
)  # fmt: skip
OPS = (
    _word("operation", "op"), _word("call", "call"), Column("K", _get("targets")), _word("precision", "precision"),
    _word("backend", "backend"), Column("ms", _get("seconds", 1e3), "{:.3f}"),
    Column("spread", _get("spread"), "{:.2f}"), Column("× composed", _get("times_faster_than_composed"), "{:.2f}"),
    Column("of peak FLOP/s", _get("of_peak_flops"), "{:.2f}"),
    Column("of copy bytes/s", _get("of_peak_bytes"), "{:.2f}"), Column("differs by", _get("error"), "{:.0e}"),
    _word("not timed, because", "reason"),
)  # fmt: skip
FEW_OPS = (
    _word("operation", "op"), _word("precision", "precision"), _word("backend", "backend"),
    Column("calls timed", _get("timed")), Column("not right", _get("wrong")),
    Column("× composed: least", _get("least"), "{:.2f}"), Column("median", _get("median"), "{:.2f}"),
    Column("of the peak: least", _get("least_peak"), "{:.2f}"), Column("median", _get("median_peak"), "{:.2f}"),
)  # fmt: skip
SPARSE = (
    _word("layer", "call"), Column("alive above", _get("above"), "{:.2f}"), Column("below", _get("below"), "{:.2f}"),
    Column("ms", _get("seconds", 1e3), "{:.3f}"), Column("dense ms", _get("dense_seconds", 1e3), "{:.3f}"),
    Column("× dense", _get("times_faster_than_dense"), "{:.2f}"), Column("differs by", _get("error"), "{:.0e}"),
    _word("not timed, because", "reason"),
)  # fmt: skip
FLOORS = (
    _word("model", "model"), _word("precision", "precision"), Column("targets", _get("targets")),
    _word("layer", "layer"), _word("by", "way"), Column("ms", _get("seconds", 1e3), "{:.3f}"),
    Column("of peak FLOP/s", _get("of_peak_flops"), "{:.2f}"),
)  # fmt: skip
CALLS = (_word("call", "what"), _word("result", "result"), Column("seconds", _get("seconds"), "{:.1f}"),
         _word("said", "said"))  # fmt: skip
RIGHT = ("ok", "passed", "skipped")
TITLES = {
    "targets": "One image, many targets",
    "batch": "Many images, one target each",
    "stream": "Targets in a stream of blocks",
    "replay": "A small network, its launches recorded once",
}


def markdown(rows: list[Row], status: list[Row], short: bool = False) -> str:
    """Markdown. ``short``: without the tables of single calls and layers."""
    if not rows and not status:
        return NOTHING
    scenarios = {name: [r for r in rows if r.get("scenario") == name] for name in TITLES}
    ops = [r for r in rows if r.get("part") in ("ops", "transformer") and r.get("what") is None]
    sections: list[tuple[str, str]] = [
        ("Parts", table(PARTS, status) if status else ""),
        ("One small call of every kernel", calls([row for row in rows if row.get("part") == "smoke"])),
        ("Tests", calls([row for row in rows if row.get("part") == "tests"])),
        ("What was to be reached", scoreboard(rows) if rows else ""),
        ("Peaks, measured", peaks(rows)),
        *((TITLES[name], table(MODELS, own) if own else "") for name, own in scenarios.items()),
        ("Operations beside the same composed of PyTorch calls", table(FEW_OPS, few(ops)) if ops else ""),
    ]
    sparse = [r for r in rows if r.get("part") == "sparse"]
    sections.append(("Living neurons only", table(SPARSE, sparse) if sparse else ""))
    if not short:
        floors = [r for r in rows if r.get("what") == "floor"]
        sections.append(("The floor, layer by layer", table(FLOORS, floors) if floors else ""))
        sections.append(("Operations, call by call", table(OPS, [r for r in ops if not r["unable"]]) if ops else ""))
    texts = [f"### {title}\n\n{text}" for title, text in sections if text]
    return "\n\n".join([*([source(rows)] if rows else []), *texts])


def calls(rows: list[Row]) -> str:
    """How many had which result, and those that were not right."""
    if not rows:
        return ""
    count = {result: sum(row["result"] == result for row in rows) for result in {row["result"]: 0 for row in rows}}
    text = ", ".join(f"{number} {result}" for result, number in count.items())
    bad = [{**row, "said": " ".join(row["said"].split())[:200].replace("|", "/")} for row in rows
           if row["result"] not in RIGHT]  # fmt: skip
    return f"{text}.\n\n{table(CALLS, bad)}" if bad else f"{text}."


def source(rows: list[Row]) -> str:
    """Devices, versions and commits that made the rows."""
    rows = [row for row in rows if "commit" in row]
    names = ("device", "driver", "cuda", "cudnn", "torch", "triton", "zennit", "commit", "date")
    made = dict.fromkeys(tuple(row.get(name) for name in names) for row in rows)
    lines = []
    for device, driver, cuda, cudnn, torch, triton, zennit, commit, date in made:
        lines.append(
            f"Measured on {device}, driver {driver}, CUDA {cuda}, cuDNN {cudnn}, PyTorch {torch}, Triton {triton}, "
            f"Zennit {zennit or 'missing'}; commit {commit}, {date}."
        )
    return "\n".join(lines)


def scoreboard(rows: list[Row], short: bool = False) -> str:
    """Every goal with what was found. ``short``: those that were measured, and how many were not."""
    judged = [(goal.what, *goal.judge(rows)) for goal in goals()]
    seen = [cells for cells in judged if cells[-1] != "not measured"]
    rest = f"{len(judged) - len(seen)} of {len(judged)} goals are not measured by this run."
    if short and not seen:
        return rest
    heads = ("goal", "wanted", "worst found", "result")
    shown = table(
        tuple(_word(head, head) for head in heads),
        [dict(zip(heads, cells, strict=True)) for cells in (seen if short else judged)],
    )
    return f"{shown}\n\n{rest}" if short else shown


def peaks(rows: list[Row]) -> str:
    """Copy and products."""
    lines = [
        f"- copy, read and written: {row['bytes_per_second'] / 1e12:.2f} TB/s"
        if row["what"] == "copy"
        else f"- product, {row['precision']}: {row['flops_per_second'] / 1e12:.0f} TFLOP/s"
        for row in rows
        if row.get("what") in ("copy", "product")
    ]
    return "\n".join(lines)


def few(ops: list[Row]) -> list[Row]:
    """One row per operation, precision and backend."""

    def key(row: Row) -> tuple[str, str, str]:
        return row["op"], row["precision"], row["backend"]

    found = []
    for (op, precision, backend), group in groupby(sorted(ops, key=key), key=key):
        some = [row for row in group if not row["unable"]]
        timed = [row for row in some if row["seconds"] is not None]
        if not some or backend.startswith("torch"):
            continue
        ratios = [row["times_faster_than_composed"] for row in timed]
        shares = [row["of_peak"] for row in timed]
        found.append(
            {
                "op": op, "precision": precision, "backend": backend, "timed": len(timed),
                "wrong": len(some) - len(timed), "least": min(ratios, default=None),
                "median": statistics.median(ratios) if ratios else None, "least_peak": min(shares, default=None),
                "median_peak": statistics.median(shares) if shares else None,
            }
        )  # fmt: skip
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Read, write."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("folders", nargs="*", type=Path, help="folders of runs; of one the summary goes there")
    words.add_argument("--to", type=Path, help="file for the summary")
    words.add_argument("--write", action="store_true", help="write the page's tables from the results kept beside it")
    options = words.parse_args(arguments)
    if options.write:
        MARKERS.write(PAGE, markdown(read(sorted(RESULTS.glob("*.jsonl"))), [], short=True))
        return
    if not options.folders:
        words.error("name the folder of a run, or --write")
    rows = read(path for folder in options.folders for path in [folder / "rows.jsonl"] if path.exists())
    status = read(path for folder in options.folders for path in [folder / "status.jsonl"] if path.exists())
    text = markdown(rows, status)
    (options.to or options.folders[0] / "summary.md").write_text(f"# A run on a GPU\n\n{text}\n")
    print(markdown([], status) if not rows else "\n\n".join([markdown([], status), scoreboard(rows, short=True)]))


if __name__ == "__main__":
    main()
