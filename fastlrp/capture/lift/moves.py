"""Lifted forms of operations that work entry by entry, along named axes, or only copy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fastlrp.capture.graph import Constant, Value
from fastlrp.capture.lift.batch_axis import ELEMENTWISE
from fastlrp.capture.lift.lifter import Lifter, UnliftableError, aten, sizes_of
from fastlrp.capture.trace.functions import OfEachSample
from fastlrp.capture.translate.memory import Write

Form = Callable[[Lifter], Value]

NAMED_AXES = ("dim", "dims", "dim0", "dim1", "dim2", "dimension", "source", "destination")
_EVERY_AXIS = {"sum", "mean", "amax", "amin", "std", "var", "logsumexp", "linalg_vector_norm"}
"""Operations for which no axes named, or None, means all axes, and which take a list."""
_WITH_AXES: dict[Any, Callable[..., Any]] = {aten.sum.default: aten.sum.dim_IntList, aten.mean.default: aten.mean.dim}


def aligned(lifter: Lifter, operand: Any, rank: int) -> Any:
    """A lifted value with axes of size 1 behind the batch, so that it broadcasts as it did without a batch axis."""
    if not isinstance(operand, Value) or len(operand.sizes) >= rank:
        return operand
    return lifter.reshape(operand, (1,) * (rank - len(operand.sizes)) + operand.sizes)


def elementwise(lifter: Lifter) -> Value:
    """The same call: constants broadcast from the right."""
    node, rank = lifter.node, len(lifter.shape)
    args, kwargs = lifter.tree((node.args, node.kwargs))
    if node.operation == "prelu" and torch.Size(sizes_of(args[1])).numel() != 1:
        return lifter.mapped()  # One slope per entry of axis 1.
    args, kwargs = torch.utils._pytree.tree_map(lambda leaf: aligned(lifter, leaf, rank), (args, kwargs))
    return lifter.emit(node.operation, node.call, args, lifter.shape, kwargs)


def _shifted(axes: Any, rank: int) -> Any:
    """Axes of one sample as axes behind the batch."""
    if isinstance(axes, int):
        return axes % max(rank, 1) + 1
    return [a % max(rank, 1) + 1 for a in axes]


def _ordered(call: Any, bound: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments by name as positional ones and keywords."""
    schema = getattr(call, "whole", call)._schema.arguments
    kwargs = {a.name: bound[a.name] for a in schema if a.kwarg_only and bound[a.name] is not None}
    return tuple(bound[a.name] for a in schema if not a.kwarg_only), kwargs


def along(lifter: Lifter) -> Value:
    """The axes that arguments name, one further back."""
    node, shape = lifter.node, lifter.shape
    bound = lifter.arguments()
    found = [leaf for leaf in torch.utils._pytree.tree_leaves(bound) if isinstance(leaf, Value)]
    if "other" in bound:
        return elementwise(lifter)
    if len(found) != 1 or next(iter(bound.values())) is not found[0]:
        return lifter.mapped()
    x = found[0]
    call = _WITH_AXES.get(node.call, node.call)
    if call is not node.call:
        bound = {**bound, "dim": None, "keepdim": False}
    names = [name for name in NAMED_AXES if name in bound]
    if not names:
        return lifter.mapped()
    if x.sizes == ():
        x = lifter.reshape(x, (1,))
    rank, changed = len(x.sizes), {}
    for name in names:
        if bound[name] is None or bound[name] == []:
            if node.operation not in _EVERY_AXIS:
                return lifter.mapped()
            changed[name] = list(range(1, rank + 1))
        else:
            changed[name] = _shifted(bound[name], rank)
    first = next(iter(bound))
    args, kwargs = _ordered(call, {**bound, **changed, first: x})
    if bound.get("keepdim") and lifter.shapes[node.args[0]] == ():
        shape = (1,)
    y = lifter.emit(node.operation, call, args, shape, kwargs)
    return lifter.reshape(y, lifter.shape)


def taken(lifter: Lifter) -> Value:
    """A part of an axis: nothing to do if it is all of it."""
    node = lifter.node
    x = lifter.tree(node.args[0])
    if isinstance(x, Value) and torch.Size(x.sizes).numel() == torch.Size(lifter.shape).numel():
        return lifter.reshape(x, lifter.shape)
    return along(lifter)


def reshaped(lifter: Lifter) -> Value:
    """To the sizes of one sample."""
    node = lifter.node
    x = lifter.tree(node.args[0])
    if not isinstance(x, Value) or x.dtype != node.output.dtype:
        return lifter.mapped()
    return lifter.reshape(x, lifter.shape)


def permuted(lifter: Lifter) -> Value:
    """The permutation that the operation applies, seen on a tensor whose sizes are the axes' numbers."""
    node = lifter.node
    x = lifter.tree(node.args[0])
    rank = len(lifter.shape)
    if not isinstance(x, Value):
        return lifter.mapped()
    rest, kwargs = lifter.tree((node.args[1:], node.kwargs))
    moved = node.call(torch.empty([i + 1 for i in range(rank)]), *rest, **kwargs)
    return lifter.permute(x, [size - 1 for size in moved.shape])


def expanded(lifter: Lifter) -> Value:
    """To the sizes of one sample."""
    x, shape = lifter.tree(lifter.node.args[0]), lifter.shape
    if not isinstance(x, Value):
        return lifter.mapped()
    x = aligned(lifter, x, len(shape))
    return x if x.sizes == shape else lifter.emit("expand", aten.expand.default, (x, [-1, *shape]), shape)


def repeated(lifter: Lifter) -> Value:
    """``repeat`` and ``tile``, which repeat nothing along the batch axis."""
    x, times = lifter.tree(lifter.node.args[:2])
    if not isinstance(x, Value):
        return lifter.mapped()
    rank = len(lifter.shape)
    times = [1] * (rank - len(times)) + list(times)
    return lifter.emit("repeat", aten.repeat.default, (aligned(lifter, x, rank), [1, *times]), lifter.shape)


def joined(lifter: Lifter) -> Value:
    """All parts behind a batch axis, constants too."""
    node = lifter.node
    bound = lifter.arguments()
    if "tensors" not in bound:
        return lifter.mapped()
    rank = len(lifter.shape)
    wanted = rank - 1 if node.operation == "stack" else rank
    parts = [p for p in bound["tensors"] if len(sizes_of(p)) == wanted]
    parts = [lifter.rows(p) for p in parts]
    return lifter.emit(node.operation, node.call, (parts, _shifted(bound["dim"], rank)), lifter.shape)


def indexed(lifter: Lifter) -> Value:
    """Constant indices of axes that stand together."""
    node = lifter.node
    x, indices = lifter.tree(node.args[:2])
    named = [i for i, index in enumerate(indices) if index is not None]
    together = bool(named) and named[-1] - named[0] + 1 == len(named)
    if not isinstance(x, Value) or not together or any(isinstance(i, Value) for i in indices):
        return lifter.mapped()
    return lifter.emit(node.operation, node.call, (x, [None, *indices]), lifter.shape)


def gathered(lifter: Lifter) -> Value:
    """Both the source and the index behind a batch axis."""
    node = lifter.node
    bound = lifter.arguments()
    if node.operation != "gather" or lifter.shape == ():
        return lifter.mapped()
    x, index = lifter.rows(bound["self"]), lifter.rows(bound["index"])
    return lifter.emit("gather", node.call, (x, _shifted(bound["dim"], len(index.sizes)), index), lifter.shape)


def filled_in(lifter: Lifter) -> Value:
    """Slices that are overwritten: the same slices of each sample."""
    node = lifter.node
    if isinstance(node.call, Write):
        view = node.call.view
        schema = getattr(getattr(view, "whole", view), "_schema", None)
        base, source, *rest = lifter.tree(node.args)
        kwargs = lifter.tree(node.kwargs)
        if schema is None:
            return lifter.mapped()
        base, rank = lifter.rows(base), len(lifter.shape)
        for i, argument in enumerate(schema.arguments[1 : len(rest) + 1]):
            if argument.name in NAMED_AXES:
                rest[i] = _shifted(rest[i], rank)
        named = {a.name for a in schema.arguments[1 : len(rest) + 1]}
        for argument in schema.arguments[len(rest) + 1 :]:
            if argument.name in NAMED_AXES and argument.name not in named:
                kwargs = {**kwargs, argument.name: _shifted(kwargs.get(argument.name, argument.default_value), rank)}
        source = aligned(lifter, source, _rank_of_view(lifter, rest, kwargs))
        return lifter.emit(node.operation, node.call, (base, source, *rest), lifter.shape, kwargs)
    bound = lifter.arguments()
    if not bound:
        return lifter.mapped()
    base, source, rank = lifter.rows(bound["self"]), lifter.rows(bound["src"]), len(lifter.shape)
    changed = {name: _shifted(bound[name], rank) for name in NAMED_AXES if name in bound}
    args, kwargs = _ordered(node.call, {**bound, **changed, "self": base, "src": source})
    return lifter.emit(node.operation, node.call, args, lifter.shape, kwargs)


def _rank_of_view(lifter: Lifter, rest: list[Any], kwargs: dict[str, Any]) -> int:
    """Axes of the overwritten view of one sample."""
    call: Any = lifter.node.call
    seen = call.view(torch.empty((2, *lifter.shape), device="meta"), *rest, **kwargs)
    return int(seen.dim()) - 1


def padded(lifter: Lifter) -> Value:
    """Constants along the last axes; anything else is padded as channels."""
    node = lifter.node
    bound = lifter.arguments()
    x = bound.get("self")
    if not isinstance(x, Value) or isinstance(bound.get("value"), (Value, Constant)):
        return lifter.mapped()
    amounts = bound.get("pad", bound.get("padding")) or []
    plain = node.operation == "constant_pad_nd" or (node.operation == "pad" and bound["mode"] == "constant")
    if plain or len(x.sizes) == len(amounts) // 2 + 1:
        args, kwargs = lifter.tree((node.args, node.kwargs))
        return lifter.emit(node.operation, node.call, args, lifter.shape, kwargs)
    return as_channels(lifter)


def as_channels(lifter: Lifter) -> Value:
    """``(B, n, C, …)`` as ``(B, n C, …)``, for what treats each channel alone."""
    node, shape = lifter.node, lifter.shape
    (x, *rest), kwargs = lifter.tree((node.args, node.kwargs))
    if not isinstance(x, Value) or len(x.sizes) != len(shape):
        return lifter.mapped()
    folded = len(shape) - _spatial(lifter)
    if folded < 1:
        return lifter.mapped()
    count = torch.Size(shape[:folded]).numel()
    x = lifter.reshape(x, (torch.Size(x.sizes[:folded]).numel(), *x.sizes[folded:]))
    y = lifter.emit(node.operation, node.call, (x, *rest), (count, *shape[folded:]), kwargs)
    return lifter.reshape(y, shape)


def _spatial(lifter: Lifter) -> int:
    """Axes along which the operation works: those that its name says, or that are padded."""
    name = lifter.node.operation
    digits = [int(n) for n in name if n.isdigit()]
    if digits:
        return digits[0]
    bound = lifter.arguments()
    amounts = bound.get("pad", bound.get("padding"))
    if not amounts:
        raise UnliftableError("has an unknown number of spatial axes")
    return len(amounts) // 2


def as_it_is(lifter: Lifter) -> Value:
    """Operations that work along the last axes and take any number of axes before."""
    node = lifter.node
    args, kwargs = lifter.tree((node.args, node.kwargs))
    others = [leaf for leaf in torch.utils._pytree.tree_leaves((args[1:], kwargs)) if isinstance(leaf, Value)]
    if not isinstance(args[0], Value) or others:
        return lifter.mapped()
    return lifter.emit(node.operation, node.call, args, lifter.shape, kwargs)


def function(lifter: Lifter) -> Value:
    """A result of a function with a backward of its own, which gets each sample as if it were alone."""
    call: Any = lifter.node.call
    (result, read, sizes, number), _ = lifter.tree((lifter.node.args, lifter.node.kwargs))
    call = OfEachSample(call.applied, [isinstance(x, Value) for x in read])
    return lifter.emit(lifter.node.operation, call, (lifter.rows(result), read, sizes, number), lifter.shape)


MOVES: tuple[tuple[str, Form], ...] = (
    (" ".join(sorted(ELEMENTWISE)), elementwise),
    ("view reshape flatten unflatten squeeze unsqueeze _unsafe_view view_as reshape_as atleast_1d atleast_2d "
     "atleast_3d", reshaped),
    ("permute transpose swapaxes swapdims t adjoint mT mH numpy_T movedim moveaxis", permuted),
    ("expand expand_as broadcast_to", expanded),
    ("repeat tile", repeated),
    ("slice narrow select chunk split split_with_sizes tensor_split unsafe_chunk unsafe_split "
     "unsafe_split_with_sizes narrow_copy unbind", taken),
    ("softmax log_softmax softmin cumsum cumprod mean sum amax amin any all argmax argmin logsumexp prod std var flip "
     "roll sort topk argsort max min median cummax cummin logcumsumexp count_nonzero index_select unfold diagonal "
     "repeat_interleave linalg_vector_norm glu", along),
    ("cat concat concatenate stack", joined),
    ("index", indexed),
    ("gather", gathered),
    ("slice_scatter select_scatter narrow_scatter transpose_scatter diagonal_scatter chunk_scatter split_scatter "
     "split_with_sizes_scatter unbind_scatter", filled_in),
    ("pad constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d "
     "replication_pad3d", padded),
    ("tril triu pixel_shuffle pixel_unshuffle", as_it_is),
    ("custom_backward", function),
    ("max_pool1d max_pool2d max_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d avg_pool1d "
     "avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d upsample_nearest1d "
     "upsample_nearest2d upsample_nearest3d upsample_linear1d _upsample_nearest_exact1d _upsample_nearest_exact2d "
     "_upsample_nearest_exact3d upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d _upsample_bilinear2d_aa "
     "_upsample_bicubic2d_aa", as_channels),
)  # fmt: skip
"""Operations and their lifted forms."""
