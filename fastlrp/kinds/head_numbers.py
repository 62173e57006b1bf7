"""Which head of attention each entry of a product belongs to, by its own axes and by the projection behind it.

A projection behind attention reads the heads side by side as its channels: entry ``e`` of head ``h`` is channel
``h * D + e``. Entries are followed there through moves, so that the heads are known in any layout: ``(B, H, S, D)``,
``(B, S, H, D)``, grouped queries ``(B, G, H / G, S, D)`` or ``(B, G, H / G * S, D)``, windows with their own axis.
Where both are known they have to agree.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fastlrp.capture.bind import bind_forward
from fastlrp.capture.graph import Graph, Node, Value
from fastlrp.errors import UnsupportedOperationError

_SAME_ENTRIES = (
    "write",
    "identity",
    "detached",
    "activation",
    "attention_weights",
    "mul",
    "add",
    "normalization",
    "batch_norm",
)
_RESHAPES = ("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as", "reshape_as")


def number_heads(graph: Graph, nodes: Iterable[Node]) -> None:
    """Note at each of the nodes the head of every entry of its result, or why that cannot be known."""
    finder = _Finder(graph)
    for node in nodes:
        found = finder.of(node)
        node.attributes["heads"] = _narrowed(found) if isinstance(found, Tensor) else found


def heads_of(node: Node) -> Tensor:
    """The head of every entry of one sample of the result; axes that have nothing to do with it have size 1.

    Raises:
        UnsupportedOperationError: if that cannot be known.
    """
    found = node.attributes["heads"]
    if isinstance(found, Tensor):
        return found
    raise UnsupportedOperationError(
        f"{node} has a rule for each head, but which of its entries belong to which head cannot be told: {found}. "
        "Understood are results (batch, heads, positions, channels), and any other layout that is brought to "
        "(…, heads * channels) for a linear layer behind it"
    )


@dataclass
class _Axes:
    """Of one sample of a product's result: axes of channels, of positions, of heads if it tells; how many keys."""

    channels: int
    rows: tuple[int, ...]
    heads: int | None
    keys: int | None


class _Finder:
    def __init__(self, graph: Graph) -> None:
        self.batch, self.consumers = graph.batch or 1, graph.consumers()
        self.known: dict[Node, Tensor | str] = {}

    def of(self, node: Node) -> Tensor | str:
        if node not in self.known:
            self.known[node] = self._find(node)
        return self.known[node]

    def _find(self, node: Node) -> Tensor | str:
        y = node.output
        axes = _axes(node) if y.has_batch_first and len(y.sizes) >= 3 else None
        if axes is None:
            return f"its result has the sizes {y.shape[1:]} of one sample"
        by_axis = None
        if axes.heads is not None:
            view = [-1 if i == axes.heads else 1 for i in range(len(y.sizes))]
            by_axis = torch.arange(y.sizes[axes.heads]).view(view).expand(y.sizes)
        projected, of_product = self._projected(node, axes)
        if projected is None:
            return f"sizes {y.sizes} of one sample, and no layer reads its heads" if by_axis is None else by_axis
        if of_product and axes.keys is None:
            return projected  # Scores: the heads are those of the product of weights and values, in its layout.
        return _agreed(y.sizes, axes, by_axis, projected)

    def _projected(self, node: Node, axes: _Axes) -> tuple[Tensor | None, bool]:
        """By what reads the result, -1 at entries that it does not: a projection's channels, or (True) a product."""
        y = node.output
        index = torch.arange(1, y.numel + 1).view(1, *y.sizes).expand(self.batch, *y.sizes)
        for reader, operand, read in self._readers(y, index, {y}):
            if reader.kind == "product":
                known = self.of(reader)
                heads = _of_operand(reader, operand, known) if isinstance(known, Tensor) else None
            else:
                heads = _of_channels(reader, operand, read[0], y.sizes, axes.channels)
            if heads is None:
                continue
            found = torch.full((y.numel + 1,), -1)
            found[read[0].flatten()] = heads.flatten()
            if torch.equal(found[read[0].flatten()], heads.flatten()):
                return found[1:].view(y.sizes), reader.kind == "product"
        return None, False

    def _readers(self, x: Value, index: Tensor, seen: set[Value]) -> Iterator[tuple[Node, Value, Tensor]]:
        """Layers with weights and products that read the entries, behind moves and element-wise operations."""
        for node in self.consumers.get(x, ()):
            y = node.output
            if x not in node.sources or y in seen:
                continue
            if node.kind in ("linear", "conv", "product"):
                yield node, x, index
                continue
            moved = self._moved(node, x, index) if y.has_batch_first else None
            if moved is not None and moved.shape[1:] == y.sizes:
                seen.add(y)
                yield from self._readers(y, moved, seen)

    def _moved(self, node: Node, x: Value, index: Tensor) -> Tensor | None:
        y = node.output
        if node.kind in _SAME_ENTRIES or (node.kind == "move" and x.dtype != y.dtype):
            return index if x.sizes == y.sizes else None
        if node.kind == "cat":
            parts = [index if v is x else torch.zeros(self.batch, *v.sizes, dtype=torch.long) for v in node.inputs]
        elif node.kind != "move" or any(v.is_tensor for v in node.inputs if v is not x):
            return None
        elif node.operation in _RESHAPES and x.numel == y.numel:
            return index.reshape(self.batch, *y.sizes)
        else:
            parts = [index if v is x else self.batch for v in node.inputs]  # type: ignore[misc]
        try:
            moved = bind_forward(node)(*parts)
        except (RuntimeError, TypeError, ValueError, IndexError):
            return None
        return moved if isinstance(moved, Tensor) and moved.dtype == torch.long else None


def _axes(node: Node) -> _Axes | None:
    n, weights = len(node.output.sizes), node.attributes.get("weights")
    heads = 0 if n == 3 else None
    if node.operation == "einsum":
        terms = _terms(node)
        if terms is None or weights is None:
            return None if terms is None else _Axes(n - 1, (n - 2,), None, None)
        (_, of_weights), (_, of_values) = sorted(terms[0], key=lambda term: term[0] is not weights)
        y = terms[1]
        channels = [i for i, c in enumerate(y) if c in of_values and c not in of_weights]
        rows = tuple(i for i, c in enumerate(y) if c in of_weights and c not in of_values)
        shared = [i for i, c in enumerate(y) if c in of_weights and c in of_values]
        summed = [weights.sizes[i] for i, c in enumerate(of_weights) if c not in y]
        if len(channels) != 1 or len(summed) != 1:
            return None
        return _Axes(channels[0], rows, shared[0] if len(shared) == len(rows) == 1 else None, summed[0])
    if node.kind == "attention":
        return _Axes(n - 1, (n - 2,), heads, node.attributes["operands"][1].sizes[-2])
    if node.operation not in ("matmul", "bmm"):
        return None
    if weights is None:
        return _Axes(n - 1, (n - 2,), None, None)
    if weights is node.args[0]:
        return _Axes(n - 1, (n - 2,), heads, weights.sizes[-1])
    return _Axes(n - 2, (n - 1,), heads, weights.sizes[-2])


def _terms(node: Node) -> tuple[list[tuple[Value, str]], str] | None:
    """Both operands of an einsum with their letters, and those of the result, all without the batch."""
    equation, operands = str(node.args[0]).replace(" ", ""), node.args[1]
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    plain = arrow and "." not in equation and len(terms) == 2 and all(isinstance(v, Value) for v in operands)
    if not plain or any(len(set(t)) != len(t) or t[:1] != right[:1] for t in terms):
        return None
    return [(v, t[1:]) for v, t in zip(operands, terms, strict=True)], right[1:]


def _of_channels(reader: Node, x: Value, index: Tensor, sizes: tuple[int, ...], channels: int) -> Tensor | None:
    """Channel ``h * D + e`` of a layer belongs to head ``h``, if it is entry ``e`` of the ``D`` of the product."""
    axis, width = (0 if reader.kind == "conv" else index.dim() - 1), sizes[channels]
    view = [-1 if i == axis else 1 for i in range(index.dim())]
    channel = torch.arange(index.shape[axis]).view(view).expand(index.shape)
    behind = torch.Size(sizes[channels + 1 :]).numel()
    if reader.args[0] is not x or bool((((index - 1) // behind % width != channel % width) | (index == 0)).any()):
        return None
    return channel // width


def _of_operand(node: Node, x: Value, heads: Tensor) -> Tensor | None:
    """The head of each entry of one factor of a product, from those of its result."""
    if node.operation == "einsum":
        terms = _terms(node)
        if terms is None:
            return None
        letters, own = terms[1], next(term for v, term in terms[0] if v is x)
        for i in reversed([i for i, c in enumerate(letters) if c not in own]):
            if not _is_constant(heads, i):
                return None
            heads, letters = heads.select(i, 0), letters[:i] + letters[i + 1 :]
        heads = heads.permute([letters.index(c) for c in own if c in letters])
        for i, c in enumerate(own):
            heads = heads if c in letters else heads.unsqueeze(i)
        return heads.expand(x.sizes)
    axis = -1 if x is node.args[0] else -2
    if node.operation not in ("matmul", "bmm") or x.sizes[:-2] != heads.shape[:-2] or not _is_constant(heads, axis):
        return None
    return heads.narrow(axis, 0, 1).expand(x.sizes)


def _narrowed(heads: Tensor) -> Tensor:
    for axis in range(heads.dim()):
        if _is_constant(heads, axis):
            heads = heads.narrow(axis, 0, 1)
    return heads.clone()


def _is_constant(heads: Tensor, axis: int) -> bool:
    return torch.equal(heads.amax(axis), heads.amin(axis))


def _agreed(sizes: tuple[int, ...], axes: _Axes, by_axis: Tensor | None, projected: Tensor) -> Tensor | str:
    """What the projection says; with the product's own axis of heads only if that is the same, or can be."""
    reached, count = projected >= 0, int(projected.max()) + 1
    found = f"the layer behind it reads {count} heads as its channels"
    if by_axis is None:
        projected, fixed = _filled(projected, axes.rows)
        outer = torch.Size(sizes).numel() // sizes[axes.channels] // torch.Size([sizes[i] for i in axes.rows]).numel()
        one_of_many = count == 1 and outer > 1
        return projected if fixed and not one_of_many else f"sizes {sizes} of one sample, of which {found}"
    own = int(by_axis.max()) + 1
    if count == own:
        same = torch.equal(projected[reached], by_axis[reached])
        return by_axis if same else f"{found}, in another order than the product has them"
    if count < own and own % count == 0 and count > 1 and bool(reached.all()):
        return projected  # Windows and heads in one axis.
    positions = projected.numel() // sizes[axes.channels] // count
    if count > own and count % own == 0 and bool(reached.all()) and positions == axes.keys and positions > 1:
        return projected  # Queries of a group and positions in one axis.
    return f"{found}, the product has {own}"


def _filled(heads: Tensor, rows: tuple[int, ...]) -> tuple[Tensor, bool]:
    """All entries, where only some positions are read; and whether positions have nothing to do with the heads."""
    wide, least = heads, heads.max() + 1
    fixed = [i for i in rows if heads.shape[i] > 1]
    for i in fixed:
        low = torch.where(heads < 0, least, heads).amin(i, keepdim=True)
        high = heads.amax(i, keepdim=True)
        if torch.equal(low, high):
            wide = high.expand_as(heads)
            return wide, bool((wide >= 0).all())
    return heads, not fixed and bool((heads >= 0).all())
