"""PyTorch's own cache of parametrized weights, while a model is traced.

Within ``parametrize.cached()`` a weight that a parametrization makes is kept in a table of the whole process, and taken
from there. A trace must neither take what an earlier pass left there, which would be a number of the model, not a
function of its parameters; nor leave its own tensors there, which hold no numbers.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from torch.nn.utils import parametrize


class _PassedBy(dict[Any, Any]):
    """The table for all threads but the tracing one."""

    def __init__(self, found: dict[Any, Any]) -> None:
        super().__init__(found)
        self._tracing = threading.get_ident()

    def get(self, key: Any, default: Any = None) -> Any:
        return default if threading.get_ident() == self._tracing else super().get(key, default)

    def __setitem__(self, key: Any, value: Any) -> None:
        if threading.get_ident() != self._tracing:
            super().__setitem__(key, value)


@contextlib.contextmanager
def weights_made_anew() -> Iterator[None]:
    """The calling thread finds nothing in the cache and leaves nothing there."""
    module: Any = parametrize
    if not module._cache_enabled:
        yield
        return
    ours = module._cache = _PassedBy(module._cache)
    try:
        yield
    finally:
        if module._cache is ours:  # Else the outermost ``cached()`` of another thread has ended, and emptied it.
            module._cache = dict(ours)
