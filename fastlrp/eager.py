"""What surrounds each call: ``torch.compile`` leaves it alone, and a default device of the caller's is not ours.

Compiled code may thus explain models. ``torch.set_default_device`` and ``with torch.device(…)`` mean tensors of the
caller's and of the model's own code; what fastlrp makes stands on the CPU unless it says where.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


class _Devices(threading.local):
    def __init__(self) -> None:
        self.of_caller: torch.device | None = None


_DEVICES = _Devices()


def eager(function: Callable[P, R]) -> Callable[P, R]:
    """The function, run as it is, with all that it calls, also where ``torch.compile`` compiles its caller.

    Where nothing was ever compiled or exported this costs a look-up: importing the compiler takes seconds.
    """
    disabled: list[Callable[..., Any]] = []

    @wraps(function)
    def eagerly(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch._C._len_torch_function_stack() and _defaults_to_other_device():
            return _on_cpu(eagerly, args, kwargs)
        if not disabled:
            if "torch._dynamo" not in sys.modules:
                return function(*args, **kwargs)

            disabled.append(torch.compiler.disable(function))
        result: R = disabled[0](*args, **kwargs)
        return result

    return eagerly


def eager_blocks(function: Callable[P, Iterator[R]]) -> Callable[P, Iterator[R]]:
    """The same for a generator, whose blocks are made while the caller goes on."""

    @wraps(function)
    def blocks(*args: P.args, **kwargs: P.kwargs) -> Iterator[R]:
        made, end = function(*args, **kwargs), object()
        one = eager(lambda: next(made, end))
        while (block := one()) is not end:
            yield block  # type: ignore[misc]

    return blocks


def _defaults_to_other_device() -> bool:
    """Whether the caller has a default device other than the CPU."""
    return torch.get_default_device().type != "cpu"


def _on_cpu(function: Callable[..., R], args: Any, kwargs: Any) -> R:
    before, _DEVICES.of_caller = _DEVICES.of_caller, torch.get_default_device()
    try:
        with torch.device("cpu"):
            return function(*args, **kwargs)
    finally:
        _DEVICES.of_caller = before


def device_of_caller() -> AbstractContextManager[Any]:
    """The caller's default device, for what the model's own code makes."""
    return nullcontext() if _DEVICES.of_caller is None else _DEVICES.of_caller
