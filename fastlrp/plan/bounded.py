"""A cache that forgets what was not asked for in the longest time."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Bounded(Generic[K, V]):
    """At most ``most`` values by key. Several threads may ask at once."""

    def __init__(self, most: int) -> None:
        if most < 1:
            raise ValueError(f"a cache must be allowed at least one value, got most={most}")
        self._most, self._lock = most, threading.Lock()
        self._values: OrderedDict[K, V] = OrderedDict()

    def get(self, key: K, make: Callable[[], V]) -> V:
        """The value of a key, made if it is not there. Two threads may make the same one; the first is kept."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        made = make()
        with self._lock:
            value = self._values.setdefault(key, made)
            self._values.move_to_end(key)
            while len(self._values) > self._most:
                self._values.popitem(last=False)
            return value

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: K) -> bool:
        return key in self._values

    def __iter__(self) -> Iterator[V]:
        """The values, the one that was not asked for in the longest time first."""
        with self._lock:
            return iter(list(self._values.values()))

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._values.clear()
