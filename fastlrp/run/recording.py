"""What repeats a function's work on the same memory: a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

_WARM_UPS = 2
"""Runs before the recorded one, in which libraries choose algorithms and kernels are compiled."""


class Recording(Protocol):
    """Runs a function once, and from then on repeats what it did, on the same memory."""

    def record(self, run: Callable[[], T]) -> T:
        """What ``run`` returns; :meth:`replay` fills these very tensors again."""

    def turn(self, buffers: Sequence[Tensor]) -> AbstractContextManager[None]:
        """A call's work on the device, behind that of the call before. ``buffers``: memory that it writes to."""

    def replay(self) -> None:
        """Do again what was recorded, on the same memory."""


class CudaGraph:
    """A :class:`Recording` on a GPU, with memory of its own."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._graph, self._done = device, torch.cuda.CUDAGraph(), torch.cuda.Event()

    def record(self, run: Callable[[], T]) -> T:
        with torch.cuda.device(self._device):
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(_WARM_UPS):
                    run()
            torch.cuda.current_stream().wait_stream(side)
            try:
                # Other threads may use the device meanwhile.
                with torch.cuda.graph(self._graph, stream=side, capture_error_mode="thread_local"):
                    return run()
            except RuntimeError as error:
                raise RuntimeError(
                    "no CUDA graph could be recorded: the model, a rule of your own or `initial` waits for the device "
                    f"or moves data to it ({error}). Call the explainer itself, or take out what waits (.item(), "
                    ".cpu(), nonzero, torch.tensor(…) on the device)"
                ) from error

    @contextmanager
    def turn(self, buffers: Sequence[Tensor]) -> Iterator[None]:
        with torch.cuda.device(self._device):
            stream = torch.cuda.current_stream()
            stream.wait_event(self._done)  # The call before may have been on another stream.
            for buffer in buffers:
                buffer.record_stream(stream)
            try:
                yield
            finally:
                self._done.record(stream)

    def replay(self) -> None:
        self._graph.replay()
