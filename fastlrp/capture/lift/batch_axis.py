"""Which operations are known, from their arguments alone, to keep the samples of a batch apart.

Every reader takes a node and gives the axes along which it lets entries of its input meet or change places. An
operation that has no reader, or whose reader gives None, is suspect: :mod:`fastlrp.capture.lift.probe` tries it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

from fastlrp.capture.arguments import bind
from fastlrp.capture.graph import Constant, Node, Value, leaves
from fastlrp.capture.trace import padded, recurrent

Reader = Callable[[Node, dict[str, Any]], "frozenset[int] | None"]

_NONE: frozenset[int] = frozenset()
_END = 2**63 - 1


def keeps_samples_apart(node: Node, rows: set[Value]) -> bool:
    """True if the arguments prove that row b of the output is made of row b of the inputs.

    Args:
        rows: values whose row b is known to belong to sample b alone.
    """
    y = node.output
    reader = _READERS.get(node.operation)
    if reader is None or not y.is_tensor or not y.shape or y.shape[0] is not None:
        return False
    tensors = [v for v in node.inputs if v.is_tensor]
    if not tensors or any(v not in rows for v in tensors):
        return False
    axes = reader(node, arguments(node))
    return axes is not None and 0 not in axes


def axes_of(node: Node, a: dict[str, Any]) -> frozenset[int] | None:
    """The axes along which an operation works, by its arguments ``a``; None if they do not say."""
    reader = _READERS.get(node.operation)
    return None if reader is None else reader(node, a)


def arguments(node: Node) -> dict[str, Any]:
    """Arguments by name; those of the whole operation for one part of a split."""
    return bind(getattr(node.call, "whole", node.call), node.args, node.kwargs)


def works_along(node: Node, axis: int) -> bool:
    """True if the arguments name this axis, or name none where that means all of them. For messages."""
    a = arguments(node)
    x = next((v for v in node.inputs if v.is_tensor), None)
    if "dims" in a and node.operation == "permute":
        return False
    name = next((name for name in ("dim", "dims", "axis") if name in a), None)
    if x is None or not x.shape or name is None:
        return x is not None and x is node.args[0] and node.output.shape == ()  # Of all entries.
    dims = _listed(a[name])
    return not dims or any(isinstance(d, int) and d % len(x.shape) == axis for d in dims)


def shape_in_words(value: Value) -> str:
    """The shape with the word batch in the places of the batch size."""
    sizes = ["batch" if n is None else re.sub(r"\bs\d+\b", "batch", str(n)) for n in value.shape]
    return f"({', '.join(sizes)})"


def _listed(dims: Any) -> list[Any]:
    return [] if dims is None else [dims] if isinstance(dims, int) else list(dims)


def _rank(node: Node) -> int:
    """Axes of the first activation."""
    return len(node.inputs[0].shape)


def _only_tensors(node: Node) -> bool:
    """False if the operation reads a size, which may be that of the batch."""
    return all(v.is_tensor for v in node.inputs)


def _each_entry(node: Node, a: dict[str, Any]) -> frozenset[int] | None:
    """Operands with as many axes as the result: broadcasting then puts batch beside batch."""
    same = all(len(v.shape) == len(node.output.shape) and v.shape[0] is None for v in node.inputs)
    return _NONE if same and _only_tensors(node) else None


def _alone(node: Node, a: dict[str, Any]) -> frozenset[int] | None:
    """One activation, whose entries keep their places."""
    return _each_entry(node, a) if len(node.inputs) == 1 else None


def _row_by_row(node: Node, a: dict[str, Any]) -> frozenset[int] | None:
    """Operands that all have the batch as axis 0 and are taken sample by sample."""
    same = all(v.has_batch_first for v in (node.output, *node.inputs))
    ranked = len({len(v.shape) for v in (*node.inputs, *([node.output] if node.operation == "bilinear" else []))}) == 1
    return _NONE if same and ranked and (node.operation != "bilinear" or isinstance(a["weight"], Constant)) else None


def _along(*names: str) -> Reader:
    """The axes that an argument names; none named means all."""

    def read(node: Node, a: dict[str, Any]) -> frozenset[int] | None:
        name = next((n for n in names if n in a), None)
        if name is None or not _only_tensors(node) or len(node.inputs) != 1:
            return None
        dims, rank = _listed(a[name]), _rank(node)
        if not all(isinstance(d, int) for d in dims):
            return None
        return frozenset(d % rank for d in dims) if dims else frozenset(range(rank))

    return read


def _slice(node: Node, a: dict[str, Any]) -> frozenset[int] | None:
    if len(node.inputs) == 1 and not a.get("start") and a.get("end") in (None, _END) and a.get("step") == 1:
        return _NONE  # All of the axis, which is how x[:, 1:] begins.
    return _along("dim")(node, a)


def _part(position: int) -> Reader:
    """Split, chunk, unbind, of which a node may be one part."""

    def read(node: Node, a: dict[str, Any]) -> frozenset[int] | None:
        dim = node.kwargs.get("dim", node.args[position] if len(node.args) > position else 0)
        if not isinstance(dim, int) or not _only_tensors(node) or len(node.inputs) != 1:
            return None
        return frozenset({dim % _rank(node)})

    return read


def _last(count: Callable[[Node, dict[str, Any]], int]) -> Reader:
    """The last axes, ``count`` of them."""

    def read(node: Node, a: dict[str, Any]) -> frozenset[int] | None:
        n, rank = count(node, a), _rank(node)
        if len(node.inputs) != 1 or not 0 < n <= rank:
            return None
        return frozenset(range(rank - n, rank))

    return read


def _spatial(node: Node, a: dict[str, Any]) -> int:
    return int(node.operation[-2])


def _convolution(node: Node, a: dict[str, Any]) -> frozenset[int] | None:
    """All axes but the batch; without a batch the first axis is that of the channels."""
    n = _spatial(node, a)
    if len(node.inputs) != 1 or not isinstance(node.args[1], Constant):
        return None
    return frozenset(range(1, n + 2)) if _rank(node) == n + 2 else frozenset(range(n + 1))


def _product(node: Node, a: dict[str, Any]) -> frozenset[int] | None:
    """With a constant on the right the last axis of x is summed; two stacks of matrices go matrix by matrix."""
    rank = _rank(node)
    if node.kind == "linear" and len(node.inputs) == 1:
        return frozenset({rank - 1})
    stacks = node.operation in ("matmul", "bmm") and all(len(v.shape) == rank > 2 for v in node.inputs)
    both = all(isinstance(operand, Value) for operand in node.args[:2])
    return frozenset({rank - 2, rank - 1}) if stacks and both else None


def _channels(node: Node, a: dict[str, Any]) -> frozenset[int] | None:
    """Norms over a sample's own channels or by stored statistics."""
    return frozenset(range(1, _rank(node))) if len(node.inputs) == 1 and _rank(node) > 1 else None


def _normalized(node: Node, a: dict[str, Any]) -> int:
    shape = a.get("normalized_shape") or []
    return len(shape) if all(isinstance(n, int) for n in shape) else 0


def _reshape(node: Node, a: dict[str, Any]) -> frozenset[int] | None:
    """Row by row if the number of rows stays and each has as many entries as before."""
    x, y = node.inputs[0], node.output
    if x is not node.args[0] or sum(v.is_tensor for v in node.inputs) != 1:
        return None
    return _NONE if x.has_batch_first and y.has_batch_first and x.numel == y.numel else None


def _permute(node: Node, a: dict[str, Any]) -> frozenset[int] | None:
    dims = a.get("dims")
    if not dims or len(node.inputs) != 1:
        return None
    return _NONE if dims[0] % len(dims) == 0 else frozenset({0})


def _transpose(node: Node, a: dict[str, Any]) -> frozenset[int] | None:
    if node.operation in ("adjoint", "mT"):
        return frozenset({_rank(node) - 2, _rank(node) - 1})
    pair = [d for d in (a.get("dim0", a.get("axis0")), a.get("dim1", a.get("axis1"))) if isinstance(d, int)]
    return frozenset(d % _rank(node) for d in pair) if len(pair) == 2 and len(node.inputs) == 1 else None


def _unsqueeze(node: Node, a: dict[str, Any]) -> frozenset[int] | None:
    dim = a.get("dim")
    return frozenset({dim % len(node.output.shape)}) if isinstance(dim, int) and len(node.inputs) == 1 else None


def _expand(node: Node, a: dict[str, Any]) -> frozenset[int] | None:
    x, y = node.inputs[0], node.output
    same = x.is_tensor and len(x.shape) == len(y.shape) and sum(v.is_tensor for v in node.inputs) == 1
    return _NONE if same and x.shape[0] is None else None


def _padding(node: Node, a: dict[str, Any]) -> int:
    amounts = a.get("pad", a.get("padding")) or []
    return len(amounts) // 2


def _joined(node: Node, a: dict[str, Any]) -> frozenset[int] | None:
    dim, rank = a.get("dim"), len(node.output.shape)
    parts = [leaf for leaf in leaves(node.args[:1]) if isinstance(leaf, Value)]
    wanted = rank - 1 if node.operation == "stack" else rank
    if not isinstance(dim, int) or not parts or any(len(v.shape) != wanted or v.shape[0] is not None for v in parts):
        return None
    return frozenset({dim % rank})


def _index(node: Node, a: dict[str, Any]) -> frozenset[int] | None:
    """Constant indices of axes behind the batch."""
    indices = a.get("indices")
    if not indices or len(node.inputs) != 1 or indices[0] is not None:
        return None
    named = frozenset(i for i, index in enumerate(indices) if index is not None)
    # Indices with a gap between them put their axes first.
    return named if named and max(named) - min(named) + 1 == len(named) else None


def _index_select(node: Node, a: dict[str, Any]) -> frozenset[int] | None:
    index, dim = a.get("index"), a.get("dim")
    if not isinstance(index, Constant) or not isinstance(dim, int):
        return None
    return frozenset({dim % _rank(node)})


def _repeat(node: Node, a: dict[str, Any]) -> frozenset[int] | None:
    repeats = a.get("repeats", a.get("dims"))
    if not isinstance(repeats, (list, tuple)) or not all(isinstance(n, int) for n in repeats):
        return None
    rank = _rank(node)
    if len(repeats) > rank:
        return None
    return frozenset(i for i, n in enumerate(repeats, rank - len(repeats)) if n != 1)


def _chosen(node: Node, a: dict[str, Any]) -> frozenset[int] | None:
    """Lookup in a constant table: each entry of the index gives a vector."""
    return _NONE if len(node.inputs) == 1 and isinstance(node.args[0], Constant) else None


def _sequence(node: Node, a: dict[str, Any]) -> frozenset[int] | None:
    """A recurrent layer of ``(B, T, C)`` with first states ``(B, H)``: time is axis 1, channels meet."""
    plain = isinstance(node.call, recurrent.Layer) and all(v.has_batch_first for v in (node.output, *node.inputs))
    return frozenset(range(1, _rank(node))) if plain else None


def _steps(node: Node, a: dict[str, Any]) -> frozenset[int] | None:
    return _NONE if node.inputs == node.args[:1] and node.inputs[0].has_batch_first else None


def _table(entries: Iterable[tuple[str, Reader]]) -> dict[str, Reader]:
    return {name: reader for names, reader in entries for name in names.split()}


_READERS: dict[str, Reader] = _table([
    (
        "relu relu6 hardtanh sigmoid tanh silu gelu hardswish hardsigmoid elu leaky_relu softplus mish selu celu prelu "
        "softsign clamp clamp_min clamp_max threshold log_sigmoid hardshrink softshrink tanhshrink exp square abs pow "
        "add sub rsub mul div neg where maximum minimum masked_fill sin cos tan atan sqrt rsqrt reciprocal log log1p "
        "log2 log10 expm1 erf erfc sinc sign floor ceil round trunc frac sgn exp2 sinh cosh asinh atan2 "
        "fmod remainder floor_divide "
        "lerp addcmul addcdiv eq ne lt le gt ge logical_and logical_or logical_not logical_xor bitwise_and bitwise_or "
        "bitwise_not __and__ __or__ __xor__ isnan isfinite isinf nan_to_num zeros_like ones_like full_like",
        _each_entry,
    ),
    (
        "dropout alpha_dropout feature_dropout feature_alpha_dropout dropout1d dropout2d dropout3d contiguous clone "
        "detach alias lift_fresh lift_fresh_copy to _to_copy identity", _alone,
    ),
    ("grid_sampler bilinear pairwise_distance", _row_by_row),
    ("conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d", _convolution),
    ("linear matmul mm addmm bmm", _product),
    ("batch_norm group_norm instance_norm", _channels),
    ("layer_norm rms_norm", _last(_normalized)),
    (
        "softmax log_softmax cumsum mean sum amax amin any all argmax argmin logsumexp prod std var max min median "
        "kthvalue mode topk sort cummax cummin cumprod logcumsumexp linalg_vector_norm norm", _along("dim"),
    ),
    ("flip roll", _along("dims")),
    ("select narrow", _along("dim")),
    ("slice", _slice),
    ("unbind", _part(1)),
    ("chunk split split_with_sizes", _part(2)),
    ("view reshape flatten unflatten squeeze", _reshape),
    ("unsqueeze", _unsqueeze),
    ("permute", _permute),
    ("transpose swapaxes adjoint mT", _transpose),
    ("expand", _expand),
    ("repeat tile", _repeat),
    ("cat concat concatenate stack", _joined),
    ("pad constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d "
     "replication_pad3d", _last(_padding)),
    ("pixel_shuffle pixel_unshuffle", _last(lambda node, a: 3)),
    (
        "max_pool1d max_pool2d max_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d avg_pool1d "
        "avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d upsample_nearest1d "
        "upsample_nearest2d upsample_nearest3d upsample_linear1d _upsample_nearest_exact1d _upsample_nearest_exact2d "
        "_upsample_nearest_exact3d", _last(_spatial),
    ),
    ("upsample_bilinear2d upsample_bicubic2d", _last(lambda node, a: 2)),
    ("upsample_trilinear3d", _last(lambda node, a: 3)),
    ("index", _index),
    ("index_select", _index_select),
    ("embedding embedding_bag", _chosen),
    ("lstm gru rnn_tanh rnn_relu", _sequence),
    (padded.VALID, _steps),
])  # fmt: skip

ELEMENTWISE = frozenset(name for name, reader in _READERS.items() if reader in (_each_entry, _alone))
"""Operations whose entries depend on those at their own place alone, operands broadcast."""
