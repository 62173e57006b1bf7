"""Models that remember: what an earlier forward pass has written is read by a later one, and changes its output.

A graph has what stood there when it was captured. In-place writes into tensors of the model are seen while it is
translated; a count in Python, an attribute that is assigned or a list that grows shows in the numbers alone.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from fastlrp.capture.trace.attributes import unchanged
from fastlrp.capture.unpacked import differ
from fastlrp.capture.wrapper import Wrapper
from fastlrp.errors import CaptureError

_NAMED = 3


def refuse_memory(wrapper: Wrapper, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Run copies of a model that sets its own attributes on another input, alone and after this one: they must agree.

    Raises:
        CaptureError: if they differ.
    """
    names = list(wrapper.note.changed)
    if not names:
        return  # As nearly all models: nothing is run.
    other = torch.utils._pytree.tree_map_only(Tensor, _another, (args, kwargs))
    found = _alone_and_after(wrapper, (args, kwargs), other) or _alone_and_after(wrapper, (args, kwargs))
    if found is None:
        return
    alone, after = found
    if len(alone) != len(after) or any(differ(a, b) for a, b in zip(alone, after, strict=True)):
        what = ", ".join(map(repr, names[:_NAMED])) + (", …" if len(names) > _NAMED else "")
        raise CaptureError(
            f"the forward pass writes {what} and reads what an earlier one has written, so that its output on one "
            "input depends on those before: an explanation would be of what stood there at capture. Keep such state "
            "outside, pass it as an input, or switch it off for the model that is explained"
        )


def _alone_and_after(wrapper: Wrapper, first: Any, other: Any = None) -> tuple[Any, Any] | None:
    """Outputs on the other input, by default the same, alone and after the first; None if it does not take it."""
    other = first if other is None else other
    try:
        fresh, used = (Wrapper(_copy(wrapper.model)) for _ in range(2))
        with torch.no_grad(), unchanged(wrapper):  # Classes are those of the copies, too.
            alone = fresh(*other)
        with torch.no_grad(), unchanged(wrapper):
            used(*first)
            return alone, used(*other)
    except Exception:
        return None


def _copy(model: nn.Module) -> nn.Module:
    """Modules and what they hold are copies, parameters are not; neither is what autograd has computed."""
    named = [(key, item) for module in model.modules() for key, item in vars(module).items() if key != "_modules"]
    computed = (item for _, item in named if isinstance(item, Tensor) and not item.is_leaf)
    shared: dict[int, Any] = {id(t): t for t in (*model.parameters(), *computed)}
    try:
        return copy.deepcopy(model, dict(shared))
    except Exception:  # A lock, a generator or a file cannot be copied: the copies share it.
        alone = {id(item): item for _, item in named if not _can_be_copied(item, shared)}
        return copy.deepcopy(model, shared | alone)


def _can_be_copied(item: Any, shared: dict[int, Any]) -> bool:
    try:
        copy.deepcopy(item, dict(shared))
    except Exception:
        return False
    return True


def _another(t: Tensor) -> Tensor:
    return t * 0.75 if t.is_floating_point() else t.clone()
