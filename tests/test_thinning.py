"""Of a grid of parameters, the cases of every run try each value, on the diagonal."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests.thinning import thin


def cases(*parameters: tuple[object, ...], marker: bool = True, times: tuple[int, ...] = ()) -> list[Any]:
    found = []
    for n, values in enumerate(parameters):
        marks: set[str] = set()
        found.append(
            SimpleNamespace(
                nodeid=f"a.py::test[{n}]",
                callspec=SimpleNamespace(params=dict(zip("abc", values, strict=False))),
                marks=marks,
                add_marker=marks.add,
                get_closest_marker=lambda name: SimpleNamespace(args=times) if marker else None,
            )
        )
    return found


def kept(found: list[Any]) -> list[str]:
    return ["".join(map(str, case.callspec.params.values())) for case in found if "full" not in case.marks]


def test_each_value_is_tried_at_every_run():
    found = cases(*((a, b) for a in "xyz" for b in (1, 2)))
    thin(found)
    assert kept(found) == ["x1", "y2", "z1"]


def test_each_value_is_tried_twice():
    found = cases(*((a, b) for a in "wxyz" for b in (1, 2, 3, 4)), times=(2,))
    thin(found)
    assert len(kept(found)) == 8
    assert all(sum(value in case for case in kept(found)) == 2 for value in "wxyz1234")


def test_other_tests_are_left_alone():
    found = cases(("x", 1), ("x", 2), marker=False)
    thin(found)
    assert kept(found) == ["x1", "x2"]


def test_what_is_no_grid_is_refused():
    with pytest.raises(pytest.UsageError, match=r"a\.py::test is marked each_value, but its 3 cases are no grid"):
        thin(cases(("x", 1), ("x", 2), ("y", 1)))
