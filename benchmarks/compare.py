"""fastlrp beside Zennit, Captum, the LRP Toolbox, the plain gradient and a dense floor: one process, in turns.

    python -m benchmarks.compare --models vgg16,resnet50 --composites epsilon_plus,epsilon_gamma_box --targets 32
    python -m benchmarks.compare --scenario targets,small,toolbox --density 0.25
    python -m benchmarks.compare --targets 1 --backends auto,auto/bf16 --switched

Seconds per target include each provider's one forward pass. Outputs are compared before anything is timed; a provider
whose output disagrees is reported as such and not timed. Appends a row per measurement to ``benchmarks/results/``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import measure
from benchmarks.machine import machine, provenance
from benchmarks.rounds import OTHERS, PEERS, Options, Round
from benchmarks.scenarios import SCENARIOS
from benchmarks.toolbox import GoldensMissingError

RESULTS = Path(__file__).parent / "results"

Row = dict[str, Any]


def run(scenario: str, options: Options, command: str) -> list[Row]:
    """Measure all rounds of a scenario; prints as it goes."""
    rows: list[Row] = []
    made = provenance(command)
    for asked in SCENARIOS[scenario](options):
        print(f"\n{heading(asked)}, {machine()}", flush=True)
        entries = measure.measure(asked.parts, asked.x, asked.case.classes, asked.repeats, asked.gate)
        found = measure.rows(asked.case, entries, made)
        rows += found
        print("\n".join([*map(measure.line, found), *asked.left_out]), flush=True)
    return [compared_with_one(row, rows) for row in rows]


def heading(asked: Round) -> str:
    """The question of a round."""
    case = asked.case
    batch, count = case.classes.shape
    share = case.density
    alive = "" if share is None else f", {share.alive:.2f} of the neurons alive ({share.reached:.2f} reached)"
    if case.scenario == "transformers" and not asked.x.is_floating_point():
        return f"{case.scenario}: {case.model}, {case.composite}, a text of {case.size} tokens, K = {count}"
    return f"{case.scenario}: {case.model}, {case.composite}, {batch} of {case.size}x{case.size}, K = {count}{alive}"


def compared_with_one(row: Row, rows: list[Row]) -> Row:
    """A stream's peak memory over that of one target."""
    if row["scenario"] == "stream":
        same = ("model", "composite", "provider", "density_asked", "size")
        one = [r for r in rows if r["targets"] == 1 and all(r[key] == row[key] for key in same)]
        if one and row["peak_bytes"] is not None:
            row["peak_over_one_target"] = row["peak_bytes"] - one[0]["peak_bytes"]
    return row


def parser() -> argparse.ArgumentParser:
    """The command line."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)

    def listed(text: str) -> tuple[str, ...]:
        return tuple(filter(None, text.split(",")))

    def numbers(text: str) -> tuple[int, ...]:
        return tuple(int(word) for word in listed(text))

    add = words.add_argument
    add("--scenario", type=listed, default=("targets",), help=f"of {', '.join(SCENARIOS)}; several with commas")
    add("--models", type=listed, help="torchvision's names; by default the scenario's own")
    add("--composites", type=listed, help="presets, or 'epsilon'; for toolbox: simple, epsilon_1, epsilon_0.1")
    add("--targets", type=int, default=32, help="targets of the one image")
    add("--batch", type=int, default=8, help="images, for batch and top5")
    add("--size", type=int, default=224, help="side of an image")
    add("--density", type=float, help="share of neurons to leave alive after each ReLU, e.g. 0.25")
    add("--counts", type=numbers, help="targets, for stream, basis and transformers")
    add(
        "--backends",
        type=listed,
        default=("auto", "torch"),
        help="fastlrp's, each with a path if wished, auto/dense, or with products of bfloat16, auto/bf16",
    )
    add(
        "--switched",
        action="store_true",
        help="everybody beside fastlrp a second time, under PyTorch's switches for products of bfloat16",
    )
    add("--others", type=listed, default=OTHERS, help=f"who is measured beside fastlrp, of {', '.join(PEERS)}")
    add("--peer-targets", type=int, default=4, help="targets per image that Zennit and Captum are measured with")
    add("--repeats", type=int, help="by default the scenario's own")
    add("--output", default=str(RESULTS / "cpu.jsonl"), help="file to append rows to; '' for none")
    return words


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, append."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    words = parser()
    chosen = vars(words.parse_args(given))
    scenarios, output = chosen.pop("scenario"), chosen.pop("output")
    for name, known, asked in (("--scenario", SCENARIOS, scenarios), ("--others", PEERS, chosen["others"])):
        unknown = set(asked) - set(known)
        if unknown:
            words.error(f"{name}: {', '.join(sorted(unknown))} not known; expected of {', '.join(known)}")
    options = Options(**chosen)
    for scenario in scenarios:
        try:
            rows = run(scenario, options, command(given))
        except GoldensMissingError as reason:
            print(f"\n{scenario}: not measured, {reason}")
            continue
        if output:
            Path(output).parent.mkdir(parents=True, exist_ok=True)
            with open(output, "a") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)


def command(given: Sequence[str]) -> str:
    """What was typed, but for where the rows go."""
    words = list(given)
    if "--output" in words:
        at = words.index("--output")
        del words[at : at + 2]
    return " ".join(["python -m benchmarks.compare", *(w for w in words if not w.startswith("--output="))])


if __name__ == "__main__":
    main()
