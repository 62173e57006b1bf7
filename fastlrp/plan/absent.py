"""Steps whose factor is 1: the functions get None in its place, and no slot is read."""

from __future__ import annotations

from collections.abc import Callable
from operator import itemgetter
from typing import Any

from torch import Tensor


def without_absent(
    run: Callable[..., Any], others: dict[str, Any], registers: int, results: int, absent: list[bool]
) -> tuple[Callable[..., Any], dict[str, Any]]:
    """A step's functions, called without the slots that are absent: ``run`` and those among its ``others``."""
    others = dict(others)
    over = others.get("overwrites", {})
    if over:
        others["overwrites"] = {at: _with_absent(call, registers, absent) for at, call in over.items()}
    if others.get("unpooled") is not None:  # It takes the pool's index and geometry before the slots.
        others["unpooled"] = _with_absent(others["unpooled"], registers + 2, absent)
    for name, first in (
        ("in_full", registers),
        ("into", 2 + registers),
        ("up", results),
        ("up_at", 1 + results),
        ("up_from", 1 + results),
    ):
        if others.get(name) is not None:
            others[name] = _with_absent(others[name], first, absent)
    return _with_absent(run, registers, absent), others


def _with_absent(run: Callable[..., Tensor], registers: int, absent: list[bool]) -> Callable[..., Tensor]:
    present = absent.index(True)
    if all(absent[present:]):  # As a rule the last ones: a call of a small network is mostly made of such steps.
        rest = (None,) * (len(absent) - present)

        def without_the_last(*operands: Tensor) -> Tensor:
            return run(*operands, *rest)

        return without_the_last

    given = iter(range(registers + len(absent)))
    chosen = itemgetter(*(-1 if missing else next(given) for missing in [False] * registers + absent))

    def with_absent(*operands: Tensor) -> Tensor:
        return run(*chosen((*operands, None)))

    return with_absent
