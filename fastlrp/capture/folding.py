"""Constant folding: what depends on parameters, buffers and plain numbers alone is computed when it is asked for.

Nothing is computed at capture, so that weights that were trained since are seen. A chain of operations is walked in a
loop, each operation once, however deep or shared it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastlrp.capture.graph import Constant, leaves


@dataclass(eq=False)
class Step:
    """One operation on constants; ``before`` are the steps that it reads."""

    call: Callable[..., Any]
    args: Any
    kwargs: Any
    before: tuple[Step, ...]


@dataclass(eq=False)
class Computed:
    """The source of a folded constant: the result of a step, or one part of it."""

    step: Step
    part: int | None

    def __call__(self) -> Any:
        found: dict[Step, Any] = {}
        todo = [self.step]
        with torch.no_grad():
            while todo:
                step = todo[-1]
                missing = [other for other in step.before if other not in found]
                todo += missing
                if not missing:
                    todo.pop()
                    if step not in found:
                        args, kwargs = _bare((step.args, step.kwargs), found)
                        found[step] = _called(step, args, kwargs)
        result = found[self.step]
        return result if self.part is None else result[self.part]


def _called(step: Step, args: Any, kwargs: Any) -> Any:
    try:
        return step.call(*args, **kwargs)
    except IndexError as error:
        table, index = (*(t for t in args if isinstance(t, Tensor)), None, None)[:2]
        if table is None or index is None or not index.numel():
            raise
        raise IndexError(
            f"the model looks up row {int(index.max())} of a table of {len(table)} rows, by numbers that follow from "
            f"the input's sizes alone: a text of more positions than it has embeddings for. Give at most {len(table)} "
            "positions"
        ) from error


def fold(name: str, call: Callable[..., Any], args: Any, kwargs: Any, meta: Any, fault: str | None = None) -> Any:
    """What an operation on constants gives: a constant, or a tuple of them for several results.

    Args:
        meta: what torch.export says of the result: a tensor without data, a tuple or list of those, or a number.
        fault: why nothing that reads the result can be explained, if so.
    """
    found = [leaf for leaf in leaves((args, kwargs)) if isinstance(leaf, Constant)]
    if not found and meta is not None and not isinstance(meta, (Tensor, tuple, list)):
        return call(*args, **kwargs)  # Arithmetic on plain numbers.
    fault = fault or next((constant.fault for constant in found if constant.fault), None)
    before = tuple(dict.fromkeys(c.source.step for c in found if isinstance(c.source, Computed)))
    step = Step(call, args, kwargs, before)
    if isinstance(meta, (tuple, list)):
        return tuple(Constant(f"{name}_{i}", Computed(step, i), fault) for i in range(len(meta)))
    return Constant(name, Computed(step, None), fault)


def _bare(tree: Any, found: dict[Step, Any]) -> Any:
    """The tree with constants replaced by their values."""

    def value(leaf: Any) -> Any:
        if not isinstance(leaf, Constant):
            return leaf
        if not isinstance(leaf.source, Computed):
            return leaf.tensor()
        result = found[leaf.source.step]
        return result if leaf.source.part is None else result[leaf.source.part]

    return torch.utils._pytree.tree_map(value, tree)
