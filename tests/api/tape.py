"""What a CUDA graph does, on the CPU: a function's ATen calls are written down once and made again on the same memory.

As under stream capture, a call that would wait for the device or bring data to it is an error, and what Python decided
while it ran is decided for good. Only calls that PyTorch's dispatcher sees are recorded: explainers take the ``torch``
backend.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

T = TypeVar("T")

_aten = torch.ops.aten
WAITS = {
    _aten._local_scalar_dense, _aten.nonzero, _aten.masked_select, _aten.equal, _aten._unique, _aten._unique2,
    _aten.unique_dim, _aten.unique_consecutive, _aten.lift_fresh, _aten.lift_fresh_copy, _aten.is_nonzero,
}  # fmt: skip
"""Calls that read a number on the host, have a size that depends on numbers, or make a tensor of Python numbers."""


class Tape(TorchDispatchMode):
    """A :class:`fastlrp.run.recording.Recording` without a GPU. ``turns``: how many calls were made."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []
        self.turns = 0
        self._busy = threading.Lock()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        by_mask = func.overloadpacket is _aten.index and any(
            t is not None and t.dtype in (torch.bool, torch.uint8) for t in args[1]
        )
        if func.overloadpacket in WAITS or by_mask:
            raise RuntimeError(f"operation not permitted when stream is capturing: {func}")
        result = func(*args, **kwargs)
        self.calls.append((func, args, kwargs, result))
        return result

    def record(self, run: Callable[[], T]) -> T:
        run()
        with self:
            return run()

    @contextlib.contextmanager
    def turn(self, buffers: Sequence[Tensor]) -> Iterator[None]:
        # On a GPU the turns are put in order by events; here nobody may be inside twice.
        assert self._busy.acquire(blocking=False), "two calls at once"
        self.turns += 1
        try:
            yield
        finally:
            self._busy.release()

    def replay(self) -> None:
        for func, args, kwargs, result in self.calls:
            given = {_memory(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                # Views, and what was written in place, are up to date.
                if isinstance(old, Tensor) and _memory(old) not in given:
                    old.copy_(new)


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
