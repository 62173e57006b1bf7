"""Proofs that a lifted form computes what the model's own operation does for each sample alone.

Three kinds of forms prove themselves, whatever made them:

* moves of entries (``view``, ``permute``): the numbers of the entries are moved both ways and must agree;
* the same call on operands that only have a batch axis more, in front: element-wise operations, dense layers, norms
  over the last axes, products of matrices;
* the same call with the axes that it names one further back: ``softmax``, ``sum``, ``split``.

Any other form is tried, see :mod:`fastlrp.capture.lift.check`.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import torch
from torch import Tensor

from fastlrp.capture.arguments import bind
from fastlrp.capture.graph import Constant, Node, Value, leaves
from fastlrp.capture.lift.batch_axis import ELEMENTWISE
from fastlrp.capture.lift.lifter import Lifter, aten, rows_reshaped
from fastlrp.capture.lift.moves import NAMED_AXES

_MOVE_NAMES = (
    "view reshape flatten unflatten squeeze unsqueeze _unsafe_view permute transpose swapaxes swapdims t adjoint mT "
    "numpy_T movedim moveaxis slice narrow select chunk split split_with_sizes unbind"
)
_MOVES = frozenset(_MOVE_NAMES.split())
_SAME = (ELEMENTWISE - {"prelu"}) | {"linear", "layer_norm", "rms_norm"}
_AXIS_NAMES = (
    "softmax log_softmax cumsum sum mean amax amin argmax argmin logsumexp flip slice narrow select chunk split "
    "split_with_sizes unbind topk sort"
)
_ALONG = frozenset(_AXIS_NAMES.split())
_LARGEST = 1 << 24
"""Entries of one sample up to which moves are followed one by one."""


def is_proved(lifter: Lifter, node: Node, made: list[Node]) -> bool:
    """Whether the form ``made`` of ``node`` gives row b as the operation gives it for sample b alone.

    Args:
        made: the new nodes in order; none if an operand stands for the result.
    """
    try:
        return (
            _is_move(lifter, node, made)
            or _is_same_call(lifter, node, made)
            or _is_dense(lifter, node, made)
            or _is_shifted(lifter, node, made)
        )
    except Exception:  # What cannot be proved, for whatever reason, is tried.
        return False


def _is_reshape(node: Node) -> bool:
    return node.call is rows_reshaped


def _is_permute(node: Node) -> bool:
    return node.call is aten.permute.default and node.args[1][0] == 0


def _origin(x: Any) -> Any:
    """The value that reshapes were made of."""
    while isinstance(x, Value) and x.producer is not None and _is_reshape(x.producer):
        x = x.producer.args[0]
    return x


def _stands_for(lifter: Lifter, value: Value) -> Any:
    """What lifted readers of a value read, reshapes taken away."""
    return _origin(lifter.twins.get(value, lifter.natural.get(value, value)))


def _sized(leaf: Any) -> tuple[int, ...] | None:
    return leaf.sizes if isinstance(leaf, Value) else None


# Moves


def _chain(value: Value) -> tuple[Value, list[Node]]:
    """Where a value's entries come from by reshapes and permutations, and these in order."""
    moves: list[Node] = []
    while value.producer is not None and (_is_reshape(value.producer) or _is_permute(value.producer)):
        moves.append(value.producer)
        value = value.producer.args[0]
    return value, moves[::-1]


def _moved(numbers: Tensor, moves: list[Node]) -> Tensor:
    for move in moves:
        numbers = move.call(numbers, move.args[1])
    return numbers


def _is_move(lifter: Lifter, node: Node, made: list[Node]) -> bool:
    """Only reshapes and permutations stand for it, and put every entry where the operation does."""
    if node.operation not in _MOVES or not all(_is_reshape(n) or _is_permute(n) for n in made):
        return False
    x = node.args[0]
    if not isinstance(x, Value) or prod(lifter.shapes[x]) > _LARGEST:
        return False
    before, after = lifter.twins.get(x, lifter.natural.get(x, x)), lifter.twins[node.output]
    (origin, moves), (other, more) = _chain(before), _chain(after)
    if origin is not other:
        return False
    rest, kwargs = lifter.tree((node.args[1:], node.kwargs), node)
    if any(isinstance(leaf, (Value, Constant)) for leaf in leaves((rest, kwargs))):
        return False
    numbers = torch.arange(prod(origin.sizes), dtype=torch.int32).reshape(1, *origin.sizes)
    own = node.call(_moved(numbers, moves).reshape(lifter.shapes[x]), *rest, **kwargs)
    return torch.equal(own, _moved(numbers, more)[0])


# The same call


def _pairs(old: Any, new: Any) -> Iterator[tuple[Any, Any]]:
    """Leaves of two trees side by side.

    Raises:
        ValueError: if one has more leaves.
    """
    yield from zip(leaves(old), leaves(new), strict=True)


def _is_operand(lifter: Lifter, old: Any, new: Any, rank: int | None) -> bool:
    """Whether ``new`` is the operand ``old`` behind a batch axis; ``rank``: with axes of size 1 in front up to it."""
    if isinstance(old, Value) and old in lifter.shapes:
        if old in lifter.statics:
            return new is lifter.statics[old]
        sizes = lifter.shapes[old]
        wanted = sizes if rank is None else (1,) * (rank - len(sizes)) + sizes
        return _origin(new) is _stands_for(lifter, old) and _sized(new) == wanted
    if isinstance(old, (Value, Constant)) or isinstance(new, (Value, Constant)):
        return old is new
    return type(old) is type(new) and bool(old == new)


def _core(made: list[Node]) -> Node | None:
    """The one operation among reshapes of its operands, if it is the last."""
    if not made or _is_reshape(made[-1]) or not all(_is_reshape(n) for n in made[:-1]):
        return None
    return made[-1]


def _is_same_call(lifter: Lifter, node: Node, made: list[Node]) -> bool:
    new = _core(made)
    if new is None or node.output.shape is None:
        return False
    y = lifter.shapes[node.output]
    if node.operation in ("matmul", "bmm", "mm"):
        operands = node.args[:2]
        if new.call is not aten.matmul.default or any(len(_sizes(lifter, x)) < 2 for x in operands):
            return False
        pairs = list(_pairs(operands, new.args))
        rank: int | None = len(y)
    else:
        if node.operation not in _SAME or new.call is not node.call:
            return False
        pairs = list(_pairs((node.args, node.kwargs), (new.args, new.kwargs)))
        rank = len(y) if node.operation in ELEMENTWISE else None
        if rank is None and any(isinstance(old, Value) for old, _ in pairs[1:]):
            return False
    return all(_is_operand(lifter, old, new, rank) for old, new in pairs)


def _sizes(lifter: Lifter, x: Any) -> tuple[int, ...]:
    return lifter.shapes[x] if isinstance(x, Value) else tuple(x.tensor().shape)


def _is_dense(lifter: Lifter, node: Node, made: list[Node]) -> bool:
    """``addmm(bias, x, matrix)`` as a dense layer with the transposed matrix."""
    new = _core(made)
    if node.operation != "addmm" or new is None or new.call is not aten.linear.default:
        return False
    bound = bind(node.call, node.args, node.kwargs)
    if bound["beta"] != 1 or bound["alpha"] != 1 or new.args[2] is not bound["self"]:
        return False
    if not _is_operand(lifter, bound["mat1"], new.args[0], None) or not isinstance(bound["mat2"], Constant):
        return False
    own, ours = bound["mat2"].tensor().t(), new.args[1].tensor()
    same = own.data_ptr() == ours.data_ptr() and own.stride() == ours.stride() and own.shape == ours.shape
    return same or torch.equal(own, ours)


def _is_shifted(lifter: Lifter, node: Node, made: list[Node]) -> bool:
    """The axes that it names are one further back."""
    new = _core(made)
    if node.operation not in _ALONG or new is None or new.call is not node.call:
        return False
    target = getattr(node.call, "whole", node.call)
    old, now = bind(target, node.args, node.kwargs), bind(target, new.args, new.kwargs)
    rank = len(lifter.shapes[node.args[0]])
    if not rank or list(old) != list(now) or not any(name in old for name in NAMED_AXES):
        return False
    for name, value in old.items():
        if name in NAMED_AXES:
            named = [value] if isinstance(value, int) else value
            shifted = [now[name]] if isinstance(now[name], int) else now[name]
            if not named or [a % rank + 1 for a in named] != list(shifted):
                return False
        elif not all(_is_operand(lifter, *pair, None) for pair in _pairs(value, now[name])):
            return False
    return True
