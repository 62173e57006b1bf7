"""Models whose parts of the input are asked for, and the clock that both parts of the benchmark read."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

import fastlrp
from benchmarks import attention_models, models
from fastlrp import groups

Row = dict[str, Any]

AGREES = 1e-3
"""Largest relative difference (2-norm) of results that are timed: float32, and others' own stabilizers."""

SHORT = 1.0
"""Seconds below which a call is timed three times, and not twice."""


@dataclass
class Workload:
    """A model with its record, groups by their number, and what is asked besides targets."""

    name: str
    classes: int
    parts: dict[int, Any]
    counts: tuple[int, ...]
    make: Callable[[], tuple[fastlrp.Explainer, Any]]
    given: dict[str, Any]

    @cached_property
    def record(self) -> Any:
        explainer, x = self.make()
        return explainer.forward(x)

    def ask(self, targets: Any, parts: Any, direction: str) -> Tensor:
        found: Tensor = self.record.relevance(targets, groups=parts, direction=direction, **self.given)
        return found


def vgg16(size: int = 224) -> Workload:
    def make() -> tuple[fastlrp.Explainer, Any]:
        model, x = models.build("vgg16", size=size)
        return fastlrp.Explainer(model, "epsilon_plus", example_inputs=x), x

    parts = {n * n: groups.patches(size // n) for n in (4, 7, 14)}
    return Workload("vgg16", 1000, parts, (1, 16, 64), make, {})


def vit(composite: str = "attnlrp") -> Workload:
    def make() -> tuple[fastlrp.Explainer, Any]:
        work = attention_models.build("vit_b_16")
        return fastlrp.Explainer(work.model, composite, example_inputs=work.x), work.x

    parts = {4: groups.patches(112), 16: groups.patches(56)}
    return Workload("vit_b_16", 1000, parts, (4, 16, 64), make, {})


def gpt2() -> Workload:
    def make() -> tuple[fastlrp.Explainer, Any]:
        work = attention_models.build("gpt2")
        x = {"input_ids": work.x}
        return fastlrp.Explainer(work.model, "attnlrp", example_inputs=x, output="logits"), x

    tokens = torch.arange(attention_models.TOKENS)
    parts = {count: groups.labels(tokens * count // len(tokens)) for count in (8, 32, 128)}
    return Workload("gpt2", 50257, parts, (4, 32, 128), make, {"at": attention_models.AT})


WORKLOADS = {"vgg16": vgg16, "vit_b_16": vit, "gpt2": gpt2}


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}

_clock: Callable[[], float] = time.perf_counter


def use_clock(name: str) -> None:
    """From now on :func:`clock` reads this one of :data:`CLOCKS`."""
    global _clock
    _clock = CLOCKS[name]


def clock() -> float:
    """Seconds."""
    return _clock()


def seconds(call: Callable[[], Tensor]) -> tuple[Tensor, float]:
    """What ``call`` gives, and the shortest of three times; a long call is made twice.

    The first call makes what later ones find made: patterns of alive neurons, packed weights, memory of its size.
    """
    best = math.inf
    for turn in range(3):
        begin = clock()
        found = call()
        best = min(best, clock() - begin)
        if best > SHORT and turn == 1:
            break
    return found, best


def difference(found: Tensor, expected: Tensor) -> float:
    """Relative, in the 2-norm."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())
