"""Where the batch stands in each value, proved from the operations' arguments.

A value whose batch axis travels has it somewhere among its sizes: ``(S, B, D)`` at axis 1, windows that were folded
into the batch at axis 0 as ``B * n``, heads as ``B * heads``. Its :class:`Place` says where. An operation whose
arguments show that it works along no such axis keeps samples apart, and its result has a place again, so that nothing
has to be tried. Whatever has no rule here, or whose arguments say too little, gives None.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from fastlrp.capture.graph import Constant, Node, Value, leaves
from fastlrp.capture.lift.batch_axis import ELEMENTWISE, arguments, axes_of


@dataclass(frozen=True)
class Place:
    """Axis ``axis`` has ``before * B * after`` entries, of which ``[i, b, j]`` belongs to sample b."""

    axis: int
    before: int = 1
    after: int = 1


FRONT = Place(0)

_Rule = Callable[["Standing", Node, dict[str, Any]], "Place | None"]


class Standing:
    """Follows the batch through a graph, node by node.

    Attributes:
        rows: values whose row b belongs to sample b; the caller adds to them, too.
        places: of the values that are not batch-first.
        counting: values that hold the numbers of the samples, 0 to B - 1, along one axis, and which axis that is.
    """

    def __init__(self, rows: set[Value]) -> None:
        self.rows = rows
        self.places: dict[Value, Place] = {}
        self.counting: dict[Value, int] = {}

    def place(self, value: Value) -> Place | None:
        """Of a value that was followed so far."""
        if value in self.rows:
            return FRONT if value.has_batch_first else None
        return self.places.get(value)

    def follow(self, node: Node) -> bool:
        """True if the arguments prove where the batch stands in the result, and that no sample met another."""
        y = node.output
        if not y.is_tensor or not y.shape:
            return False
        a = arguments(node)
        if self._counts(node, a):
            return False
        place = self._of(node, a)
        if place is None or not alone_symbolic(y, place.axis):
            return False
        if place == FRONT and y.shape[0] is None:
            self.rows.add(y)
        else:
            self.places[y] = place
        return True

    def _of(self, node: Node, a: dict[str, Any]) -> Place | None:
        if not any(v.is_tensor for v in node.inputs):
            return FRONT if _same_for_all(node, a) else None
        rule = RULES.get(node.operation)
        return None if rule is None else rule(self, node, a)

    def _counts(self, node: Node, a: dict[str, Any]) -> bool:
        """Note values that hold the numbers of the samples."""
        y, sources = node.output, [v for v in node.inputs if v.is_tensor]
        if not sources:
            plain = not a.get("start") and a.get("step", 1) == 1
            if node.operation == "arange" and plain and y.shape == (None,):
                self.counting[y] = 0
        elif len(sources) == 1 and sources[0] in self.counting and node.operation in _KEEP_COUNTING:
            whole = node.operation != "slice" or axes_of(node, a) == frozenset()
            symbolic = [i for i, n in enumerate(y.shape) if not isinstance(n, int)]
            if whole and len(symbolic) == 1 and all(n == 1 for i, n in enumerate(y.shape) if i != symbolic[0]):
                self.counting[y] = symbolic[0]
        return y in self.counting

    def together(self, values: Collection[Value], rank: int) -> Place | None:
        """The place of operands that are broadcast to ``rank`` axes, if they have one in common."""
        found = set()
        for v in values:
            place = self.place(v)
            if place is None:
                return None
            found.add(Place(place.axis + rank - len(v.shape), place.before, place.after))
        return found.pop() if len(found) == 1 else None


_KEEP_COUNTING = {"slice", "unsqueeze", "view", "reshape", "clone", "contiguous", "alias"}


def alone_symbolic(value: Value, axis: int) -> bool:
    """True if this is the one axis whose size is no plain number."""
    return [i for i, n in enumerate(value.shape) if not isinstance(n, int)] == [axis]


def _same_for_all(node: Node, a: dict[str, Any]) -> bool:
    """Made of sizes alone, and the same for each sample: filled with a number, or a constant that is expanded."""
    if not node.output.has_batch_first:
        return False
    if node.operation in ("expand", "repeat"):
        return isinstance(node.args[0], Constant)
    if node.operation in ("full", "new_full"):
        return not isinstance(a.get("fill_value"), Value)
    return node.operation in ("zeros", "ones", "new_zeros", "new_ones")


def _tensors(node: Node) -> list[Value] | None:
    """The inputs, if all of them are tensors: a number may be the size of the batch."""
    return list(node.inputs) if all(v.is_tensor for v in node.inputs) else None


def _entries(standing: Standing, node: Node, a: dict[str, Any]) -> Place | None:
    """Entry by entry, operands broadcast."""
    values = _tensors(node)
    return None if values is None else standing.together(values, len(node.output.shape))


def _elsewhere(standing: Standing, node: Node, a: dict[str, Any]) -> Place | None:
    """Along axes that the arguments name, the batch not among them; those that are dropped count no more."""
    values = _tensors(node)
    place = standing.place(values[0]) if values is not None and len(values) == 1 else None
    axes = None if place is None else axes_of(node, a)
    if place is None or values is None or axes is None or place.axis in axes:
        return None
    dropped = len(values[0].shape) - len(node.output.shape)
    if dropped not in (0, len(axes)):
        return None
    axis = place.axis - (sum(i < place.axis for i in axes) if dropped else 0)
    return Place(axis, place.before, place.after)


def _stacks(standing: Standing, node: Node, a: dict[str, Any]) -> Place | None:
    """Products of matrices: the batch counts matrices, or rows of the first and columns of the second operand."""
    left, right = node.args[:2]
    rank, values = len(node.output.shape), _tensors(node)
    if values is None or any(len(_sizes(operand)) < 2 for operand in (left, right)):
        return None
    place = standing.together(values, rank)
    if place is None:
        return None
    behind = rank - place.axis
    if isinstance(left, Value) and isinstance(right, Value):
        return place if behind > 2 else None
    return place if behind > 2 or behind == (2 if isinstance(left, Value) else 1) else None


def _layer(standing: Standing, node: Node, a: dict[str, Any]) -> Place | None:
    """Dense layers sum along the last axis; other products are those of stacks."""
    if node.kind == "linear":
        return _elsewhere(standing, node, a)
    return _stacks(standing, node, a) if node.operation in ("matmul", "mm", "bmm") else None


def _sizes(operand: Any) -> tuple[Any, ...]:
    if isinstance(operand, Value):
        return operand.shape
    return tuple(operand.tensor().shape) if isinstance(operand, Constant) else ()


def _reshaped(standing: Standing, node: Node, a: dict[str, Any]) -> Place | None:
    """The order of all entries stays: the batch is where as many stand before and behind as did."""
    x, y = node.args[0], node.output
    if not isinstance(x, Value) or sum(v.is_tensor for v in node.inputs) != 1:
        return None
    if node.operation == "squeeze" and "dim" not in a:
        return None  # Of a single sample it would take the batch, too.
    place = standing.place(x)
    if place is None:
        return None
    outer = prod(n for n in x.shape[: place.axis] if isinstance(n, int)) * place.before
    inner = prod(n for n in x.shape[place.axis + 1 :] if isinstance(n, int)) * place.after
    axis = next((i for i, n in enumerate(y.shape) if not isinstance(n, int)), None)
    if axis is None or not alone_symbolic(y, axis):
        return None
    before = prod(n for n in y.shape[:axis] if isinstance(n, int))
    after = prod(n for n in y.shape[axis + 1 :] if isinstance(n, int))
    if not before or not after or outer % before or inner % after:
        return None
    return Place(axis, outer // before, inner // after)


def _permuted(standing: Standing, node: Node, a: dict[str, Any]) -> Place | None:
    """The permutation that the operation applies, seen on a tensor whose sizes are the axes' numbers."""
    x, place = node.args[0], None
    if isinstance(x, Value) and len(node.inputs) == 1:
        place = standing.place(x)
    if place is None:
        return None
    sizes = [i + 1 for i in range(len(x.shape))]
    moved = node.call(torch.empty(sizes, device="meta"), *node.args[1:], **node.kwargs)
    return Place(list(moved.shape).index(place.axis + 1), place.before, place.after)


def _wider(standing: Standing, node: Node, a: dict[str, Any]) -> Place | None:
    """Axes of size 1 that are expanded, and new ones in front."""
    x = node.args[0]
    place = standing.place(x) if isinstance(x, Value) and sum(v.is_tensor for v in node.inputs) == 1 else None
    if place is None:
        return None
    return Place(place.axis + len(node.output.shape) - len(x.shape), place.before, place.after)


def _joined(standing: Standing, node: Node, a: dict[str, Any]) -> Place | None:
    """Parts that all have the batch in the same place, put together along another axis."""
    dim, rank, values = a.get("dim", 0), len(node.output.shape), _tensors(node)
    new = node.operation == "stack"
    if values is None or not isinstance(dim, int) or any(len(v.shape) != rank - new for v in values):
        return None
    if any(isinstance(leaf, Constant) for leaf in leaves(node.args)):
        return None
    place = standing.together(values, rank - new)
    dim %= rank
    if place is None or (not new and dim == place.axis):
        return None
    return Place(place.axis + (new and dim <= place.axis), place.before, place.after)


def _attended(standing: Standing, node: Node, a: dict[str, Any]) -> Place | None:
    """Queries, keys, values and masks of each sample for themselves; constant masks are broadcast."""
    values = _tensors(node)
    if values is None or not all(isinstance(a.get(name), Value) for name in ("query", "key", "value")):
        return None
    rank = len(node.output.shape)
    if any(len(a[name].shape) != rank for name in ("query", "key", "value")):
        return None
    place = standing.together(values, rank)
    return place if place is not None and place.axis < rank - 2 else None


def _chosen(standing: Standing, node: Node, a: dict[str, Any]) -> Place | None:
    """Lookup in a constant table: the batch stands where it does in the index."""
    values = _tensors(node)
    if values is None or len(values) != 1 or not isinstance(node.args[0], Constant):
        return None
    return standing.place(values[0])


def _each_class(standing: Standing, node: Node, a: dict[str, Any]) -> Place | None:
    """``one_hot`` adds an axis of classes behind all others: the batch stands where it stood."""
    values = _tensors(node)
    return standing.place(values[0]) if values is not None and len(values) == 1 else None


def _along_one(standing: Standing, node: Node, a: dict[str, Any]) -> Place | None:
    """Several operands with as many axes, combined along an axis that is not the batch."""
    values, dim, rank = _tensors(node), a.get("dim"), len(node.output.shape)
    if values is None or not isinstance(dim, int) or any(len(v.shape) != rank for v in values):
        return None
    if any(isinstance(leaf, Constant) for leaf in leaves((node.args, node.kwargs))):
        return None
    place = standing.together(values, rank)
    return place if place is not None and dim % rank != place.axis else None


def _of_each_sample(standing: Standing, node: Node, a: dict[str, Any]) -> Place | None:
    """``x[arange(B), …]``: entries of sample b alone, chosen by constants or by indices of its own."""
    x, indices = node.args[0], a.get("indices") or []
    named = [index for index in indices if index is not None]
    if not isinstance(x, Value) or standing.place(x) != FRONT or x.shape[0] is not None:
        return None
    if not named or list(indices[: len(named)]) != named or not isinstance(named[0], Value):
        return None
    rank = max(len(_sizes(index)) for index in named)
    axis = standing.counting.get(named[0])
    if axis is None:
        return None
    axis += rank - len(named[0].shape)
    for index in named[1:]:
        if isinstance(index, Value) and standing.together([index], rank) != Place(axis):
            return None
    return Place(axis)


def _table() -> dict[str, _Rule]:
    entries: tuple[tuple[str, _Rule], ...] = (
        (" ".join(ELEMENTWISE), _entries),
        (
            "softmax log_softmax cumsum mean sum amax amin any all argmax argmin logsumexp prod std var max min median "
            "kthvalue mode topk sort argsort cummax cummin cumprod logcumsumexp linalg_vector_norm norm flip roll "
            "select narrow slice unbind chunk split split_with_sizes layer_norm rms_norm conv1d conv2d conv3d "
            "conv_transpose1d conv_transpose2d conv_transpose3d batch_norm pad constant_pad_nd pixel_shuffle "
            "pixel_unshuffle max_pool1d max_pool2d avg_pool1d avg_pool2d adaptive_avg_pool1d adaptive_avg_pool2d "
            "index_select", _elsewhere,
        ),
        ("linear matmul mm addmm bmm", _layer),
        ("view reshape flatten unflatten unsqueeze squeeze _unsafe_view", _reshaped),
        ("permute transpose swapaxes swapdims t adjoint mT movedim moveaxis numpy_T", _permuted),
        ("expand broadcast_to", _wider),
        ("cat concat concatenate stack", _joined),
        ("scaled_dot_product_attention", _attended),
        ("embedding", _chosen),
        ("one_hot", _each_class),
        ("diff gather take_along_dim scatter scatter_add", _along_one),
        ("index", _of_each_sample),
    )  # fmt: skip
    return {name: rule for names, rule in entries for name in names.split()}


RULES = _table()
"""How the place of the batch follows from the operands', by operation."""
