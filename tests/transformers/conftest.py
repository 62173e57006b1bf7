"""Tests of one family of models follow each other: they share its model and what was captured of it."""

from __future__ import annotations

import pytest

from tests.fixtures import captured_once, seeded  # noqa: F401
from tests.transformers import zoo


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    names = list(zoo.ALL)
    places = [i for i, item in enumerate(items) if item.path.name == "test_transformers_zoo.py"]

    def family(item: pytest.Item) -> int:
        name = item.callspec.params.get("name") if hasattr(item, "callspec") else None
        return names.index(name) if name in names else -1

    for place, item in zip(places, sorted((items[i] for i in places), key=family), strict=True):
        items[place] = item
