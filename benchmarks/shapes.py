"""The calls that real models make: every distinct call of an operation, with the arguments that the plan gives it.

Nothing is typed by hand. A model is explained once while a listener stands between the plan and the backends; what it
hears are weights, coefficients and indices of real layers, so that their zeros are where a network's zeros are.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor

import fastlrp
from benchmarks.models import build
from benchmarks.providers import composite
from fastlrp import library
from fastlrp.backends import dispatch
from fastlrp.composites import Composite
from fastlrp.plan.products import layer_calls
from fastlrp.run import runner

CPU = torch.device("cpu")

Heard = dict[tuple[Any, ...], "Call"]


def _composites(model: str) -> list[Composite]:
    """Enough of them that every operation is called; what pools do otherwise is asked of VGGs alone."""
    usual = [composite("epsilon_plus"), composite("epsilon_gamma_box")]
    pools = [fastlrp.composites.epsilon_plus(max_pool=mode) for mode in ("ties", "average")]
    return [*usual, *(pools if model.startswith("vgg") else [])]


def argument_names(op: str) -> list[str]:
    """Names of an operation's arguments, in order."""
    inside = library.SCHEMAS[op].split("*,")[0].strip("() ")
    return re.findall(r"(\w+)(?:=[^,]*)?\s*(?:,|$)", re.sub(r"\[\]|\?", "", inside))


@dataclass(frozen=True, eq=False)
class Call:
    """One call of an operation. The relevance is made anew for any number of targets; the rest is what was heard.

    Attributes:
        relevance: shape of what flows down, ``(B, K, …)``, and its axes after K from the outermost in memory to the
            innermost; None for an operation that has no targets.
        rest: the other arguments.
    """

    op: str
    model: str
    relevance: tuple[tuple[int, ...], tuple[int, ...]] | None
    rest: tuple[Any, ...]

    def arguments(self, targets: int) -> tuple[Any, ...]:
        """All arguments, for a block of ``targets``."""
        if self.relevance is None:
            return self.rest
        shape, order = self.relevance
        flow = torch.randn(shape[0], targets, *(shape[axis] for axis in order))
        places = [2 + order.index(axis) for axis in range(2, len(shape))]
        return (flow.permute(0, 1, *places), *self.rest)

    @property
    def size(self) -> int:
        """How large: entries that flow in, times those of one row of a weight if there is one."""
        flowing = math.prod(self.rest[0].shape if self.relevance is None else self.relevance[0][2:])
        if self.op not in ("conv_relevance", "linear_relevance"):
            return flowing
        weight = self.rest[0]
        return flowing * (weight.numel() // weight.shape[0])

    def __str__(self) -> str:
        names = argument_names(self.op)
        if self.relevance is None:
            parts, rest = [], list(zip(names, self.rest, strict=False))
        else:
            parts, rest = [_dims(self.relevance[0][2:])], list(zip(names[1:], self.rest, strict=False))
        for name, value in rest:
            if name in ("weight", "z"):
                parts.append(f"{name}={_dims(value.shape)}")
            elif isinstance(value, Tensor) or value is True:
                parts.append(name)
            elif name in ("stride", "rule") and value != [1] * len(value):
                parts.append(f"{name}={value if isinstance(value, str) else _dims(value)}")
        return " ".join([self.model, *parts])


def _dims(sizes: Any) -> str:
    return "x".join(map(str, sizes))


def calls(model: str, size: int = 224) -> list[Call]:
    """Every distinct call that explaining ``model`` makes, by operation."""
    network, x = build(model, size=size)
    heard: Heard = {}
    for rules in _composites(model):
        with _listening(model, heard):
            # Of the composed PyTorch operations alone: kernels for living neurons are not called layer by layer.
            explainer = fastlrp.Explainer(network, rules, example_inputs=x, backend="torch")
        # Every product through its operation, none written over its operand.
        with mock.patch.object(runner, "economize", lambda steps, known: steps), explainer.forward(x) as record:
            # Two targets that are no classes: a class would select rows of the last layer instead of calling it.
            record.relevance(torch.rand(2, record.scores.shape[1]))
    return sorted(heard.values(), key=lambda call: dispatch.OPS.index(call.op))


@contextmanager
def _listening(model: str, heard: Heard) -> Iterator[None]:
    """Plans made in here call the backends through a listener, then and later."""
    original = dispatch._callable

    def listened(backend: str, op: str) -> Callable[..., Any]:
        run = original(backend, op)

        def call(*arguments: Any) -> Any:
            heard.setdefault(_signature(op, arguments), _call(op, model, arguments))
            return run(*arguments)

        return call

    dispatch._select.cache_clear()
    dispatch._callable = listened
    try:
        # Nor are products bound beforehand, which pass the operation by.
        with mock.patch.object(layer_calls, "product", return_value=None):
            yield
    finally:
        dispatch._callable = original
        dispatch._select.cache_clear()


def _signature(op: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return (op, *(("tensor", *a.shape) if isinstance(a, Tensor) else repr(a) for a in arguments))


def _call(op: str, model: str, arguments: tuple[Any, ...]) -> Call:
    if argument_names(op)[0] != "relevance":
        return Call(op, model, None, arguments)
    flow = arguments[0]
    order = sorted(range(2, flow.dim()), key=lambda axis: (-flow.stride(axis), axis))
    return Call(op, model, (tuple(flow.shape), tuple(order)), arguments[1:])


def few(found: list[Call], count: int) -> list[Call]:
    """For each operation the largest call, the smallest, and some between."""
    chosen: list[Call] = []
    for op in dispatch.OPS:
        own = sorted((call for call in found if call.op == op), key=lambda call: call.size)
        if len(own) <= count:
            chosen += own
        else:
            chosen += [own[round(i * (len(own) - 1) / max(1, count - 1))] for i in range(count)]
    return chosen


def error(call: Call, backend: str) -> float:
    """Largest relative difference (2-norm) of a backend's result from the definition's, for one target."""
    arguments = call.arguments(1)
    ours, expected = (
        dispatch.select(call.op, name, CPU, torch.float32).call(*arguments) for name in (backend, "reference")
    )
    pairs = [(ours, expected)] if isinstance(ours, Tensor) else list(zip(ours, expected, strict=True))
    return max(float((a - b).norm() / b.norm().clamp(min=1e-30)) for a, b in pairs if b is not None)
