"""Where the time goes: milliseconds, rate and page faults per target of every backward step of one model.

    python -m benchmarks.layers --model vgg16 --composite epsilon_plus --targets 32

Rates are dense-equivalent: the operations of a dense product, whether or not the step makes them all. A step that
leaves out dead neurons can be above the machine's peak, which is that of a large float32 matrix product in the same
process. "above" and "below" are the shares of a layer's outputs and inputs that carry relevance.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import torch

import fastlrp
from benchmarks import density
from benchmarks.machine import machine, peak_flops
from benchmarks.models import build
from benchmarks.providers import composite
from fastlrp.plan.steps import Emission
from fastlrp.plan.table import align
from fastlrp.run import runner


class Timed:
    """Stands in for a step's function and adds up what its calls cost; otherwise it is that function."""

    def __init__(self, run: Any) -> None:
        self.run, self.seconds, self.faults = run, 0.0, 0

    def __call__(self, *operands: Any, **options: Any) -> torch.Tensor:
        faults, begin = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.perf_counter()
        result: torch.Tensor = self.run(*operands, **options)
        self.seconds += time.perf_counter() - begin
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
    options = parser.parse_args(arguments)
    model, x = build(options.model, size=options.size)
    if options.density is not None:
        density.shift(model, x, options.density)
    share = density.measure(model, x)
    peak = peak_flops()
    targets = list(range(options.targets))
    explainer = fastlrp.Explainer(model, composite(options.composite), backend=options.backend)
    explainer(x, targets[:4])
    begin = time.perf_counter()
    record = explainer.forward(x)
    forward = time.perf_counter() - begin
    with _timed_steps() as steps:
        begin = time.perf_counter()
        record.relevance(targets)
        total = time.perf_counter() - begin
    print(f"{options.model}, {options.composite}, {options.size}x{options.size}, K = {len(targets)}, {machine()}")
    print(f"{share.alive:.2f} of the neurons alive ({share.reached:.2f} reached); peak {peak / 1e9:.0f} GFLOP/s")
    header = ("step", "layer", "path", "above", "below", "ms/target", "dense-equivalent GFLOP/s", "of peak",
              "faults/target")  # fmt: skip
    print(align(header, _rows(record, steps, len(targets), peak), numbers=range(3, 9)))
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

    with mock.patch.object(runner, "propagate", run):
        yield steps


def _rows(record: Any, steps: list[Any], count: int, peak: float) -> list[tuple[str, ...]]:
    paths = {id(path.form): path for path in record.paths.values()}
    rows: list[tuple[str, ...]] = []
    for position, step in enumerate(steps):
        each, rate = step.run.seconds / count, step.work * count / max(step.run.seconds, 1e-9)
        changes_form = step.ins == (step.out,)
        path = None if changes_form else paths.get(id(step.form))
        densities = ("", "") if path is None else (f"{path.above:.2f}", f"{path.below:.2f}")
        kind = "compact" if changes_form else "sparse" if step.least > 1 else "dense"
        numbers = (f"{each * 1e3:.2f}", f"{rate / 1e9:.0f}", f"{rate / peak:.2f}", f"{step.run.faults / count:.0f}")
        rows.append((str(position), step.name, kind, *densities, *numbers))
    return rows


if __name__ == "__main__":
    main()
