"""What models ask of tensors that the tracer does not see: ``h.data``, and hooks on the gradient of ``h``.

``h.data`` is what ``h.detach()`` gives. Both are the same memory, cut off from the gradient. A write into it changes
``h`` and leaves the gradient of ``h`` as it was, and so does an assignment, ``h.data = …``, of a tensor of the same
shape. A deep copy is one of the data, too. A hook, ``h.register_hook(…)``, is the backward of a function that gives
``h`` back.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from fastlrp.capture.trace.functions import is_followed, note_hook
from fastlrp.errors import CaptureError

_READ, _ASSIGNED = Tensor.data.__get__, Tensor.data.__set__  # type: ignore[attr-defined]


class MethodsFollowed(TorchFunctionMode):
    """Within it, while a model is traced, they are operations that the tracer sees."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _INSTEAD and is_followed():
            return _INSTEAD[func](*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _assign(held: Tensor, new: Tensor) -> None:
    if isinstance(held, torch.nn.Parameter) or held.shape != new.shape or held.dtype != new.dtype or held._is_view():
        raise CaptureError(
            "the model could not be captured: its forward pass assigns to .data of a parameter, of a view, or another "
            "shape or dtype than there was, which cannot be followed: let a new name stand for the new tensor, h = new"
        )
    held.detach().copy_(new)


def _hook(held: Tensor, hook: Callable[[Tensor], Tensor | None]) -> RemovableHandle:
    return RemovableHandle(OrderedDict()) if isinstance(held, torch.nn.Parameter) else note_hook(held, hook)


_INSTEAD: dict[Any, Callable[..., Any]] = {
    _READ: Tensor.detach,
    _ASSIGNED: _assign,
    Tensor.register_hook: _hook,
    Tensor.retain_grad: lambda held: None,
    Tensor.__deepcopy__: lambda held, memo: held.detach().clone(),
}
