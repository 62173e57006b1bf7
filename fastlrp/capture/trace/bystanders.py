"""Other threads that run modules while one thread captures a model.

torch.export replaces the parameters of the model that it traces by tensors without data, and ``nn.Module``'s calls and
attributes by functions that write down what happens, for all threads. Without more a thread that serves predictions
meanwhile would get such tensors, or disturb the trace, whichever model it runs. Here other threads' calls and look-ups
pass by the tracer and find the model's own parameters.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from torch import Tensor, nn

LONGEST_WAIT = 1.0
"""Seconds after which a thread that stands still, as in a debugger, is not waited for."""


def _wait_until_left(function: Any) -> None:
    """Let other threads come out of a function that they were in when another one took its place."""
    code, end = getattr(function, "__code__", None), time.monotonic() + LONGEST_WAIT
    own = threading.get_ident()
    while time.monotonic() < end:
        frames = sys._current_frames().items()
        if not any(_is_in(code, frame) for thread, frame in frames if thread != own):
            return
        time.sleep(0.0005)


def _is_in(code: Any, frame: FrameType | None) -> bool:
    """Whether the frame, or one that waits for it, runs the code."""
    while frame is not None:
        if frame.f_code is code:
            return True
        frame = frame.f_back
    return False


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Let other threads run modules, this model's too, while the calling thread traces it.

    What other threads read from a module by attribute (``self.weight``) is real; what they read from its tables
    (``model.parameters()``, ``model.state_dict()``) is torch.export's until the end.
    """
    from torch.fx import _symbolic_trace  # Which torch.export imports too: not for those who never capture.
    from torch.fx.experimental import proxy_tensor

    tracing = threading.get_ident()
    found: dict[tuple[int, str], Tensor] = {}
    for module in model.modules():
        for table in (module._parameters, module._buffers):
            found.update({(id(module), name): tensor for name, tensor in table.items() if tensor is not None})
    look_up: Callable[[nn.Module, str], Any] = nn.Module.__getattr__
    tracer: Any = proxy_tensor._ModuleStackTracer
    call_module, traced_attribute = tracer.call_module, tracer.getattr

    def attribute(module: nn.Module, name: str) -> Any:
        if threading.get_ident() != tracing and (id(module), name) in found:
            return found[id(module), name]
        return look_up(module, name)

    def called_module(self: Any, module: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if threading.get_ident() != tracing:
            return forward(*args, **kwargs)
        return call_module(self, module, forward, args, kwargs)

    def attribute_of_tracer(self: Any, name: str, value: Any, cache: Any) -> Any:
        return value if threading.get_ident() != tracing else traced_attribute(self, name, value, cache)

    nn.Module.__getattr__ = attribute  # type: ignore[method-assign]
    # What the tracer's own look-up, which takes the place of ours, asks first.
    _symbolic_trace._orig_module_getattr = attribute
    tracer.call_module, tracer.getattr = called_module, attribute_of_tracer
    _wait_until_left(look_up)
    try:
        yield
    finally:
        nn.Module.__getattr__ = look_up  # type: ignore[method-assign]
        _symbolic_trace._orig_module_getattr = look_up
        tracer.call_module, tracer.getattr = call_module, traced_attribute
