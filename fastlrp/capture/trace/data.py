"""``h.data`` while a model is traced, which the tracer does not see: what ``h.detach()`` gives.

Both are the same memory, cut off from the gradient. A write into it changes ``h`` and leaves the gradient of ``h`` as
it was, and so does an assignment, ``h.data = …``, of a tensor of the same shape.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fastlrp.errors import CaptureError

_READ, _ASSIGNED = Tensor.data.__get__, Tensor.data.__set__  # type: ignore[attr-defined]


class DataDetached(TorchFunctionMode):
    """Within it ``h.data`` is ``h.detach()``."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func == _READ:
            return args[0].detach()
        if func == _ASSIGNED:
            return _assign(*args)
        return func(*args, **(kwargs or {}))


def _assign(held: Tensor, new: Tensor) -> None:
    if isinstance(held, torch.nn.Parameter) or held.shape != new.shape or held.dtype != new.dtype or held._is_view():
        raise CaptureError(
            "the model could not be captured: its forward pass assigns to .data of a parameter, of a view, or another "
            "shape or dtype than there was, which cannot be followed: let a new name stand for the new tensor, h = new"
        )
    held.detach().copy_(new)
