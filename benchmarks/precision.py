"""How far explanations with products of bfloat16 are from those of float64, and how much faster than in float32.

    OMP_NUM_THREADS=1 python -m benchmarks.precision --models vgg16,resnet50,convnext_tiny,gpt2,vit_b_16
    OMP_NUM_THREADS=1 python -m benchmarks.precision --models vgg16,resnet50 --precision auto --targets 1

The second is the same for Winograd's filtering, which ``precision="auto"`` has in float32.

Errors are those of whole explanations, per target: ``||R - R64|| / ||R64||`` over all entries of the input, and the
rank correlation of the maps that people look at, pixels or tokens with their channels summed up. Models have random
weights. Times are those of one call with all targets, forward pass included: CPU time, so that other processes do not
count, the best of a few; both precisions take turns. Give one thread.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import fastlrp
from benchmarks import attention_models, models
from benchmarks.machine import commit, machine
from benchmarks.providers import composite
from fastlrp.plan.table import align
from fastlrp.precision import instruction_set

COMPOSITES = {
    "vgg16": ("epsilon_plus", "epsilon_gamma_box", "epsilon_alpha2_beta1"),
    "resnet50": ("epsilon_plus", "epsilon_gamma_box", "epsilon_alpha2_beta1"),
    "mobilenet_v2": ("epsilon_plus", "epsilon_gamma_box", "epsilon_alpha2_beta1"),
    "efficientnet_b0": ("epsilon_plus", "epsilon_gamma_box", "epsilon_alpha2_beta1"),
    "convnext_tiny": ("epsilon_plus",),
    "gpt2": ("attnlrp",),
    "bert_base": ("attnlrp",),
    "vit_b_16": ("attnlrp", "cp_lrp"),
    "swin_t": ("attnlrp",),
}
"""What each model is explained under."""

ALLOWED = {True: 5e-3, False: 1e-2}
"""The largest median error of a target: of convolutional networks, and of others."""

CORRELATED = 0.999


@dataclass(frozen=True)
class Row:
    """One model under one composite.

    Attributes:
        error, worst: the median and the largest relative error of a target, in bf16 unless asked otherwise. full: the
            median in float32.
        correlation: the lowest rank correlation of a target's map.
        seconds: of CPU time of one call in float32 and in bf16, the best of a few. allowed: what the median may be.
    """

    model: str
    composite: str
    error: float
    worst: float
    full: float
    correlation: float
    seconds: tuple[float, float]
    allowed: float

    @property
    def cells(self) -> tuple[str, ...]:
        """As the table has them."""
        full, reduced = self.seconds
        numbers = (f"{self.full:.1e}", f"{self.error:.1e}", f"{self.worst:.1e}", f"{self.correlation:.5f}")
        fits = self.error <= self.allowed and self.correlation >= CORRELATED
        times = (f"{full:.3f}", f"{reduced:.3f}", f"{full / reduced:.2f}")
        return (self.model, self.composite, *numbers, *times, "yes" if fits else "no")


def header(precision: str) -> tuple[str, ...]:
    """Of the table; ``precision``: what stands beside float32."""
    errors = ("float32: median error", f"{precision}: median error", "worst", "rank correlation")
    return ("model", "composite", *errors, "float32, s", f"{precision}, s", "faster", "within")


def built(name: str, size: int) -> tuple[nn.Module, Tensor, dict[str, Any]]:
    """A model, its input and what a call needs besides."""
    if name in attention_models.MADE:
        found = attention_models.build(name)
        options = {"output": "logits"} if found.is_text else {}
        return found.model, found.x, options
    model, x = models.build(name, size=size)
    return model, x, {}


def measure(name: str, rule: str, targets: int, size: int, repeats: int, precision: str) -> Row:
    """One row of the table."""
    model, x, options = built(name, size)
    classes = [7 * i + 1 for i in range(targets)]
    asked = {"at": attention_models.AT} if options else {}

    def explainer(of: nn.Module, precision: str) -> fastlrp.Explainer:
        return fastlrp.Explainer(of, composite(rule), precision=precision, **options)  # type: ignore[arg-type]

    exact = explainer(copy.deepcopy(model).double(), "float32")
    expected = exact(x.double() if x.is_floating_point() else x, classes, **asked)
    both = [explainer(model, "float32"), explainer(model, precision)]
    found = [each(x, classes, **asked) for each in both]
    seconds = [float("inf")] * 2
    for _ in range(repeats):
        for i, each in enumerate(both):
            begin = time.process_time()
            each(x, classes, **asked)
            seconds[i] = min(seconds[i], time.process_time() - begin)
    full, reduced = (errors(each, expected) for each in found)
    correlation = rank_correlation(pixels(found[1]), pixels(expected)).min().item()
    allowed = ALLOWED[name not in attention_models.MADE]
    numbers = reduced.median().item(), reduced.max().item(), full.median().item(), correlation
    return Row(name, rule, *numbers, (seconds[0], seconds[1]), allowed)


def errors(found: Tensor, expected: Tensor) -> Tensor:
    """Relative errors of targets, ``(B * K)``."""
    found, expected = found.double().flatten(0, 1).flatten(1), expected.flatten(0, 1).flatten(1)
    return (found - expected).norm(dim=1) / expected.norm(dim=1)


def pixels(relevance: Tensor) -> Tensor:
    """``(B * K, places)``: channels of images summed up; tokens have none left."""
    maps = relevance.sum(2) if relevance.dim() == 5 else relevance
    return maps.double().flatten(0, 1).flatten(1)


def rank_correlation(a: Tensor, b: Tensor) -> Tensor:
    """Spearman's, row by row."""
    first, second = (t.argsort(1).argsort(1).double() for t in (a, b))
    first, second = (t - t.mean(1, keepdim=True) for t in (first, second))
    return (first * second).sum(1) / (first.norm(dim=1) * second.norm(dim=1))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="vgg16,resnet50,convnext_tiny,gpt2,vit_b_16")
    parser.add_argument("--composites", help="instead of each model's own, separated by commas")
    parser.add_argument("--targets", type=int, default=8)
    parser.add_argument("--size", type=int, default=224, help="side of the images of convolutional networks")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--precision", default="bf16", choices=("bf16", "auto"), help="what stands beside float32")
    options = parser.parse_args(arguments)
    rows = []
    for name in options.models.split(","):
        for rule in options.composites.split(",") if options.composites else COMPOSITES[name]:
            rows.append(measure(name, rule, options.targets, options.size, options.repeats, options.precision))
            print(*rows[-1].cells, flush=True)
    print(f"\n{options.targets} targets, {machine()}, {instruction_set()}, PyTorch {torch.__version__}, {commit()}\n")
    print(align(header(options.precision), [row.cells for row in rows], numbers=range(2, 9)))


if __name__ == "__main__":
    main()
