"""An operation's arguments by name, and sizes among them."""

from __future__ import annotations

from typing import Any

import torch

from fastlrp.capture.graph import Node

_POOL_DIMS = {"1d": 1, "2d": 2, "3d": 3}


def bind(target: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    """Arguments of an ATen overload by name, defaults included; empty for anything else."""
    if not isinstance(target, torch._ops.OpOverload):
        return {}
    bound = {a.name: a.default_value for a in target._schema.arguments}
    bound.update(zip((a.name for a in target._schema.arguments), args, strict=False))
    bound.update(kwargs)
    return bound


def listed(value: Any, n: int, default: int = 0) -> list[int]:
    """``n`` sizes, of which one may be given for all."""
    if value is None or value == []:
        return [default] * n
    items = [value] if isinstance(value, int) else list(value)
    return items * n if len(items) == 1 else items


def dims(node: Node) -> int:
    """Spatial axes, from the operation's name."""
    return _POOL_DIMS[node.operation[-2:]]
