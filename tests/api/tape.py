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
from torch.utils._pytree import tree_leaves, tree_map

T = TypeVar("T")

_aten = torch.ops.aten
INDEXES = {_aten.index, _aten.index_put, _aten.index_put_, _aten._index_put_impl_}
WAITS = {
    _aten.lift_fresh, _aten.lift_fresh_copy, _aten.is_nonzero, _aten._pack_padded_sequence, _aten._pad_packed_sequence,
}  # fmt: skip
"""Calls that make a tensor of Python numbers, or read numbers on the host without a tag that says so."""


def _waits(func: Any, args: tuple[Any, ...]) -> bool:
    """Whether a call reads a number on the host, has a size that depends on numbers, or brings data to the device."""
    if func.overloadpacket in INDEXES:
        return any(t is not None and t.dtype in (torch.bool, torch.uint8) for t in args[1])
    tags = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)
    return func.overloadpacket in WAITS or any(tag in func.tags for tag in tags)


class Tape(TorchDispatchMode):
    """A :class:`fastlrp.run.recording.Recording` without a GPU. ``turns``: how many calls were made."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []
        self.turns = 0
        self._results: list[Tensor] = []
        self._expected: list[Tensor] = []
        self._busy = threading.Lock()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if _waits(func, args):
            raise RuntimeError(f"operation not permitted when stream is capturing: {func}")
        before = _alias((args, kwargs))  # As they are now: lists may grow, and axes of a tensor may change their order.
        result = func(*args, **kwargs)
        if torch.Tag.inplace_view not in func.tags:
            self.calls.append((func, *before, _alias(result)))
        return result

    def record(self, run: Callable[[], T]) -> T:
        run()
        with self:
            found = run()
        self._results = [t for t in tree_leaves(found) if isinstance(t, Tensor)]
        self._expected = [t.clone() for t in self._results]
        return found

    def _refuse_what_it_did_not_see(self) -> None:
        """Repeated on memory full of NaN the calls give the same results, or others were made beside them."""
        for _, args, kwargs, result in self.calls:
            given = {_memory(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
            for t in tree_leaves(result):
                if isinstance(t, Tensor) and t.is_floating_point() and _memory(t) not in given:
                    t.fill_(torch.nan)
        self.replay()
        expected, self._expected = self._expected, []
        if not all(torch.equal(a, b) for a, b in zip(self._results, expected, strict=True)):
            raise RuntimeError(
                "the tape gives other numbers than what it recorded: only calls that PyTorch's dispatcher sees are "
                "repeated. Make the explainer with backend='torch'"
            )

    @contextlib.contextmanager
    def turn(self, buffers: Sequence[Tensor]) -> Iterator[None]:
        # On a GPU the turns are put in order by events; here nobody may be inside twice.
        assert self._busy.acquire(blocking=False), "two calls at once"
        self.turns += 1
        try:
            if self._expected:  # The inputs are still those that were recorded.
                self._refuse_what_it_did_not_see()
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


def _alias(tree: Any) -> Any:
    """The same with tensors of their own on the same memory."""
    return tree_map(lambda t: t.detach() if isinstance(t, Tensor) else t, tree)


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
