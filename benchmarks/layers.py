"""Where the time goes: milliseconds, rate and page faults per target of every backward step of one model.

    python -m benchmarks.layers --model vgg16 --composite epsilon_plus --targets 32 --precision bf16

A layer's dense rate counts the operations of a dense product, whether or not the step makes them all; "made" those
for neurons that carry relevance ("above" and "below" are their shares of a layer's outputs and inputs). Under a
max-pool fewer outputs get any, so that "made" is too high there. "of peak" is the made rate over that of a large
product in the same process, of float32 or of bfloat16 as the layer's products read. With ``--processor-time`` seconds
are the process's own: for one thread on a busy machine.

    python -m benchmarks.layers --filtering

In place of a model: 3x3 convolutions by Winograd's filtering beside oneDNN, shape by shape, as a table in Markdown.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import torch

import fastlrp
from benchmarks import density, filtering
from benchmarks.machine import machine, peak_flops
from benchmarks.models import build
from benchmarks.providers import composite
from fastlrp.plan.steps import Emission
from fastlrp.plan.table import align
from fastlrp.run import runner
from fastlrp.run.answers import Answers


class Timed:
    """Stands in for a step's function and adds up what its calls cost; otherwise it is that function."""

    clock: Callable[[], float] = staticmethod(time.perf_counter)

    def __init__(self, run: Any) -> None:
        self.run, self.seconds, self.faults = run, 0.0, 0

    def __call__(self, *operands: Any, **options: Any) -> torch.Tensor:
        faults, begin = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, self.clock()
        result: torch.Tensor = self.run(*operands, **options)
        self.seconds += self.clock() - begin
        self.faults += resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
        return result


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vgg16")
    parser.add_argument("--composite", default="epsilon_plus")
    parser.add_argument("--targets", type=int, default=32)
    parser.add_argument("--size", type=int, default=224, help="side of the image")
    parser.add_argument("--density", type=float, help="share of neurons to leave alive after each ReLU")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--precision", default="float32", choices=("float32", "bf16"))
    parser.add_argument("--paths", default="auto", choices=("auto", "dense", "sparse"))
    parser.add_argument("--processor-time", action="store_true", help="seconds of the process, not of the clock")
    parser.add_argument(
        "--filtering", action="store_true", help="in place of a model: 3x3 layers by Winograd's filtering and by oneDNN"
    )
    parser.add_argument("--repeats", type=int, default=7, help="of each product with --filtering")
    options = parser.parse_args(arguments)
    if options.filtering:
        filtering.print_table(options.repeats)
        return
    clock = time.process_time if options.processor_time else time.perf_counter
    model, x = build(options.model, size=options.size)
    if options.density is not None:
        density.shift(model, x, options.density)
    share = density.measure(model, x)
    peaks = {"": peak_flops(clock=clock), "bf16": peak_flops(dtype=torch.bfloat16, clock=clock)}
    targets = list(range(options.targets))
    explainer = fastlrp.Explainer(
        model, composite(options.composite), backend=options.backend, precision=options.precision, paths=options.paths
    )
    explainer(x, targets)  # Weights are packed in the first call, and memory is met.
    begin = clock()
    record = explainer.forward(x)
    forward = clock() - begin
    with mock.patch.object(Timed, "clock", staticmethod(clock)), _timed_steps() as steps:
        begin = clock()
        record.relevance(targets)
        total = clock() - begin
    print(f"{options.model}, {options.composite}, {options.size}x{options.size}, K = {len(targets)}, {machine()}")
    print(
        f"{share.alive:.2f} of the neurons alive ({share.reached:.2f} reached); peak {peaks[''] / 1e9:.0f} GFLOP/s, "
        f"of bfloat16 {peaks['bf16'] / 1e9:.0f}"
    )
    header = ("step", "layer", "path", "above", "below", "ms/target", "dense GFLOP/s", "made", "of peak",
              "faults/target")  # fmt: skip
    print(align(header, _rows(record, steps, len(targets), peaks), numbers=range(3, 10)))
    inside = sum(step.run.seconds for step in steps)
    work = sum(step.work for step in steps)
    print(
        f"forward {forward:.3f} s, then {total / len(targets):.4f} s/target ({work / 1e9:.1f} dense GFLOP), of which "
        f"{(total - inside) / len(targets):.4f} outside of the steps"
    )


@contextmanager
def _timed_steps() -> Iterator[list[Any]]:
    """The steps that are run inside of the block, in order, each timed; the list is filled when they run.

    The steps hold their plan's weights. After the block the runner's own function is back, so that no later plan is
    timed and kept.
    """
    steps: list[Any] = []
    propagate = runner.propagate

    timed: dict[Any, Any] = {}

    def run(plan: Any, state: Any, initial: Any, given: Any, sink: Any, first: int) -> None:
        for step, _ in given:
            if not isinstance(step, Emission) and step not in timed:
                timed[step] = replace(step, run=Timed(step.run))
                steps.append(timed[step])
        propagate(plan, state, initial, [(timed.get(step, step), frees) for step, frees in given], sink, first)

    # Ways down that a plan has settled are no call of the runner's.
    with mock.patch.object(runner, "propagate", run), mock.patch.object(Answers, "may_settle", False):
        yield steps


def _rows(record: Any, steps: list[Any], count: int, peaks: dict[str, float]) -> list[tuple[str, ...]]:
    paths = {id(path.form): path for path in record.paths.values()}
    rows: list[tuple[str, ...]] = []
    for position, step in enumerate(steps):
        each, rate = step.run.seconds / count, step.work * count / max(step.run.seconds, 1e-9)
        changes_form = step.ins == (step.out,)
        path = None if changes_form else paths.get(id(step.form))
        densities = ("", "") if path is None else (f"{path.above:.2f}", f"{path.below:.2f}")
        kind = "compact" if changes_form else "sparse" if step.least > 1 else "dense"
        made, narrow = rate, "bf16" if step.takes_bf16 and step.work else ""
        if path is not None:
            kind, narrow = str(path).rsplit(" ", 3)[0], "bf16" if "bf16" in str(path) else ""
            made *= path.above * path.below if path.sparse else 1
        share = f"{made / peaks[narrow]:.2f}" if step.work else ""
        numbers = (f"{each * 1e3:.2f}", f"{rate / 1e9:.0f}", f"{made / 1e9:.0f}", share,
                   f"{step.run.faults / count:.0f}")  # fmt: skip
        rows.append((str(position), step.name, kind, *densities, *numbers))
    return rows


if __name__ == "__main__":
    main()
