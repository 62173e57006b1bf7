"""What an attributor is asked: where relevance starts, for one initial relevance or for many at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastlrp.run.record import ForwardRecord

Start = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Question:
    """A function of the model's output that gives the relevance to start with, and what else was asked.

    Attributes:
        start: output -> initial relevance of its shape, or of ``(K, *output.shape)`` for K questions.
        targets: take the initial relevance apart into one question per class.
        layers: also the relevance of these modules' outputs.
    """

    start: Start
    targets: Any = None
    layers: Any = None

    def __call__(self, output: Tensor) -> Tensor:
        return self.start(output)


def starting(attr_output: Any, default: Start) -> Start:
    """Zennit's ``attr_output`` as a function: None is the default, a tensor is itself, a function stays one.

    Raises:
        TypeError: for anything else.
    """
    if attr_output is None:
        return default
    if callable(attr_output):
        return attr_output
    if not isinstance(attr_output, Tensor):
        raise TypeError(
            f"attr_output must be a tensor of the output's shape, a function of the output, or None for the output "
            f"itself; got {type(attr_output).__name__}. For classes by number use targets={attr_output!r}"
        )
    return lambda output: attr_output


def identity(output: Tensor) -> Tensor:
    """The output itself."""
    return output


def answer(record: ForwardRecord, question: Question) -> Any:
    """The relevance: ``(B, …)`` for one question, ``(K, B, …)`` for many; with layers a dict of it.

    Raises:
        TypeError, ValueError: for an initial relevance that does not fit the output.
    """
    if question.targets is not None:
        initial: Any = "output" if question.start is identity else lambda y: _checked(question.start(y), y, single=True)
        found = record.relevance(question.targets, initial, question.layers)
        return _each(found, many=True)
    output = record.scores
    start = _checked(question.start(output.clone()), output)
    many = start.dim() > output.dim()
    targets = start.transpose(0, 1) if many else start.unsqueeze(1)
    return _each(record.relevance(targets, layers=question.layers), many)


def _each(found: Any, many: bool) -> Any:
    if isinstance(found, dict):
        return {name: _each(part, many) for name, part in found.items()}
    return found.transpose(0, 1) if many else found.squeeze(1)


def _checked(start: Any, output: Tensor, single: bool = False) -> Tensor:
    shape = tuple(output.shape)
    if not isinstance(start, Tensor):
        raise TypeError(f"attr_output must give a tensor {shape}, the shape of the output, got {type(start).__name__}")
    several = not single and start.dim() == output.dim() + 1 and start.shape[0] > 0
    if tuple(start.shape) != shape and not (several and tuple(start.shape[1:]) == shape):
        many = "" if single else f", or (K, {', '.join(map(str, shape))}) for K questions at once"
        raise ValueError(
            f"attr_output must have the output's shape {shape}{many}; got {tuple(start.shape)}. For one class per "
            "sample: torch.eye(classes)[[index]], or targets=index"
        )
    if start.is_complex():
        raise TypeError(f"attr_output must be real numbers as the output is, got {start.dtype}: use .real")
    if start.device != output.device:
        raise ValueError(f"attr_output is on {start.device}, the model's output is on {output.device}: use .to(output)")
    if not bool(torch.isfinite(start).all()):
        raise ValueError("attr_output contains NaN or infinity: relevance would be NaN everywhere")
    return start.detach().to(output.dtype)
