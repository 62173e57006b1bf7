"""What the lifted forms of operations have in common: operands behind a batch axis, and nodes that are made of them.

A value that the model holds as shape ``f(B)`` has a lifted twin of shape ``(B, *f(1))``: row b is what the model
would hold if sample b were alone. See :mod:`fastlrp.capture.lift.graphs`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fastlrp.capture.arguments import bind
from fastlrp.capture.carrying import carries
from fastlrp.capture.graph import Constant, Graph, Node, Value, leaves
from fastlrp.capture.translate.folding import fold
from fastlrp.kinds.registry import KIND, KIND_OF

aten = torch.ops.aten

_GENERIC = frozenset({"move", "write", "linear_map", "product", "grid_sample"})
"""Kinds for which no axis is an argument: they take an operation that is mapped over samples as any other."""


class UnliftableError(Exception):
    """An operation has no per-sample form."""


def rows_reshaped(x: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """``(B, *sizes)``."""
    return x.reshape(x.shape[0], *sizes)


def rows_of(constant: Tensor, like: Tensor) -> Tensor:
    """``(B, *constant.shape)``, the same for each sample."""
    return constant.expand(like.shape[0], *constant.shape)


class PerSample:
    """An operation mapped over axis 0 of its activations, by ``torch.vmap``; constants are the same for each sample.

    Args:
        call: the operation. args, kwargs: as the node has them.
    """

    keeps_samples_apart = True
    """No index that is computed from data reaches into another sample."""

    def __init__(self, call: Callable[..., Any], args: Any, kwargs: Any) -> None:
        found, _ = torch.utils._pytree.tree_flatten((args, kwargs))
        self.call = call
        self.dims = tuple(0 if isinstance(leaf, Value) else None for leaf in found)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        found, spec = torch.utils._pytree.tree_flatten((args, kwargs))
        given = [i for i, dim in enumerate(self.dims) if dim == 0]

        def alone(*tensors: Tensor) -> Any:
            own = dict(zip(given, tensors, strict=True))
            args, kwargs = torch.utils._pytree.tree_unflatten([own.get(i, x) for i, x in enumerate(found)], spec)
            return self.call(*args, **kwargs)

        return torch.vmap(alone)(*(found[i] for i in given))


class Lifter:
    """Makes lifted nodes for one graph.

    Attributes:
        shapes: of every tensor value at a batch of one. numbers: every other value at a batch of one.
        twins: lifted values by the original. natural: values with the model's own layout, by the original.
        node: the original node whose form is being made. made: the new nodes, which the caller takes.
    """

    def __init__(
        self, graph: Graph, shapes: Mapping[Value, tuple[int, ...]], numbers: Mapping[Value, Any], device: torch.device
    ) -> None:
        self.graph, self.shapes, self.numbers, self.device = graph, shapes, numbers, device
        self.twins: dict[Value, Value] = {}
        self.natural: dict[Value, Value] = {}
        self.statics: dict[Value, Constant] = {}
        self.made: list[Node] = []
        self.node: Node = graph.nodes[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the result, for one sample."""
        return self.shapes[self.node.output]

    # Operands

    def evaluate(self, node: Node) -> None:
        """Note a value that does not depend on the input: for lifted readers it is what it is for a batch of one."""
        y = node.output
        if y in self.shapes:
            args, kwargs = self.tree((node.args, node.kwargs), node)
            self.statics[y] = fold(y.name, node.call, args, kwargs, torch.empty(0))

    def tree(self, tree: Any, node: Node | None = None) -> Any:
        """Arguments as the lifted form reads them: values behind a batch axis, constants and numbers for one sample."""
        unread = (self.node if node is None else node).attributes.get("unread", ())

        def as_lifted(leaf: Any) -> Any:
            if not isinstance(leaf, Value):
                return leaf
            if leaf not in self.shapes:
                if leaf not in self.numbers:
                    raise UnliftableError("reads several results at once")
                return self.numbers[leaf]
            return self._placeholder(leaf) if leaf in unread else self.operand(leaf)

        return torch.utils._pytree.tree_map(as_lifted, tree)

    def operand(self, value: Value) -> Value | Constant:
        """A tensor's lifted twin, or a constant if it does not depend on the input."""
        if value in self.twins:
            return self.twins[value]
        if value in self.statics:
            return self.statics[value]
        if not value.depends:
            raise UnliftableError(f"'{value.name}' is not known for a single sample")
        return self.reshape(self.natural.get(value, value), self.shapes[value])

    def arguments(self) -> dict[str, Any]:
        """The node's arguments by name, lifted; empty if it is no ATen operation."""
        node = self.node
        found: dict[str, Any] = self.tree(bind(getattr(node.call, "whole", node.call), node.args, node.kwargs))
        return found

    def _placeholder(self, value: Value) -> Constant:
        """Something of the value's shape and dtype, for operations that read no more than those."""
        sizes, dtype, device = self.shapes[value], value.dtype, self.device
        return Constant(value.name, lambda: torch.zeros((), dtype=dtype, device=device).expand(sizes))

    # Nodes

    def emit(
        self,
        name: str,
        call: Callable[..., Any],
        args: tuple[Any, ...],
        shape: Sequence[int],
        kwargs: dict[str, Any] | None = None,
        dtype: torch.dtype | None = None,
        unread: tuple[Value, ...] = (),
    ) -> Value:
        """A new node in the place of the original one; ``(B, *shape)``."""
        kwargs = kwargs or {}
        value = self.graph.new_value(self.node.output.name, (None, *shape), dtype or self.node.output.dtype)
        inputs = tuple(dict.fromkeys(leaf for leaf in leaves((args, kwargs)) if isinstance(leaf, Value)))
        read = [v for v in inputs if v not in unread]
        value.depends = any(v.depends for v in read)
        kind = KIND_OF.get(name, self.node.kind if name == self.node.operation else "unknown")
        kind = "move" if kind == "identity" else kind
        mapped = isinstance(call, PerSample)
        if mapped and kind not in _GENERIC:
            # A convolution whose kernel is computed from the input is a product, which its own arguments said.
            kind = self.node.kind if self.node.kind in _GENERIC else "unknown"
        node = Node(kind, name, call, args, kwargs, inputs, value, self.node.path, self.node.module_type)
        node.attributes["unread"] = unread
        value.carries = carries(node, read)
        plain = call.call if isinstance(call, PerSample) else call
        node.kind = KIND[kind].read(node, bind(getattr(plain, "whole", plain), args, kwargs)) or kind
        if mapped and node.kind not in _GENERIC:
            node.kind = "unknown"
        value.producer = node
        self.made.append(node)
        return value

    def reshape(self, x: Value, sizes: Sequence[int]) -> Value:
        """``(B, *sizes)``; a reshape of a reshape is one, and none if the sizes are those from before."""
        sizes = tuple(sizes)
        while x.producer is not None and x.producer.call is rows_reshaped:
            x = x.producer.args[0]
        if x.sizes == sizes:
            return x
        return self.emit("reshape", rows_reshaped, (x, sizes), sizes, dtype=x.dtype)

    def permute(self, x: Value, axes: Sequence[int]) -> Value:
        """Axes of each sample in another order; where only axes of size 1 move it is a reshape."""
        sizes = [x.sizes[a] for a in axes]
        moved = [a for a in axes if x.sizes[a] != 1]
        if moved == sorted(moved):
            return self.reshape(x, sizes)
        before = x.producer
        if before is not None and before in self._permutes:
            inner = [a - 1 for a in before.args[1][1:]]
            x, axes = before.args[0], [inner[a] for a in axes]
            return self.permute(x, axes)
        y = self.emit("permute", aten.permute.default, (x, [0, *(a + 1 for a in axes)]), sizes, dtype=x.dtype)
        assert y.producer is not None
        self._permutes.add(y.producer)
        return y

    @property
    def _permutes(self) -> set[Node]:
        found: set[Node] = self.__dict__.setdefault("permutes", set())
        return found

    def rows(self, operand: Value | Constant) -> Value:
        """A constant behind a batch axis, where an operation broadcasts nothing."""
        if isinstance(operand, Value):
            return operand
        like = self.graph.inputs[0]
        tensor = operand.tensor()
        return self.emit("expand", rows_of, (operand, like), tensor.shape, dtype=tensor.dtype, unread=(like,))

    def mapped(self) -> Value:
        """The operation mapped over the samples, whatever it is."""
        node = self.node
        args, kwargs = self.tree((node.args, node.kwargs))
        if not any(isinstance(leaf, Value) for leaf in leaves((args, kwargs))):
            raise UnliftableError("reads no activation")
        return self.emit(node.operation, PerSample(node.call, args, kwargs), args, self.shape, kwargs)


def sizes_of(operand: Any) -> tuple[int, ...]:
    """Sizes for one sample of a lifted value, a constant or a number."""
    if isinstance(operand, Value):
        return operand.sizes
    return tuple(operand.tensor().shape) if isinstance(operand, Constant) else ()
