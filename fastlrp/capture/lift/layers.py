"""Lifted forms of layers with a weight, products, norms over channels and attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastlrp.capture.graph import Constant, Value, derived
from fastlrp.capture.lift.lifter import Lifter, UnliftableError, aten, sizes_of
from fastlrp.capture.lift.messages import sparse_product
from fastlrp.capture.lift.moves import Form, aligned, as_it_is
from fastlrp.capture.translate.rewrite import Step
from fastlrp.capture.translate.rewrite_masked_scatter import filled_in_order
from fastlrp.kinds.experts import rows_by_expert

_CONVOLUTIONS = {1: aten.conv2d.default, 2: aten.conv3d.default}
_TRANSPOSED = {1: aten.conv_transpose2d.input, 2: aten.conv_transpose3d.input}


# Products


def linear(lifter: Lifter) -> Value:
    """``linear`` along the last axis, however many stand before it."""
    args, kwargs = lifter.tree((lifter.node.args, lifter.node.kwargs))
    if not isinstance(args[0], Value) or any(isinstance(a, Value) for a in args[1:]):
        return lifter.mapped()
    return lifter.emit("linear", lifter.node.call, args, lifter.shape, kwargs)


def _multiplied(lifter: Lifter, a: Any, b: Any, shape: tuple[int, ...]) -> Value:
    """``a @ b`` of each sample."""
    ranks = len(sizes_of(a)), len(sizes_of(b))
    both = isinstance(a, Value) and isinstance(b, Value)
    if min(ranks) == 1 and (both or ranks[1] == 1):
        # A vector is a matrix with one row or column.
        if ranks[0] == 1:
            a = _unsqueezed(lifter, a, -2)
        if ranks[1] == 1:
            b = _unsqueezed(lifter, b, -1)
        rows, columns = [1] if ranks[0] == 1 else [], [1] if ranks[1] == 1 else []
        end = len(shape) - (ranks[1] > 1)
        wide = (*shape[:end], *rows, *shape[end:], *columns)
        return lifter.reshape(_multiplied(lifter, a, b, wide), shape)
    rank = max(ranks)
    a, b = aligned(lifter, a, rank) if ranks[0] > 1 else a, aligned(lifter, b, rank)
    return lifter.emit("matmul", aten.matmul.default, (a, b), shape)


def _unsqueezed(lifter: Lifter, operand: Value | Constant, axis: int) -> Value | Constant:
    if isinstance(operand, Value):
        sizes = list(operand.sizes)
        sizes.insert(len(sizes) + 1 + axis, 1)
        return lifter.reshape(operand, sizes)
    return derived(operand, lambda t: t.unsqueeze(axis))


def multiplied(lifter: Lifter) -> Value:
    """``matmul``, ``mm``, ``bmm``, ``mv``: matrices of each sample, broadcast as they were."""
    a, b = lifter.tree(lifter.node.args[:2])
    if isinstance(a, Constant) and a.tensor().layout != torch.strided and isinstance(b, Value) and len(b.sizes) == 2:
        return sparse_product(lifter, a, b)
    return _multiplied(lifter, a, b, lifter.shape)


def multiplied_and_added(lifter: Lifter) -> Value:
    """``addmm`` with a constant matrix is a linear layer; else a product and a sum."""
    bound = lifter.arguments()
    first = bound["self"]
    a, b = (bound["mat1"], bound["mat2"]) if "mat1" in bound else (bound["batch1"], bound["batch2"])
    plain = bound.get("alpha", 1) == 1 and bound.get("beta", 1) == 1
    constants = isinstance(b, Constant) and isinstance(first, Constant)
    if plain and constants and isinstance(a, Value) and (len(sizes_of(b)), len(sizes_of(first))) == (2, 1):
        weight = Constant(f"{b.name}.T", lambda: b.tensor().t(), b.fault)
        return lifter.emit("linear", aten.linear.default, (a, weight, first), lifter.shape)
    y: Value = _multiplied(lifter, a, b, lifter.shape)
    if bound.get("alpha", 1) != 1:
        y = lifter.emit("mul", aten.mul.Tensor, (y, bound["alpha"]), lifter.shape)
    if bound.get("beta", 1) == 0:
        return y
    first = aligned(lifter, first, len(lifter.shape))
    if bound.get("beta", 1) != 1 and isinstance(first, Value):
        first = lifter.emit("mul", aten.mul.Tensor, (first, bound["beta"]), first.sizes)
    elif bound.get("beta", 1) != 1:
        first = derived(first, lambda t: t * bound["beta"])
    return lifter.emit("add", aten.add.Tensor, (y, first), lifter.shape)


def einsum(lifter: Lifter) -> Value:
    """One more letter in front of each activation and of the result."""
    bound = lifter.arguments()
    equation, operands = bound["equation"].replace(" ", ""), bound["tensors"]
    unused = next((c for c in "zyxwvutsrqponmlkjihgfedcbaZYX" if c not in equation), None)
    if "->" not in equation or unused is None:
        return lifter.mapped()
    left, right = equation.split("->")
    terms = left.split(",")
    terms = [unused + t if isinstance(o, Value) else t for t, o in zip(terms, operands, strict=True)]
    equation = f"{','.join(terms)}->{unused}{right}"
    return lifter.emit("einsum", aten.einsum.default, (equation, operands), lifter.shape)


def embedded(lifter: Lifter) -> Value:
    """Lookup in a constant table."""
    args, kwargs = lifter.tree((lifter.node.args, lifter.node.kwargs))
    if not isinstance(args[0], Constant) or not isinstance(args[1], Value):
        return lifter.mapped()
    return lifter.emit("embedding", lifter.node.call, args, lifter.shape, kwargs)


# Channels


def convolved(lifter: Lifter) -> Value:
    """n maps of a sample: an axis of their own where the kernel has size 1; in three dimensions they are groups."""
    node, shape, bound = lifter.node, lifter.shape, lifter.arguments()
    n = int(node.operation[-2])
    x, weight, bias = bound["input"], bound["weight"], bound.get("bias")
    if not isinstance(x, Value) or not isinstance(weight, Constant) or isinstance(bias, Value):
        return lifter.mapped()
    if len(x.sizes) == n + 1:
        args, kwargs = lifter.tree((node.args, node.kwargs))
        return lifter.emit(node.operation, node.call, args, shape, kwargs)
    count, inner, outer = x.sizes[0], x.sizes[1:], shape[1:]
    transposed = "transpose" in node.operation
    if count == 1:
        y = _convolution(lifter, lifter.reshape(x, inner), bound, node.operation, node.call, outer)
        return lifter.reshape(y, shape)
    if n < 3:
        axes = [1, 0, *range(2, n + 2)]
        geometry = {
            name: _with_axis(bound[name], n, plain)
            for name, plain in (("stride", 1), ("padding", 0), ("dilation", 1), ("output_padding", 0))
            if name in bound
        }
        weight = derived(weight, lambda t: t.unsqueeze(2))
        call = (_TRANSPOSED if transposed else _CONVOLUTIONS)[n]
        if isinstance(geometry.get("padding"), str):
            call = aten.conv2d.padding if n == 1 else aten.conv3d.padding
        name = node.operation.replace(f"{n}d", f"{n + 1}d")
        sizes = (outer[0], count, *outer[1:])
        moved = lifter.permute(x, axes)
        y = _convolution(lifter, moved, {**bound, **geometry, "weight": weight}, name, call, sizes)
        return lifter.permute(y, axes)
    folded = lifter.reshape(x, (count * inner[0], *inner[1:]))
    repeated = {
        "groups": count * bound["groups"],
        "weight": derived(weight, lambda t: t.repeat(count, *[1] * (t.dim() - 1))),
        "bias": None if bias is None else derived(bias, lambda t: t.repeat(count)),
    }
    sizes = (count * outer[0], *outer[1:])
    return lifter.reshape(_convolution(lifter, folded, {**bound, **repeated}, node.operation, node.call, sizes), shape)


def _with_axis(value: Any, n: int, plain: int) -> Any:
    if isinstance(value, str):
        return value
    items = [value] if isinstance(value, int) else list(value)
    return [plain, *(items * n if len(items) == 1 else items)]


def _convolution(
    lifter: Lifter, x: Value, bound: dict[str, Any], name: str, call: Any, shape: tuple[int, ...]
) -> Value:
    names = [a.name for a in call._schema.arguments]
    return lifter.emit(name, call, (x, *(bound[n] for n in names[1:])), shape)


def batch_normed(lifter: Lifter) -> Value:
    """By stored statistics: channels go in front of the axes that were folded into the batch."""
    node, shape = lifter.node, lifter.shape
    (x, *rest), kwargs = lifter.tree((node.args, node.kwargs))
    if not isinstance(x, Value) or any(isinstance(a, Value) for a in rest) or len(shape) < 2:
        return lifter.mapped()
    if shape[0] == 1:
        y = lifter.emit(node.operation, node.call, (lifter.reshape(x, shape[1:]), *rest), shape[1:], kwargs)
        return lifter.reshape(y, shape)
    axes = [1, 0, *range(2, len(shape))]
    moved = lifter.permute(x, axes)
    y = lifter.emit(node.operation, node.call, (moved, *rest), moved.sizes, kwargs)
    return lifter.permute(y, axes)


def group_normed(lifter: Lifter) -> Value:
    """n maps of a sample are n times as many groups; weight and bias are repeated."""
    node, shape, bound = lifter.node, lifter.shape, lifter.arguments()
    x, weight, bias = bound["input"], bound.get("weight"), bound.get("bias")
    if not isinstance(x, Value) or isinstance(weight, Value) or isinstance(bias, Value) or len(shape) < 2:
        return lifter.mapped()
    if bound.get("running_mean") is not None:
        return lifter.mapped()
    count, sizes = shape[0], (shape[0] * shape[1], *shape[2:])

    def repeated(constant: Constant | None) -> Constant | None:
        if constant is None or count == 1:
            return constant
        return derived(constant, lambda t: t.repeat(count))

    changed = {"input": lifter.reshape(x, sizes), "weight": repeated(weight), "bias": repeated(bias)}
    if "num_groups" in bound:
        changed["num_groups"] = bound["num_groups"] * count
    args = tuple({**bound, **changed}.values())
    return lifter.reshape(lifter.emit(node.operation, node.call, args, sizes), shape)


# Attention


def attention(lifter: Lifter) -> Value:
    """All axes between the batch and the positions are heads."""
    node, shape, bound = lifter.node, lifter.shape, lifter.arguments()
    query, key, value, mask = bound["query"], bound["key"], bound["value"], bound.get("attn_mask")
    if not all(isinstance(x, Value) for x in (query, key, value)):
        query, key, value = (lifter.rows(x) for x in (query, key, value))
    outer = query.sizes[:-2]
    if not len(query.sizes) == len(key.sizes) == len(value.sizes) or key.sizes[:-3] != outer[:-1]:
        return lifter.mapped()
    heads = torch.Size(outer).numel()
    parts = [lifter.reshape(x, (torch.Size(x.sizes[:-2]).numel(), *x.sizes[-2:])) for x in (query, key, value)]
    bound = {**bound, **dict(zip(("query", "key", "value"), parts, strict=True))}
    if mask is not None:
        bound["attn_mask"] = _mask(lifter, mask, outer, heads)
    schema = node.call._schema.arguments  # type: ignore[attr-defined]
    args = tuple(bound[a.name] for a in schema if not a.kwarg_only)
    kwargs = {a.name: bound[a.name] for a in schema if a.kwarg_only}
    y = lifter.emit(node.operation, node.call, args, (heads, *shape[-2:]), kwargs)
    return lifter.reshape(y, shape)


def _mask(lifter: Lifter, mask: Value | Constant, outer: tuple[int, ...], heads: int) -> Value | Constant:
    """A mask that is broadcast to the heads of each sample: ``(1, S, T)`` or ``(heads, S, T)``."""
    sizes = sizes_of(mask)
    before, last = sizes[:-2], sizes[-2:] if len(sizes) > 1 else (1, *sizes)
    count = 1 if all(n == 1 for n in before) else heads
    wide = (*((1,) * len(outer) if count == 1 else outer), *last)

    def changed(t: Tensor) -> Tensor:
        return t.expand(wide).reshape(count, *last)

    if isinstance(mask, Constant):
        return derived(mask, changed)
    mask = lifter.rows(aligned(lifter, mask, len(outer) + 2))
    if mask.sizes != wide:
        mask = lifter.emit("expand", aten.expand.default, (mask, [-1, *wide]), wide, dtype=mask.dtype)
    return lifter.reshape(mask, (count, *last))


def recurrent(lifter: Lifter) -> Value:
    """A layer and direction over several sequences of each sample."""
    args, kwargs = lifter.tree((lifter.node.args, lifter.node.kwargs))
    if not isinstance(args[0], Value):
        return lifter.mapped()
    first = [lifter.rows(state) if isinstance(state, Constant) else state for state in args[1:3]]
    return lifter.emit(lifter.node.operation, lifter.node.call, (args[0], *first, *args[3:]), lifter.shape, kwargs)


def grouped(lifter: Lifter) -> Value:
    """Rows of one sample sorted by expert, times the matrices of the experts."""
    args, kwargs = lifter.tree((lifter.node.args, lifter.node.kwargs))
    named = dict(zip(("input", "weight", "offs", "bias", "out_dtype"), args, strict=False)) | kwargs
    x, weight, ends = named["input"], named["weight"], named.get("offs")
    plain = named.get("bias") is None and named.get("out_dtype") in (None, lifter.node.output.dtype)
    if not plain or not isinstance(x, Value) or not isinstance(weight, Constant) or not isinstance(ends, Value):
        return lifter.mapped()
    return lifter.emit(lifter.node.operation, rows_by_expert, (x, weight, ends), lifter.shape)


def placed(lifter: Lifter) -> Value:
    """``masked_scatter``: each sample's places from its own entries."""
    given = {name: lifter.rows(operand) for name, operand in lifter.arguments().items()}
    mask, sizes = given["mask"], lifter.shape
    given["mask"] = lifter.reshape(mask, (*[1] * (len(sizes) - len(mask.sizes)), *mask.sizes))
    steps = filled_in_order(given, (None, *sizes))
    if steps is None:
        raise UnliftableError("its operands do not have the batch in front")
    made: list[Value] = []
    for call, name, args, kwargs, *form in steps:
        shape, dtype = form or ((None, *sizes), None)
        args = tuple(made[a.position] if isinstance(a, Step) else a for a in args)
        made.append(lifter.emit(name, call, args, [n for n in shape[1:] if n is not None], kwargs, dtype))
    return made[-1]


LAYERS: tuple[tuple[str, Form], ...] = (
    ("linear", linear),
    ("matmul mm bmm mv dot _sparse_mm", multiplied),
    ("addmm baddbmm", multiplied_and_added),
    ("einsum", einsum),
    ("embedding", embedded),
    ("layer_norm rms_norm", as_it_is),
    ("conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d", convolved),
    ("batch_norm", batch_normed),
    ("group_norm instance_norm", group_normed),
    ("scaled_dot_product_attention", attention),
    ("lstm gru rnn_tanh rnn_relu", recurrent),
    ("masked_scatter", placed),
    ("transformers::grouped_mm_fallback _grouped_mm", grouped),
)
"""Operations and their lifted forms."""
