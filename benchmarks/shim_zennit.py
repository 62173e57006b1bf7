"""Zennit's attributor against its drop-in replacement: the same script, one import apart, in turns in one process.

    python -m benchmarks.shim_zennit
    python -m benchmarks.shim_zennit --models resnet18 --composites epsilon_plus --targets 1,32 --repeats 5

Outputs are compared first; what differs by more than 1e-4 is not timed. K targets are a loop of calls for Zennit, of
which ``--peer-targets`` rounds are measured, and one call with ``targets=`` for the replacement. Composites and
canonizers are Zennit's own in both. The first call, which captures the model, is shown apart.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import measure
from benchmarks.machine import machine, provenance, version
from benchmarks.models import build, torchvision_models
from benchmarks.providers import HIGH, LOW, Mark, Provider
from fastlrp.compat.zennit import Gradient

COMPOSITES = ("epsilon_plus_flat", "epsilon_gamma_box")


class Functional(nn.Module):
    """Modules with functional code between them, of which Zennit sees the modules only."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, stride=2, padding=1)
        self.left, self.right = nn.Conv2d(32, 32, 3, padding=1), nn.Conv2d(32, 32, 1)
        self.mixed = nn.Conv2d(64, 128, 3, padding=1)
        self.act, self.head = nn.ReLU(), nn.Linear(128, 100)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.act(self.stem(x)), 2)
        x = torch.cat([F.relu(self.left(x)) + x, self.act(self.right(x))], 1)
        return self.head(self.act(self.mixed(F.max_pool2d(x, 2))).mean((2, 3)))


def model_of(name: str, size: int) -> tuple[nn.Module, Tensor]:
    """A model in evaluation mode with random weights, and an image."""
    if name != "functional":
        return build(name, size=size)
    torch.manual_seed(0)
    return Functional().eval(), torch.randn(1, 3, size, size)


def composite_of(name: str, model: str) -> Any:
    """Zennit's composite with Zennit's canonizer for that model."""
    import zennit.composites
    import zennit.torchvision

    known = {"vgg": zennit.torchvision.VGGCanonizer, "resnet": zennit.torchvision.ResNetCanonizer}
    options: dict[str, Any] = {"canonizers": [make() for family, make in known.items() if model.startswith(family)]}
    if name == "epsilon_gamma_box":
        options.update(low=LOW, high=HIGH)
    return zennit.composites.COMPOSITES[name](**options)


def _scores(classes: Tensor, k: int) -> Callable[[Tensor], Tensor]:
    return lambda output: torch.zeros_like(output).scatter(1, classes[:, k : k + 1], 1.0) * output


def providers(model: nn.Module, composite: Any, peer_targets: int) -> list[Provider]:
    """Both attributors under one script; the first is the replacement."""
    import zennit.attribution

    def at_once(x: Tensor, classes: Tensor, mark: Mark) -> Tensor:
        with Gradient(model, composite) as attributor:
            found: Tensor = attributor(x, targets=classes)[1]
        return found.transpose(0, 1)

    def looped(x: Tensor, classes: Tensor, mark: Mark) -> Tensor:
        with zennit.attribution.Gradient(model, composite) as attributor:
            found = [attributor(x, _scores(classes, k))[1] for k in range(classes.shape[1])]
        return torch.stack(found, 1)

    return [Provider("fastlrp shim", at_once), Provider("zennit looped", looped, peer_targets)]


def first_call(model: nn.Module, composite: Any, x: Tensor) -> float:
    """Seconds of a call that has to capture the model."""
    begin = time.perf_counter()
    Gradient(model, composite)(x, targets=0)
    return time.perf_counter() - begin


HEAD = ("model", "composite", "targets", "Zennit, s/target", "ours, s/target", "times faster", "spread", "differs by")


def cells(rows: list[dict[str, Any]]) -> list[str]:
    """One line of the table from the two rows of one question."""
    ours, theirs = rows
    question = [str(ours[key]) for key in ("model", "composite", "targets")]
    if theirs["reason"] is not None:
        return [*question, *("–",) * 4, f"not timed: {theirs['reason']}"]
    times = [f"{row['seconds_per_target']:.4f}" for row in (theirs, ours)]
    spread = max(ours["spread"], theirs["spread"])
    return [*question, *times, f"{ours['times_faster_than_zennit']:.1f}", f"{spread:.2f}", f"{theirs['error']:.0e}"]


def table(lines: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    head = ["| " + " | ".join(HEAD) + " |", "| --- | --- |" + " ---: |" * (len(HEAD) - 2)]
    return "\n".join([*head, *("| " + " | ".join(line) + " |" for line in lines)])


def _words(text: str) -> list[str]:
    return text.split(",")


def parser() -> argparse.ArgumentParser:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = words.add_argument
    add("--models", type=_words, default=["vgg11", "resnet18", "functional"], help="torchvision's names, or functional")
    add("--composites", type=_words, default=list(COMPOSITES), help="Zennit's names, with commas")
    add("--targets", type=_words, default=["1", "32"], help="numbers of targets, with commas")
    add("--peer-targets", type=int, default=2, help="targets per call that Zennit is measured with")
    add("--size", type=int, default=224, help="side of the image")
    add("--repeats", type=int, default=3)
    add("--output", default="", help="file to append rows to; '' for none")
    return words


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, append."""
    given = parser().parse_args(arguments)
    torchvision_models()  # zennit imports torchvision.
    print(f"{machine()}, PyTorch {torch.__version__}, Zennit {version('zennit')}, 1 image of {given.size}x{given.size}")
    made = provenance("python -m benchmarks.shim_zennit")
    lines, kept = [], []
    for name in given.models:
        model, x = model_of(name, given.size)
        for rule in given.composites:
            composite = composite_of(rule, name)
            seconds = first_call(model, composite, x)
            print(f"{name}, {rule}: first call {seconds:.2f} s", flush=True)
            for count in map(int, given.targets):
                classes = torch.arange(count).unsqueeze(0)
                case = measure.Case("shim", name, rule, classes, given.size)
                found = measure.measure(providers(model, composite, given.peer_targets), x, classes, given.repeats)
                rows = measure.rows(case, found, made)
                kept += rows
                lines.append(cells(rows))
    print("\n" + table(lines))
    if given.output:
        with open(given.output, "a") as file:
            file.writelines(json.dumps(row) + "\n" for row in kept)


if __name__ == "__main__":
    main()
