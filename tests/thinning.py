"""Which cases of a grid of parameters stand for all of them at every run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from math import prod

import pytest

MARKER = "each_value"


def thin(items: Iterable[pytest.Item]) -> None:
    """Of tests marked ``each_value``, mark as full what is not needed for each value of each parameter to be tried.

    The cases that are kept go along the grid's diagonal, so that also values of two parameters meet in many pairs;
    ``each_value(2)`` keeps two such diagonals.

    Raises:
        pytest.UsageError: if the cases of such a test are no grid.
    """
    tests: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        if item.get_closest_marker(MARKER):
            tests[item.nodeid.split("[")[0]].append(item)
    for name, cases in tests.items():
        values = [_values(case) for case in cases]
        if len({len(v) for v in values}) != 1 or len(cases) != prod(
            len(set(axis)) for axis in zip(*values, strict=True)
        ):
            raise pytest.UsageError(f"{name} is marked {MARKER}, but its {len(cases)} cases are no grid of parameters")
        left = dict(enumerate(values))
        for _ in range(_times(cases[0])):
            missing = {(axis, value) for case in left.values() for axis, value in enumerate(case)}
            while missing:
                best = max(left, key=lambda i: (len(missing & set(enumerate(left[i]))), -i))
                missing -= set(enumerate(left.pop(best)))
        for i in left:
            cases[i].add_marker("full")


def _times(item: pytest.Item) -> int:
    """How often each value is to be among the cases that are kept: ``each_value(2)``, or once."""
    marker = item.get_closest_marker(MARKER)
    return marker.args[0] if marker is not None and marker.args else 1


def _values(item: pytest.Item) -> tuple[int, ...]:
    """By identity: the cases of a grid share the objects that they were parametrised with."""
    return tuple(id(value) for _, value in sorted(item.callspec.params.items()))
