"""The commonest call, one target per image, beside a plain gradient and beside the floor of its products.

    python -m benchmarks.one_target                                   # VGG-16 and ResNet-50, batches of 1 and 8
    python -m benchmarks.one_target --models small,lenet,mlp --repeats 200
    python -m benchmarks.one_target --models vgg16 --batches 1 --steps  # and the time of each step

The floor is the model's own forward pass, one more product for the denominators of each layer whose rule has other
ones than the output (z+, gamma), and one product with the transposed weight for each layer down; each of them is the
fastest call that PyTorch has for its shape, on operands that lie ready, and nothing is done beside them.

Times are processor time of this thread, the least of interleaved repeats, so that other processes count for little; one
thread unless ``--threads`` says otherwise. Outputs are checked before anything is timed. Zennit beside it:
``python -m benchmarks.compare --targets 1``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

import fastlrp
from benchmarks import floors, models
from benchmarks.machine import commit, machine
from benchmarks.providers import composite
from fastlrp.plan.table import align
from fastlrp.run import descent, runner
from fastlrp.run.answers import Answers

Call = Callable[[], Any]

ALLOWED = 1e-4
"""Relative error of float32 explanations against those of float64 that is taken for right."""


@dataclass(frozen=True)
class Case:
    """A model under a composite, with its input and one class per image."""

    model: nn.Module
    x: Tensor
    classes: Tensor
    explainer: fastlrp.Explainer

    def call(self) -> Tensor:
        """One explanation, forward pass included."""
        found: Tensor = self.explainer(self.x, self.classes)
        return found

    def gradient(self) -> Tensor:
        """The gradient of the same scores."""
        x = self.x.clone().requires_grad_()
        (found,) = torch.autograd.grad(self.model(x).gather(1, self.classes).sum(), x)
        return found

    def forward(self) -> Tensor:
        """The model's own pass."""
        with torch.no_grad():
            found: Tensor = self.model(self.x)
        return found


def mlp() -> nn.Module:
    """Three layers on 784 numbers."""
    return nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10)).eval()


def build(name: str, rules: str, batch: int, size: int = 224) -> Case:
    """``name``: one of :func:`benchmarks.models.build`'s, or ``"mlp"``."""
    torch.manual_seed(0)
    model, x = (mlp(), torch.randn(batch, 784)) if name == "mlp" else models.build(name, size=size, batch=batch)
    classes = torch.arange(batch).unsqueeze(1) % 10
    explainer = fastlrp.Explainer(model, composite(rules), example_inputs=x)
    return Case(model, x, classes, explainer)


def second_products(case: Case) -> list[Call]:
    """One more forward product for each layer whose denominators are not its outputs."""
    plan = case.explainer.plan
    apart = {
        node.path for node, rule in plan.rules.items()
        if rule is not None and type(rule).__name__ not in ("Epsilon", "Pass", "Norm", "ZBox", "WSquare", "Flat")
    }  # fmt: skip
    found: list[Call] = []
    for layer in floors.layers(case.model, case.x):
        if layer.name in apart:
            found.append(_fastest(layer, case.x.shape[0]))
    return found


def _fastest(layer: floors.Layer, batch: int) -> Call:
    module = layer.module
    x, weight = torch.rand(batch, *layer.size), module.weight.detach().clamp(min=0)
    if isinstance(module, nn.Linear):
        return lambda: nn.functional.linear(x, weight, module.bias)
    rest = (module.stride, module.padding, module.dilation, module.groups)
    ways: list[Call] = [lambda: torch.conv2d(x, weight, module.bias, *rest)]
    last, narrow = (t.contiguous(memory_format=torch.channels_last) for t in (x, weight))
    ways.append(lambda: torch.conv2d(last, narrow, module.bias, *rest))
    with torch.no_grad():
        return min(ways, key=lambda way: least([way], 3)[0])


def least(calls: Sequence[Call], repeats: int) -> list[float]:
    """Seconds of processor time of each, the least of repeats in turns."""
    found = [float("inf")] * len(calls)
    for _ in range(repeats + 1):
        for i, call in enumerate(calls):
            begin = time.thread_time()
            kept = call()
            found[i] = min(found[i], time.thread_time() - begin)
            del kept
    return found


def check(case: Case) -> float:
    """The relative error of the first image's explanation against float64."""
    found = case.call()[:1]
    narrow = next(case.model.parameters()).dtype
    exact = case.model.double()
    explainer = fastlrp.Explainer(exact, case.explainer.composite)
    right = explainer(case.x[:1].double(), case.classes[:1])
    exact.to(narrow)
    return float((found - right).norm() / right.norm())


def steps(case: Case, repeats: int) -> list[tuple[str, str]]:
    """Milliseconds of processor time of each step of a call, the least of repeats."""
    cost: dict[str, float] = {}
    spent: dict[str, float] = {}

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        begin = time.thread_time()
        yield
        spent[name] = spent.get(name, 0.0) + (time.thread_time() - begin) * 1e3

    by_this = {"profiling": lambda: True, "record_function": timed}
    one_by_one = mock.patch.object(Answers, "may_settle", False)
    with one_by_one, mock.patch.multiple(runner, **by_this), mock.patch.multiple(descent, **by_this):
        for _ in range(repeats):
            spent.clear()
            case.call()
            cost |= {name: min(cost.get(name, float("inf")), milliseconds) for name, milliseconds in spent.items()}
    return [(name, f"{milliseconds:.2f}") for name, milliseconds in cost.items()]


def measured(name: str, rules: str, batch: int, size: int, repeats: int) -> tuple[str, ...]:
    """One row of the table."""
    case = build(name, rules, batch, size)
    error = check(case)
    seconds = second_products(case)
    down = [product.run for product in floors.products(case.model, case.x, batch)]

    def all_of(calls: Sequence[Call]) -> Call:
        def run() -> None:
            with torch.no_grad():
                for each in calls:
                    each()

        return run

    calls = [case.call, case.gradient, case.forward, all_of(seconds), all_of(down)]
    call, gradient, *parts = least(calls, repeats)
    floor = sum(parts[:3])
    cells = [f"{1e3 * s:.3g}" for s in (call, gradient, *parts[:3], floor)]
    ratios = [f"{call / gradient:.2f}", f"{call / floor:.2f}"]
    return (name, rules, str(batch), *cells, *ratios, f"{error:.0e}" + ("" if error <= ALLOWED else " WRONG"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--models", default="vgg16,resnet50")
    parser.add_argument("--composites", default="epsilon_plus,epsilon_gamma_box")
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", action="store_true", help="milliseconds of each step, too")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print(f"{machine()}, commit {commit()}; milliseconds of processor time")
    head = ["model", "composite", "batch", "call", "gradient", "forward", "second", "down", "floor"]
    head += ["of a gradient", "of the floor", "error"]
    rows = []
    for name in given.models.split(","):
        for rules in given.composites.split(","):
            for batch in map(int, given.batches.split(",")):
                rows.append(measured(name, rules, batch, given.size, given.repeats))
                print(*rows[-1], flush=True)
                if given.steps:
                    print(align(("step", "ms"), steps(build(name, rules, batch, given.size), 3), numbers=(1,)))
    print(align(head, rows, numbers=range(2, len(head))))


if __name__ == "__main__":
    main()
