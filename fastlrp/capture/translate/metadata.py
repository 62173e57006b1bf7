"""What export says about a result: sizes, dtype, and whether an operation changes its operand at all."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastlrp.capture.graph import Constant, Value
from fastlrp.capture.trace import padded, recurrent
from fastlrp.capture.translate.calls import operation
from fastlrp.capture.translate.mask_sizes import settled


def sizes(meta: Tensor, batch: int | None, known: dict[Any, int] | None = None) -> tuple[int | str | None, ...]:
    """A shape with None for the batch axis and the names of other sizes that vary; ``batch``: the fixed one, if any.

    ``known``: symbols of sizes that the model's own masks say.
    """
    found: list[int | str | None] = []
    for axis, n in enumerate(meta.shape):
        if isinstance(n, torch.SymInt):
            symbol = settled(n, known or {})
            if getattr(symbol, "is_Integer", False):  # How many entries a constant mask takes.
                found.append(int(symbol))
                continue
            is_batch = axis == 0 and getattr(symbol, "is_Symbol", False) and str(symbol).startswith("s")
            found.append(None if is_batch else str(symbol))
        else:
            found.append(None if axis == 0 and batch is not None and n == batch else int(n))
    return tuple(found)


def is_recurrent(whole: Any) -> bool:
    """True for a call of a whole recurrent layer, which gives its output and its last states."""
    return isinstance(whole, torch.fx.Node) and operation(whole.target)[0] in (*recurrent.SEQUENCES, padded.PADDED)


def same_dtype(fx: torch.fx.Node, value: Value) -> bool:
    """True if the exported operation gives a tensor of the value's dtype."""
    return isinstance(fx.meta.get("val"), Tensor) and fx.meta["val"].dtype == value.dtype


def is_whole_copy(fx: torch.fx.Node, source: Value | Constant, batch: int | None) -> bool:
    """True if ``copy_`` gives its source as it is: no other dtype, nothing broadcast."""
    meta = fx.meta.get("val")
    if not isinstance(source, Value) or not isinstance(meta, Tensor):
        return False
    return source.dtype == meta.dtype and source.shape == sizes(meta, batch)
