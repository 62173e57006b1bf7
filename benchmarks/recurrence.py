"""Relevance through one LSTM layer: the C++ kernel beside loops over its steps in PyTorch, and the products alone.

One thread, processor's time, the minimum of repeats in turns; the results are compared first. The products are the
floor: each step multiplies the flows of all targets with the recurrent weight, which no way of writing it leaves out.

    python -m benchmarks.recurrence --units 256 --steps 200 --targets 32
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from fastlrp import Explainer, composites, rules


class LastState(nn.Module):
    """Scores of a class each from the last hidden state."""

    def __init__(self, channels: int, units: int, classes: int) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(channels, units, batch_first=True), nn.Linear(units, classes)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.lstm(x)[0][:, -1])
        return scores


def ways(sizes: argparse.Namespace, stack: ExitStack) -> dict[str, Callable[[], Any]]:
    """What is measured; the first is the kernel."""
    model = LastState(sizes.channels, sizes.units, sizes.targets).eval()
    x = torch.randn(1, sizes.steps, sizes.channels)
    rule = composites.epsilon_plus().with_entries((nn.LSTM, rules.Recurrent()))
    records = {
        backend: stack.enter_context(Explainer(model, rule, backend=backend).forward(x)) for backend in ("cpu", "torch")
    }
    kernel, loop = (record.relevance("all") for record in records.values())
    error = float((kernel - loop).norm() / loop.norm())
    assert error < 1e-4, f"kernel and loop differ by {error:.1e}"
    # Signals take all: of the four blocks of the weight only that of the candidate is read.
    weight = torch.randn(sizes.units, sizes.units) / sizes.units
    flows = torch.randn(sizes.targets, sizes.units)

    def products() -> None:
        for _ in range(sizes.steps):
            torch.matmul(flows, weight)

    return {
        "kernel, all targets": lambda: records["cpu"].relevance("all"),
        "loop, all targets at once": lambda: records["torch"].relevance("all"),
        "loop, target by target": lambda: [records["torch"].relevance([k]) for k in range(sizes.targets)],
        "recurrent products alone": products,
    }


def measure(found: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    best = dict.fromkeys(found, float("inf"))
    for turn in range(repeats):
        for name, way in found.items():
            if "by target" in name and turn > 1:
                continue
            started = time.process_time()
            way()
            best[name] = min(best[name], time.process_time() - started)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recurrence", description=__doc__)
    for name, size in (("units", 256), ("steps", 200), ("targets", 32), ("channels", 64), ("repeats", 15)):
        parser.add_argument(f"--{name}", type=int, default=size)
    sizes = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with ExitStack() as stack:
        best = measure(ways(sizes, stack), sizes.repeats)
    work = 2e-9 * sizes.steps * sizes.targets * sizes.units * (sizes.units + sizes.channels)
    first = next(iter(best.values()))
    print(f"{work:.2f} Gflop in products with both weights, {work / first:.0f} Gflop/s by the kernel")
    for name, seconds in best.items():
        print(f"{name:28} {seconds * 1e3:8.2f} ms {seconds / first:6.2f}")


if __name__ == "__main__":
    main()
