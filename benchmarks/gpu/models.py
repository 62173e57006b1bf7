"""fastlrp beside Zennit, a plain gradient and the dense floor on a GPU: whole models, one process, in turns.

    python -m benchmarks.gpu.models --output rows.jsonl --scenario targets --targets 256 --precisions tf32,bfloat16

The rounds are those of ``benchmarks.scenarios``, with fastlrp's float32 results of composed PyTorch operations as what
outputs are compared with (see there), and the last targets of a block with the same ones asked alone. Zennit's expanded
batch has the size that is fastest, found by doubling until memory ends; its graph is then kept for the next block.
``replay`` is a small network, whose launches are recorded once, beside the same calls made one by one.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import product

import torch

from benchmarks import measure, precisions, scenarios
from benchmarks.compare import heading
from benchmarks.gpu.part import Part, begin, listed, numbers, parser
from benchmarks.measure import Entry
from benchmarks.rounds import Options, Round
from fastlrp.backends import dispatch

BACKENDS = ("auto", "triton", "cuda", "torch")

Scenario = Callable[[Options], Iterator[Round]]

SCENARIOS: dict[str, tuple[Scenario, tuple[str, ...], tuple[str, ...]]] = {
    "targets": (scenarios.targets, ("vgg16", "resnet50"), scenarios.PRESETS),
    "batch": (scenarios.batch, ("vgg16", "resnet50"), scenarios.PRESETS),
    "stream": (scenarios.stream, ("vgg16",), ("epsilon_plus",)),
    "replay": (scenarios.replay, ("lenet",), ("epsilon_plus",)),
}
"""Rounds, and the models and composites that they are asked of if no others are named."""


def run(part: Part, name: str, options: Options) -> bool:
    """Measure a scenario of one model, composite and precision. Returns whether the device is lost."""
    what = f"{name}, {options.models}, {options.composites}, {options.precision}"
    with precisions.using(options.precision):
        try:
            for asked in SCENARIOS[name][0](options):
                part.say(f"\n{heading(asked)}, {options.precision}, {part.made['device']}")
                found = measure.measure(asked.parts, asked.x, asked.case.classes, asked.repeats, asked.gate)
                write(part, asked, found, options.precision)
        except Exception as error:  # One question that cannot be measured must not lose the others.
            part.wrong.append(f"{what}: {type(error).__name__}: {str(error)[:300]}")
    if part.is_lost():
        return True
    gc.collect()
    if part.device.type == "cuda":
        torch.cuda.empty_cache()
    return False


def write(part: Part, asked: Round, found: list[Entry], name: str) -> None:
    """Rows of a round, and what is wrong with fastlrp in it."""
    rows = measure.rows(asked.case, found, {})
    part.write([{**row, "precision": name, "notes": asked.left_out} for row in rows])
    part.say("\n".join([*map(measure.line, rows), *asked.left_out]))
    for entry in found:
        if entry.reason is not None and entry.provider.library == "fastlrp":
            part.wrong.append(f"{heading(asked)}, {name}, {entry.provider.name}: {entry.reason}")


def _parser(description: str | None) -> argparse.ArgumentParser:
    words = parser(description)
    add = words.add_argument
    add("--scenario", type=listed, default=("targets",), help="of targets, batch, stream, replay")
    add("--models", type=listed, help="by default the scenario's own")
    add("--composites", type=listed)
    add("--precisions", type=listed, default=("float32", "tf32", "bfloat16"))
    add("--targets", type=int, default=256)
    add("--batch", type=int, default=64)
    add("--counts", type=numbers, default=(64, 256, 1000), help="targets, for stream")
    add("--backends", type=listed, default=BACKENDS)
    add("--others", type=listed, default=("gradient", "floor", "zennit"))
    add("--repeats", type=int)
    return words


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, append."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    chosen = _parser(__doc__).parse_args(given)
    part = begin("models", chosen, given)
    known = [name for name in chosen.backends if name == "auto" or name in dispatch.BACKENDS]
    options = Options(
        models=chosen.models, composites=chosen.composites, targets=4 if chosen.tiny else chosen.targets,
        batch=2 if chosen.tiny else chosen.batch, size=32 if chosen.tiny else 224, backends=tuple(known),
        others=chosen.others, counts=chosen.counts, peer_targets=8, repeats=chosen.repeats, device=chosen.device,
        gpu=True,
    )  # fmt: skip
    for scenario in chosen.scenario:
        _, models, composites = SCENARIOS[scenario]
        for asked in product(chosen.models or models, chosen.composites or composites, chosen.precisions):
            if part.is_late(f"{scenario}: {', '.join(asked)}"):
                continue
            model, rule, name = asked
            if run(part, scenario, replace(options, models=(model,), composites=(rule,), precision=name)):
                return part.code(lost=True)
    return part.code()


if __name__ == "__main__":
    raise SystemExit(main())
