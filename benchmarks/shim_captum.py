"""Captum's LRP against its drop-in replacement: the same script, one import apart, in turns in one process.

    python -m benchmarks.shim_captum
    python -m benchmarks.shim_captum --models vgg11 --targets 1,32 --repeats 5

Outputs are compared first, in float64. What is timed is ``LRP(model).attribute`` in float32, rules attached anew each
time; for K targets Captum is called in a loop, of which ``--peer-targets`` rounds are measured, and the replacement
once with ``targets=``. The capture, at the first call, is shown apart.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
import types
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastlrp.compat.captum as shim
from benchmarks.machine import machine, version
from benchmarks.measure import disagreement
from benchmarks.models import build
from fastlrp.compat.captum.explainer import forget_graphs

AGREES = 1e-9
"""Largest relative difference (2-norm of any target) of outputs in float64."""

COMPARED = 2
"""Targets that are compared."""


def additive_resnet18(addition: Callable[[], nn.Module], size: int = 224) -> tuple[nn.Module, Tensor]:
    """torchvision's ResNet-18 as Captum asks for it: additions are modules, one for each block."""
    model, x = build("resnet18", size=size)

    def forward(block: Any, x: Tensor) -> Tensor:
        y = block.bn2(block.conv2(block.relu(block.bn1(block.conv1(x)))))
        return block.relu(block.add(y, x if block.downsample is None else block.downsample(x)))

    for block in model.modules():
        if type(block).__name__ == "BasicBlock":
            block.add = addition()
            block.forward = types.MethodType(forward, block)
    return model, x


class Functional(nn.Module):
    """Everything but the layers with a weight is functional code, as many write it."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 32, 64, 64, 128)
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths))
        self.head = nn.Linear(128, 64)
        self.out = nn.Linear(64, 100)

    def forward(self, x: Tensor) -> Tensor:
        x = (x - 0.1) / 1.1
        for layer in self.layers:
            x = F.max_pool2d(F.relu(layer(x)), 2)
        return self.out(torch.tanh(self.head(x.mean((2, 3)))))


def functional(size: int = 224) -> tuple[nn.Module, Tensor]:
    """:class:`Functional` with random weights, and an image."""
    torch.manual_seed(0)
    return Functional().eval(), torch.randn(1, 3, size, size)


def vgg11(size: int = 224) -> tuple[nn.Module, Tensor]:
    """torchvision's, with random weights, and an image."""
    return build("vgg11", size=size)


def attach(model: nn.Module, rules: Any, how: str = "mixed") -> None:
    """Alpha1-beta0 on the first third of the convolutions, gamma on the second, epsilon on the rest and on linear.

    ``how="default"``: nothing, so that every layer gets ``EpsilonRule(1e-9)``.
    """
    if how == "default":
        return
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    third = -(-len(convolutions) // 3)
    module: Any
    for i, module in enumerate(convolutions):
        module.rule = (rules.Alpha1_Beta0_Rule(), rules.GammaRule(0.25), rules.EpsilonRule(1e-6))[i // third]
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.rule = rules.EpsilonRule(1e-6)


def looped(lrp: Any, rules: Any, how: str, x: Tensor, classes: Sequence[int]) -> Tensor:
    """``(B, K, …)``, a call for each target."""
    found = []
    for target in classes:
        attach(lrp.model, rules, how)
        found.append(lrp.attribute(x, target=target).detach())
    return torch.stack(found, 1)


def at_once(lrp: shim.LRP, how: str, x: Tensor, classes: Sequence[int]) -> Tensor:
    """``(B, K, …)``, one call."""
    attach(lrp.model, shim, how)
    found: Tensor = lrp.attribute(x, targets=list(classes))
    return found


@dataclass(frozen=True)
class Row:
    """One question and what was found. Seconds are per target and medians; spread is longest over shortest."""

    model: str
    how: str
    targets: int
    captum: float
    ours: float
    spread: float
    capture: float
    error: float

    def cells(self) -> list[str]:
        return [
            self.model,
            self.how,
            str(self.targets),
            f"{self.captum:.4f}",
            f"{self.ours:.4f}",
            f"{self.captum / self.ours:.1f}",
            f"{self.spread:.2f}",
            f"{self.capture:.2f}",
            f"{self.error:.0e}",
        ]


HEAD = (
    "model", "rules", "targets", "Captum, s/target", "ours, s/target", "times faster", "spread", "first call, s",
    "differs by",
)  # fmt: skip


@dataclass(frozen=True)
class Options:
    """How to measure: numbers of targets, of targets that Captum is measured with, of repeats."""

    counts: Sequence[int] = (1, 32)
    peer_targets: int = 2
    repeats: int = 3


def measure(name: str, how: str, model: nn.Module, x: Tensor, options: Options) -> list[Row]:
    """The rows of a model under one choice of rules.

    Raises:
        RuntimeError: if the outputs disagree; then nothing is timed.
    """
    from captum.attr import LRP
    from captum.attr._utils import lrp_rules

    exact, wide, some = copy.deepcopy(model).double(), x.double(), range(COMPARED)
    error = disagreement(at_once(shim.LRP(exact), how, wide, some), looped(LRP(exact), lrp_rules, how, wide, some))
    if not error <= AGREES:
        raise RuntimeError(f"{name}: outputs differ by {error:.1e}, more than {AGREES:.0e}: not timed")
    del exact
    ours, theirs = shim.LRP(model), LRP(model)
    forget_graphs(model)
    capture = _seconds(lambda: at_once(ours, how, x, [0]))
    rows = []
    for count in options.counts:
        asked = min(count, options.peer_targets)
        turns = [
            (
                _seconds(lambda asked=asked: looped(theirs, lrp_rules, how, x, range(asked))) / asked,
                _seconds(lambda count=count: at_once(ours, how, x, range(count))) / count,
            )
            for _ in range(options.repeats + 1)
        ][1:]  # The first of each warms up.
        both = list(zip(*turns, strict=True))
        spread = max(max(seconds) / min(seconds) for seconds in both)
        rows.append(Row(name, how, count, *map(statistics.median, both), spread, capture, error))
    return rows


def _seconds(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    result = call()
    end = time.perf_counter()
    del result
    return end - begin


def models(size: int) -> dict[str, Callable[[], tuple[nn.Module, Tensor]]]:
    """What can be asked for by name."""
    from captum.attr._utils.custom_modules import Addition_Module

    return {
        "vgg11": lambda: vgg11(size),
        "resnet18": lambda: additive_resnet18(Addition_Module, size),
        "functional": lambda: functional(size),
    }


def table(rows: Sequence[Row]) -> str:
    """Markdown."""
    lines = ["| " + " | ".join(HEAD) + " |", "| --- | --- |" + " ---: |" * (len(HEAD) - 2)]
    return "\n".join([*lines, *("| " + " | ".join(row.cells()) + " |" for row in rows)])


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = words.add_argument
    add("--models", default="vgg11,resnet18,functional", help="of these three, with commas")
    add("--rules", default="default,mixed", help="of these two, with commas; see attach()")
    add("--targets", default="1,32", help="numbers of targets, with commas")
    add("--peer-targets", type=int, default=2, help="targets per call that Captum is measured with")
    add("--size", type=int, default=224, help="side of the image")
    add("--repeats", type=int, default=3)
    given = words.parse_args(arguments)
    warnings.filterwarnings("ignore", "Input Tensor", UserWarning)  # Captum says that it set requires_grad.
    makers = models(given.size)
    names, hows = given.models.split(","), given.rules.split(",")
    for option, asked, known in (("--models", names, list(makers)), ("--rules", hows, ["default", "mixed"])):
        if unknown := set(asked) - set(known):
            words.error(f"{option}: {', '.join(sorted(unknown))} not known; expected of {', '.join(known)}")
    options = Options([int(word) for word in given.targets.split(",")], given.peer_targets, given.repeats)
    print(f"{machine()}, PyTorch {torch.__version__}, Captum {version('captum')}, 1 image of {given.size}x{given.size}")
    rows = []
    for name in names:
        model, x = makers[name]()
        for how in hows:
            rows += measure(name, how, model, x, options)
            print(f"{name}, {how}: done", flush=True)
    print("\n" + table(rows))


if __name__ == "__main__":
    main()
