"""Where the time goes: seconds per target, GFLOP/s and page faults of every backward step of one model.

python -m benchmarks.layers --model vgg16 --composite epsilon_plus --targets 32
"""

from __future__ import annotations

import argparse
import resource
import time
from typing import Any

import torch

import fastlrp
from benchmarks.compare import machine
from benchmarks.models import build
from benchmarks.providers import composite
from fastlrp.descent import Emission
from fastlrp.table import align


class Timed:
    """Stands in for a step's function and adds up what its calls cost."""

    def __init__(self, run: Any) -> None:
        self.run, self.seconds, self.faults = run, 0.0, 0
        self.accepts_one_hot = getattr(run, "accepts_one_hot", False)

    def __call__(self, *operands: Any) -> torch.Tensor:
        faults, begin = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.perf_counter()
        result: torch.Tensor = self.run(*operands)
        self.seconds += time.perf_counter() - begin
        self.faults += resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
        return result


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vgg16")
    parser.add_argument("--composite", default="epsilon_plus")
    parser.add_argument("--targets", type=int, default=32)
    parser.add_argument("--backend", default="auto")
    options = parser.parse_args()
    model, x = build(options.model)
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
        faults = step.run.faults / len(targets)
        rows.append(
            (str(position), names.get(step.out, "sum"), f"{each * 1e3:.2f}", f"{rate / 1e9:.0f}", f"{faults:.0f}")
        )
    print(f"{options.model}, {options.composite}, K = {len(targets)}, {machine()}")
    print(align(("step", "relevance of", "ms/target", "GFLOP/s", "faults/target"), rows, numbers=(2, 3, 4)))
    work = sum(step.work for step in steps)
    print(f"forward {forward:.3f} s, then {total / len(targets):.4f} s/target ({work / 1e9:.1f} GFLOP)")


if __name__ == "__main__":
    main()
