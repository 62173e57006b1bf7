"""The intermediate representation: a captured model as a list of nodes in execution order.

A :class:`Value` is an activation (it depends on the model's input), a :class:`Constant` is a parameter, a buffer or
something computed from them alone, and a :class:`Node` makes one value from others. Batch is always axis 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

LOOKUPS = ("embedding", "embedding_bag")
"""Kinds that choose rows of a table by ids."""


@dataclass(eq=False, repr=False)
class Value:
    """An activation. ``shape`` has None where the batch size stands; a symbolic size other than that is a string.

    ``depends`` is False where no entry depends on those of the input, only sizes do: ``zeros_like(x)``, a batch size.
    ``carries`` says whether relevance may stand there, see :mod:`fastlrp.capture.carrying`: by default at every float.
    """

    index: int
    name: str
    shape: tuple[int | str | None, ...]
    dtype: torch.dtype | None
    producer: Node | None = None
    depends: bool = True
    carries: bool | None = None

    def __post_init__(self) -> None:
        if self.carries is None:
            self.carries = self.is_float

    def __repr__(self) -> str:
        return f"Value({self.index}, {self.name!r}, {self.shape})"

    @property
    def is_tensor(self) -> bool:
        return self.dtype is not None

    @property
    def is_float(self) -> bool:
        return self.dtype is not None and (self.dtype.is_floating_point or self.dtype.is_complex)

    @property
    def gets_relevance(self) -> bool:
        """A float that is computed from a float input or an embedding; ids that choose rows of one."""
        return self.depends and bool(self.carries)

    @property
    def is_differentiable(self) -> bool:
        """The floats among those that get relevance."""
        return self.gets_relevance and self.is_float

    @cached_property
    def has_batch_first(self) -> bool:
        """True if axis 0 is the batch and all other sizes are plain numbers: relevance can be laid out as (B, K, …)."""
        return bool(self.shape) and self.shape[0] is None and all(isinstance(n, int) for n in self.shape[1:])

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Sizes of one sample."""
        assert self.has_batch_first, f"{self.name} has no plain per-sample shape: {self.shape}"
        return tuple(n for n in self.shape[1:] if isinstance(n, int))

    @cached_property
    def numel(self) -> int:
        """Elements of one sample."""
        count = 1
        for n in self.sizes:
            count *= n
        return count


@dataclass(eq=False)
class Constant:
    """A tensor that does not depend on the input: a parameter or buffer itself, or computed from some.

    ``fault`` says why nothing that reads it can be explained (it is random).
    """

    name: str
    source: Tensor | Callable[[], Tensor]
    fault: str | None = None

    @property
    def is_fixed(self) -> bool:
        """Whether its numbers stand in the model's code, so that they are those of the capture."""
        return bool(getattr(getattr(self.source, "step", None), "fixed", False))

    def tensor(self) -> Tensor:
        """The current value: weights may have been trained since the capture."""
        return self.source.detach() if isinstance(self.source, Tensor) else self.source()


def derived(constant: Constant, change: Callable[[Tensor], Tensor]) -> Constant:
    """A constant computed from another whenever it is asked for."""
    return Constant(constant.name, lambda: change(constant.tensor()), constant.fault)


@dataclass(eq=False, repr=False)
class Node:
    """One operation.

    Attributes:
        kind: what it is to LRP (``conv``, ``linear``, ``activation``, ``add``, ``move``, …), see
            :mod:`fastlrp.kinds.registry`.
        operation: name for people, ``conv2d``.
        call: the forward function; takes ``args``, ``kwargs`` with values and constants replaced by tensors.
        inputs: the activations among the arguments, in order.
        path: dotted path of the innermost module that it stands in; ``""`` for the model itself.
        module_type: type of that module.
        attributes: geometry and constants, by kind.
    """

    kind: str
    operation: str
    call: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: tuple[Value, ...]
    output: Value
    path: str = ""
    module_type: type | None = None
    attributes: dict[str, Any] = field(default_factory=dict)

    @property
    def sources(self) -> tuple[Value, ...]:
        """The activations to which its output's relevance goes: those whose entries it reads, not only sizes or dtype.

        They are floats; ids for an embedding and for operations that move ids.
        """
        ignored = self.attributes.get("unread", ())
        wants_ids = self.kind in LOOKUPS or (self.output.gets_relevance and not self.output.is_float)
        found = (v for v in self.inputs if v.gets_relevance and v not in ignored)
        return tuple(v for v in found if v.is_float is not wants_ids)

    @property
    def carried(self) -> Value | None:
        """The one value whose entries it carries on, where it also reads others to which a gradient goes.

        None if it has several sources.
        """
        if self.kind in ("custom_backward", "detached"):
            return self.args[0] if isinstance(self.args[0], Value) else None
        return self.sources[0] if len(self.sources) == 1 else None

    def __str__(self) -> str:
        return f"{self.operation} ({self.path or 'model'})"

    __repr__ = __str__


@dataclass(frozen=True)
class Written:
    """An operation of the model that has no node: others stand for it, or it does nothing.

    Attributes:
        operation, path, module_type: as of a :class:`Node`.
        parts: operation and kind of each node that stands for it.
    """

    operation: str
    path: str
    module_type: type | None
    parts: tuple[tuple[str, str], ...] = ()


@dataclass(eq=False)
class Graph:
    """A captured model.

    Attributes:
        inputs: one value per tensor input, in the order of the flattened arguments.
        output: the value that is explained.
        outputs: every tensor output of the model, to rebuild what it returned.
        modules: module path -> the value that the module returned last, for ``layers=``.
        batch: the only batch size that it holds for; None if it holds for any.
        counted: masks of the model's own, and how many entries each takes: sizes in the graph follow from that.
        written: operations that have no node of their own, for messages.
        not_lifted: why values whose batch is not axis 0 could not be brought into another form; for messages.
    """

    nodes: list[Node]
    inputs: list[Value]
    outputs: list[Value]
    output: Value
    modules: dict[str, Value]
    values: int
    batch: int | None = None
    not_lifted: str = ""
    counted: list[tuple[Tensor, int]] = field(default_factory=list)
    written: list[Written] = field(default_factory=list)

    def new_value(
        self, name: str, shape: tuple[int | str | None, ...], dtype: torch.dtype | None, producer: Node | None = None
    ) -> Value:
        value = Value(self.values, name, shape, dtype, producer)
        self.values += 1
        return value

    def consumers(self) -> dict[Value, list[Node]]:
        """Who reads each value, in execution order; the model's outputs are not consumers."""
        table: dict[Value, list[Node]] = {}
        for node in self.nodes:
            for value in dict.fromkeys(node.inputs):
                table.setdefault(value, []).append(node)
        return table

    def replace(self, old: Value, new: Value) -> None:
        """Let everything that read ``old`` read ``new``."""
        for node in self.nodes:
            if old in node.inputs:
                node.inputs = tuple(new if v is old else v for v in node.inputs)
                node.args = substitute(node.args, {old: new})
                node.kwargs = substitute(node.kwargs, {old: new})
                # Kinds note there which summand, factor or operand is which.
                node.attributes = substitute(node.attributes, {old: new})
        self.outputs = [new if v is old else v for v in self.outputs]
        self.output = new if self.output is old else self.output
        self.modules = {path: new if v is old else v for path, v in self.modules.items()}

    def drop_dead(self) -> None:
        """Remove nodes whose output nobody reads."""
        alive = set(self.outputs)
        kept = []
        for node in reversed(self.nodes):
            if node.output in alive:
                kept.append(node)
                alive.update(node.inputs)
        self.nodes = kept[::-1]
        alive.update(self.inputs)
        self.modules = {path: v for path, v in self.modules.items() if v in alive}


def substitute(tree: Any, table: dict[Value, Any]) -> Any:
    """``tree`` (nested tuples, lists, dicts) with values replaced by what ``table`` has for them."""
    if isinstance(tree, Value):
        return table.get(tree, tree)
    if isinstance(tree, (tuple, list)):
        return type(tree)(substitute(item, table) for item in tree)
    if isinstance(tree, dict):
        return {key: substitute(item, table) for key, item in tree.items()}
    return tree


def with_tensors(tree: Any) -> Any:
    """``tree`` (nested tuples, lists, dicts) with constants replaced by their current tensors."""
    if isinstance(tree, Constant):
        return tree.tensor()
    if isinstance(tree, (tuple, list)):
        return type(tree)(with_tensors(item) for item in tree)
    return {key: with_tensors(item) for key, item in tree.items()} if isinstance(tree, dict) else tree


def leaves(tree: Any) -> Iterator[Any]:
    """Values, constants and plain leaves of nested tuples, lists and dicts, in order."""
    if isinstance(tree, (tuple, list)):
        for item in tree:
            yield from leaves(item)
    elif isinstance(tree, dict):
        for item in tree.values():
            yield from leaves(item)
    else:
        yield tree
