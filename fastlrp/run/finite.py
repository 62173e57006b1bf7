"""Whether numbers are finite: those in tensors, and those of rules."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass
from functools import cache

import torch
from torch import Tensor

from fastlrp.backends.extension import loaded
from fastlrp.capture.graph import Node
from fastlrp.rules import Rule
from fastlrp.stabilizer import Stabilizer


def total(x: Tensor) -> Tensor:
    """The sum of all entries, in float32 or wider: finite if they are, unless it overflows."""
    return x.sum(dtype=torch.float32) if x.element_size() < 4 else x.sum()


AT_ONCE = 1 << 16
"""Up to so many entries the extension looks at them in less time than PyTorch takes for a call; of more PyTorch makes a
sum on all threads."""


@cache
def _compiled() -> Callable[[Tensor], bool | None]:
    """The extension's own look, which answers None for tensors that it doesn't read, as it is here without one."""
    found: Callable[[Tensor], bool | None] = getattr(loaded(), "all_finite", lambda x: None)
    return found


def all_finite(x: Tensor) -> bool:
    """Whether every entry is finite, by one pass over them."""
    known = _compiled()(x) if x.is_cpu and x.numel() <= AT_ONCE else None
    return math.isfinite(float(total(x))) or bool(torch.isfinite(x).all()) if known is None else known


def check_numbers(rules: Mapping[Node, Rule | None], dtype: torch.dtype) -> None:
    """Refuse rules with numbers that a plan's dtype does not have, such as 1e39 in float32.

    Raises:
        ValueError: naming the layer and the number.
    """
    largest = torch.finfo(dtype).max
    for node, rule in rules.items():
        for name, size in _sizes(rule):
            if not size <= largest:
                raise ValueError(
                    f"{rule} at {node}: {name} is {size:g}, and the largest number of the model's {dtype} is "
                    f"{largest:.3g}: use a smaller one, or a float64 copy of the model"
                )


def _sizes(item: Rule | Stabilizer | None) -> Iterable[tuple[str, float]]:
    """Names and sizes of a rule's numbers."""
    if is_dataclass(item) and not isinstance(item, type):
        for field in fields(item):
            value = getattr(item, field.name)
            if isinstance(value, Stabilizer):
                yield from _sizes(value)
            elif isinstance(value, Tensor) and value.numel():
                yield field.name, float(value.abs().max())
            elif isinstance(value, (int, float)):
                yield field.name, abs(value)
