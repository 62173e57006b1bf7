"""How much of a tensor is zero."""

from __future__ import annotations

from torch import Tensor

from fastlrp.looking import may_look


def leading_zeros(t: Tensor, axis: int) -> int:
    """How many of the first entries along ``axis`` are zero throughout; 0 on a GPU, where looking means waiting."""
    if not may_look(t) or t.numel() == 0 or bool(t.select(axis, 0).any()):
        return 0
    others = [d for d in range(t.dim()) if d != axis]
    alive = t.any(others[-1])
    for d in reversed(others[:-1]):
        alive = alive.any(d)
    return int(alive.int().argmax()) if bool(alive.any()) else t.shape[axis]
