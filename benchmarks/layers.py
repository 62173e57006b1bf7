"""Where the time goes: milliseconds, rate and page faults per target of every backward step of one model.

    python -m benchmarks.layers --model vgg16 --composite epsilon_plus --targets 32

Rates are dense-equivalent: the operations of a dense product, whether or not the step makes them all. A step that
leaves out dead neurons can be above the machine's peak, which is that of a large float32 matrix product in the same
process.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Sequence
from typing import Any

import torch

import fastlrp
from benchmarks import density
from benchmarks.machine import machine, peak_flops
from benchmarks.models import build
from benchmarks.providers import composite
from fastlrp.descent import Emission
from fastlrp.table import align


class Timed:
    """Stands in for a step's function and adds up what its calls cost; otherwise it is that function."""

    def __init__(self, run: Any) -> None:
        self.run, self.seconds, self.faults = run, 0.0, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.run, name)

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
    plan = record.plan
    steps = [step for step, _ in plan.schedule(plan.explained_inputs()).steps if not isinstance(step, Emission)]
    for step in steps:
        step.run = Timed(step.run)
    begin = time.perf_counter()
    record.relevance(targets)
    total = time.perf_counter() - begin
    names = {flow.register: value.name for value, flow in plan.builder.flows.items()}
    rows = []
    for position, step in enumerate(steps):
        each, rate = step.run.seconds / len(targets), step.work * len(targets) / max(step.run.seconds, 1e-9)
        numbers = (f"{each * 1e3:.2f}", f"{rate / 1e9:.0f}", f"{rate / peak:.2f}")
        faults = f"{step.run.faults / len(targets):.0f}"
        rows.append((str(position), names.get(step.out, "sum"), *numbers, faults))
    print(f"{options.model}, {options.composite}, {options.size}x{options.size}, K = {len(targets)}, {machine()}")
    print(f"{share.alive:.2f} of the neurons alive; peak {peak / 1e9:.0f} GFLOP/s")
    header = ("step", "relevance of", "ms/target", "dense-equivalent GFLOP/s", "of peak", "faults/target")
    print(align(header, rows, numbers=(2, 3, 4, 5)))
    work = sum(step.work for step in steps)
    print(f"forward {forward:.3f} s, then {total / len(targets):.4f} s/target ({work / 1e9:.1f} dense GFLOP)")


if __name__ == "__main__":
    main()
