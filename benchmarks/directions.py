"""Relevance of parts of the input: which way costs what and whether the choice is right, and the same beside others.

    python -m benchmarks.directions                        # both parts, all models: under six minutes on two cores
    python -m benchmarks.directions --part choice --models vgg16,vit_b_16
    FASTLRP_LXT=FOLDER FASTLRP_AUTOLRP=FOLDER python -m benchmarks.directions --part others

``choice``: down, up and the middle on a grid of targets and groups; a way that is estimated at more than ``--cut``
times the best estimate is not run (``--cut inf`` runs all). ``others``: VGG-16 patches by all classes beside the
way down and Zennit, those of ViT-B/16 beside LXT and autoLRP, BiLRP beside a loop over features and autoLRP's own,
GPT-2's next tokens beside LXT. Outputs are compared before a time counts.
Appends a row per measurement to ``benchmarks/results/directions.jsonl``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.directions_others import OTHERS
from benchmarks.directions_workloads import AGREES, CLOCKS, WORKLOADS, Row, Workload, difference, seconds, use_clock
from benchmarks.machine import machine, provenance

RESULTS = Path(__file__).parent / "results" / "directions.jsonl"

WAYS = ("down", "up", "middle")


def choice(work: Workload, cut: float) -> Iterator[Row]:
    """Every way over the grid; prints the choice and how far it is from the best."""
    work.ask([0], next(iter(work.parts.values())), "down")  # What a record makes once.
    for count in work.counts:
        targets = [i * work.classes // count for i in range(count)]
        for number, parts in work.parts.items():
            work.ask(targets[:1], parts, "auto")
            found: dict[str, float] = {}
            expected: Tensor | None = None
            costs, taken = _estimates(work, targets, parts)
            least = min(costs.values())
            for way in WAYS:
                if way in costs and costs[way] <= cut * least:
                    result, found[way] = seconds(partial(work.ask, targets, parts, way))
                    expected = result if expected is None else expected
                    error = difference(result, expected)
                    if not error < AGREES:
                        raise RuntimeError(f"{work.name}, K = {count}, G = {number}: {way} differs by {error:.1e}")
            excess = found[taken] / min(found.values()) - 1
            said = ", ".join(f"{way} {found[way]:.3f} s (est. {costs[way] / 1e9:.0f})" for way in found)
            print(
                f"  {work.name:9} K = {count:4}, G = {number:4}: {taken:6} +{100 * excess:3.0f} %   {said}", flush=True
            )
            yield {
                "part": "choice", "model": work.name, "targets": count, "groups": number, "taken": taken,
                "seconds": found, "estimated": costs, "excess": excess,
            }  # fmt: skip


def _estimates(work: Workload, targets: Sequence[int], parts: Any) -> tuple[dict[str, float], str]:
    """What the plan expects of each way, and the one that it takes, without going one."""
    choice = work.record.estimate(targets, groups=parts, **work.given)
    named = {"down": choice.costs.below, "up": choice.costs.up, "middle": choice.costs.middle}
    return {way: cost for way, cost in named.items() if cost is not None}, choice.direction


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, append."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("choice", "others", "both"), default="both")
    parser.add_argument("--models", default=",".join(WORKLOADS), help="of the first part, with commas")
    parser.add_argument("--others", default=",".join(OTHERS), help="comparisons of the second part, with commas")
    parser.add_argument("--size", type=int, default=224, help="side of the images of the second part")
    parser.add_argument("--cut", type=float, default=3.0, help="how many times the best estimate is still run")
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="cpu: of one thread on a machine that is shared"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", default=str(RESULTS), help="file to append rows to; '' for none")
    chosen = parser.parse_args(given)
    use_clock(chosen.clock)
    torch.set_num_threads(1 if chosen.clock == "cpu" else chosen.threads)
    made, rows = provenance(" ".join(["python -m benchmarks.directions", *given])), []
    if chosen.part != "others":
        print(f"The choice, {machine()}; seconds of each way (estimate in GFLOP)", flush=True)
        for name in filter(None, chosen.models.split(",")):
            rows += list(choice(WORKLOADS[name](), chosen.cut))
        worst = max(row["excess"] for row in rows)
        within = sum(row["excess"] <= 0.15 for row in rows)
        print(f"  within 15 % of the best: {within} of {len(rows)}, at worst {100 * worst:.0f} %", flush=True)
    if chosen.part != "choice":
        for name in filter(None, chosen.others.split(",")):
            rows += list(OTHERS[name](chosen.size))
    if chosen.output:
        Path(chosen.output).parent.mkdir(parents=True, exist_ok=True)
        with open(chosen.output, "a") as file:
            file.writelines(json.dumps({**made, **row}) + "\n" for row in rows)


if __name__ == "__main__":
    main()
