"""Objects told apart by identity, where what they are compared with is compared by value."""

from __future__ import annotations

from typing import Any


class Itself:
    """An object that equals itself alone, whatever its ``==`` says; inside lists, dicts and keys. It is kept alive."""

    def __init__(self, item: Any) -> None:
        self._item = item

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Itself) and self._item is other._item

    def __hash__(self) -> int:
        return id(self._item)
