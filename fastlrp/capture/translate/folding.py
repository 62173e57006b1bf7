"""Constant folding: what depends on parameters, buffers and plain numbers alone is computed when it is asked for.

Nothing is computed at capture, so that weights that were trained since are seen. A chain of operations is walked in a
loop, each operation once, however deep or shared it is. What reads no numbers of the model's tensors (masks of windows,
positions) stays the same and is remembered.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastlrp.capture.graph import Constant, leaves

Read = Callable[[dict[Any, Any]], Any]

_LITERALS = ("aten::lift_fresh", "aten::lift_fresh_copy")
"""Operations on numbers that stand in the model's own code."""

_FILLED = (
    "aten::new_zeros",
    "aten::new_ones",
    "aten::new_full",
    "aten::zeros_like",
    "aten::ones_like",
    "aten::full_like",
)
"""Operations that read the dtype and the device of a tensor alone, and its sizes, which are those of the capture."""

REMEMBERED = 1 << 20
"""Entries of the largest result that is remembered."""


@dataclass(eq=False)
class Step:
    """One operation on constants; ``before`` are the steps that it reads.

    Attributes:
        fixed: whether neither it nor what it reads is random or reads the numbers of a tensor of the model.
        like: tensors of which it or what it reads has the dtype and the device.
    """

    call: Callable[..., Any]
    args: Any
    kwargs: Any
    before: tuple[Step, ...]
    fixed: bool = False
    like: tuple[Tensor, ...] = ()
    _known: tuple[Any, Any] | None = None

    def __post_init__(self) -> None:
        self._read: Read = _reader((self.args, self.kwargs))

    def result(self, found: dict[Step, Any]) -> Any:
        """What it gives, from the results of the steps before it."""
        known = self._known
        if known is not None and known[1] == self._like():
            return known[0]
        args, kwargs = self._read(found)
        result = _called(self, args, kwargs)
        if self.fixed and isinstance(result, Tensor) and result.numel() <= REMEMBERED:
            self._known = (result, self._like())
        return result

    @property
    def is_known(self) -> bool:
        """Whether its result is remembered."""
        return self._known is not None and self._known[1] == self._like()

    def _like(self) -> list[Any]:
        return [(t.dtype, t.device) for t in self.like]


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
                missing = [] if step.is_known else [other for other in step.before if other not in found]
                todo += missing
                if not missing:
                    todo.pop()
                    if step not in found:
                        found[step] = step.result(found)
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
    name_of_call = getattr(getattr(call, "_schema", None), "name", "")
    own = [c.source for c in found if isinstance(c.source, Tensor)]
    known = name_of_call in _LITERALS or (not own) or name_of_call in _FILLED
    plain = all(isinstance(c.source, (Tensor, Computed)) for c in found)
    fixed = fault is None and known and plain and all(step.fixed for step in before)
    like = [t for step in before for t in step.like] + (own if name_of_call in _FILLED else [])
    step = Step(call, args, kwargs, before, fixed, tuple({id(t): t for t in like}.values()))
    if isinstance(meta, (tuple, list)):
        return tuple(Constant(f"{name}_{i}", Computed(step, i), fault) for i in range(len(meta)))
    return Constant(name, Computed(step, None), fault)


def _reader(tree: Any) -> Read:
    """A function that gives the tree with constants replaced by their values, from the results of steps."""
    if isinstance(tree, Constant):
        source = tree.source
        if not isinstance(source, Computed):
            return lambda found: tree.tensor()
        step, part = source.step, source.part
        return (lambda found: found[step]) if part is None else (lambda found: found[step][part])
    if not any(isinstance(leaf, Constant) for leaf in leaves(tree)):
        return lambda found: tree
    if type(tree) in (tuple, list):
        kind, items = type(tree), [_reader(item) for item in tree]
        return lambda found: kind([item(found) for item in items])
    if type(tree) is dict:
        named = {key: _reader(item) for key, item in tree.items()}
        return lambda found: {key: item(found) for key, item in named.items()}
    return lambda found: _bare(tree, found)


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
