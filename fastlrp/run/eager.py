"""Functions that ``torch.compile`` leaves alone, so that compiled code may explain models."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def eager(function: Callable[P, R]) -> Callable[P, R]:
    """The function, run as it is, with all that it calls, also where ``torch.compile`` compiles its caller.

    Where nothing was ever compiled or exported this costs a look-up: importing the compiler takes seconds.
    """
    disabled: list[Callable[..., Any]] = []

    @wraps(function)
    def eagerly(*args: P.args, **kwargs: P.kwargs) -> R:
        if not disabled:
            if "torch._dynamo" not in sys.modules:
                return function(*args, **kwargs)
            import torch

            disabled.append(torch.compiler.disable(function))
        result: R = disabled[0](*args, **kwargs)
        return result

    return eagerly
