"""Operations that only copy entries: relevance goes back to where each entry came from."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from fastlrp.capture import advice
from fastlrp.capture.graph import Node, Value, leaves, substitute
from fastlrp.capture.wording import shape_text, without_symbols
from fastlrp.errors import UnsupportedOperationError
from fastlrp.kinds import id_moves, places, write
from fastlrp.kinds.kind import Kind
from fastlrp.kinds.rows_taken import rows_taken
from fastlrp.kinds.textbook import carry_back
from fastlrp.plan.bind import bind_forward
from fastlrp.plan.builder import Builder
from fastlrp.plan.channels_last import channels_last
from fastlrp.plan.steps import Factor, Flow, Window
from fastlrp.plan.total import multiply

_RESHAPES = {"view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as", "reshape_as"}
_PERMUTES = {"permute", "transpose", "t", "movedim", "swapaxes", "adjoint", "mT"}

Inverse = Callable[[Tensor], Tensor]


def lower(b: Builder, node: Node, rule: None, flow: Flow) -> None:
    """Reshape, permute, slice, pad, …: the inverse copy, entries that were copied twice get the sum."""
    if not node.output.is_float:
        id_moves.lower(b, node, flow)
        return
    sources = node.sources
    if len(sources) == 1 and write.places_vary(node):
        write.lower_places(b, node, flow)
        return
    if len(sources) != 1 or node.args[0] is not sources[0]:
        raise UnsupportedOperationError(f"{node}: cannot tell which of its inputs the entries come from")
    x, y = sources[0], node.output
    if not (x.has_batch_first and y.has_batch_first):
        raise UnsupportedOperationError(
            f"{node} mixes the batch axis with another one (from {shape_text(x.shape)} to {shape_text(y.shape)}): "
            "relevance of one sample cannot be told from that of the others. " + advice.keep_the_batch(b.graph, node)
        )
    if b.graph.batch is not None and node.operation not in (_RESHAPES | _PERMUTES) and x.dtype == y.dtype:
        write.send_static(b, node, x, flow)  # It may hold for that batch size only.
        return
    inverse, one_to_one, origin, up = _inverse(node, x, y)
    fill = node.attributes.get("fill", 0)
    if isinstance(fill, float) and not math.isfinite(fill):
        _emit_finite(b, y, flow)
    send_inverse(b, x, y, flow, inverse, one_to_one, origin, up)


def _emit_finite(b: Builder, y: Value, flow: Flow) -> None:
    """Who asks for the relevance of a value padded with infinity gets 0 at the padding, not infinity times nothing."""

    def finite(f: Tensor, factor: Tensor) -> Tensor:
        return multiply(f, factor).masked_fill_(~torch.isfinite(factor).unsqueeze(1), 0)

    slot = b.slot_of(flow.factor)
    if slot is not None:
        b.flows[y] = Flow(b.step(finite, [flow.register], [slot], y.numel))


def send_inverse(
    b: Builder, x: Value, y: Value, flow: Flow, inverse: Inverse, one_to_one: bool,
    origin: places.Places | None = None, up: Inverse | None = None,
) -> None:  # fmt: skip
    """Send ``x`` what ``inverse`` brings back of the relevance of ``y``; factors move along where that is exact.

    ``origin``: the same for single entries, if it is known. ``up``: the transpose of ``inverse``, the copy itself.
    """
    chained = flow.factor.value is y
    scale = flow.factor.scale if chained else b.slot_of(flow.factor)
    left = Factor(x) if chained else Factor()
    if scale is None or one_to_one:
        hot, window = origin is not None, getattr(inverse, "window", None)
        step = inverse if window is None or b.device.type != "cpu" else places.at_positions(inverse, window)
        run: Any = step if origin is None else places.keeping_one_hot(step, origin, x.sizes, x.dtype)
        register = b.step(
            run, [flow.register], [], x.numel, accepts_one_hot=hot, keeps_one_hot=hot,
            embeds=window, by_position=inverse is _unchanged, takes_bf16=True, up=up,
            moves_from=y.sizes if x.dtype == y.dtype else None,
        )  # fmt: skip
        if scale is not None:
            if scale in b.numbers:  # Outside of what was copied the register is zero.
                moved = b.number(b.numbers[scale], x)
            else:
                moved = b.cache(lambda s: inverse(s.unsqueeze(1)).squeeze(1), [scale], x.numel)
            left = Factor(left.value, moved)
    else:

        def relevance_of_source(f: Tensor, s: Tensor) -> Tensor:
            return inverse(multiply(f, s))

        times = None if up is None else lambda t, s: multiply(up(t), s)
        register = b.step(relevance_of_source, [flow.register], [scale], x.numel, up=times)
    b.send(x, Flow(register, left))


def _inverse(node: Node, x: Value, y: Value) -> tuple[Inverse, bool, places.Places, Inverse]:
    """What brings ``(B, K, *y)`` back to ``(B, K, *x)``, whether each entry of x was copied at most once, where
    single entries came from, and the transpose of the first: the copy of ``(B, K, *x)``."""
    sizes = x.sizes

    def cast(t: Tensor) -> Tensor:
        return t.to(y.dtype)

    def reshape(t: Tensor) -> Tensor:
        return t.reshape(*t.shape[:2], *y.sizes)

    def cast_back(f: Tensor) -> Tensor:
        return f.to(x.dtype)

    def reshaped(f: Tensor) -> Tensor:
        return f.reshape(*f.shape[:2], *sizes)

    def reshaped_to_map(f: Tensor) -> Tensor:
        return channels_last(f.reshape(-1, *sizes)).view(*f.shape[:2], *sizes)

    if x.dtype != y.dtype:
        return cast_back, True, places.same, cast
    if node.operation in _RESHAPES and sizes == y.sizes:
        return _unchanged, True, places.same, _unchanged
    if node.operation in _RESHAPES:
        # Below a flatten stand convolutions and pools, which want their maps channels-last.
        return (reshaped_to_map if len(sizes) == 3 and _is_map(x) else reshaped), True, places.same, reshape
    if node.operation in _PERMUTES:
        axes = _axes(node, len(x.shape))
        back = [axes.index(i) for i in range(len(axes))]
        order, forth = [0, 1, *(i + 1 for i in back[1:])], [0, 1, *(i + 1 for i in axes[1:])]

        def permuted_back(f: Tensor) -> Tensor:
            return f.permute(order)

        return permuted_back, True, places.permuted(sizes, [axis - 1 for axis in axes[1:]]), lambda t: t.permute(forth)
    cut = places.taken(node, x, y)
    if cut is not None:
        back_to = places.window(sizes, cut.dim, cut.start, cut.length)
        return cut.inverse(sizes) if sizes != y.sizes else _unchanged, True, back_to, cut.take
    return rows_taken(node, x, y) or _by_index(node, x, y)


def _unchanged(f: Tensor) -> Tensor:
    """Of a move that moves nothing."""
    return f


def _is_map(x: Value) -> bool:
    """Whether a convolution or a pool made ``x``, with element-wise operations after it at most."""
    while x.producer is not None and x.producer.inputs:
        if x.producer.kind in ("conv", "max_pool", "avg_pool", "batch_norm"):
            return True
        if x.producer.kind not in ("activation", "add", "mul", "identity"):
            return False
        x = x.producer.inputs[0]
    return False


def _axes(node: Node, n: int) -> list[int]:
    """The permutation that the operation applies, seen on a tensor whose sizes are the axes' numbers."""
    probe = torch.empty([i + 1 for i in range(n)])
    moved = bind_forward(node)(probe)
    axes = [size - 1 for size in moved.shape]
    if axes[0] != 0:
        raise UnsupportedOperationError(f"{node} moves the batch axis: keep the batch as axis 0")
    return axes


def _window(source: Tensor, numbers: Tensor) -> tuple[Inverse, places.Places, Inverse] | None:
    """The inverse of taking everything, or a range of one axis (slice with step 1, narrow, chunk, split)."""
    if source.dim() != numbers.dim():
        return None
    cut = [i for i, (have, all_) in enumerate(zip(source.shape, numbers.shape, strict=True)) if have != all_]
    if not cut and torch.equal(source, numbers):
        return _unchanged, places.same, _unchanged
    if len(cut) != 1 or source.numel() == 0 or source.shape[cut[0]] > numbers.shape[cut[0]]:
        return None
    dim, length, sizes = cut[0], source.shape[cut[0]], numbers.shape[1:]
    first = source.flatten()[0]
    start = int((numbers == first).nonzero()[0, dim]) if first > 0 else 0
    if start + length > numbers.shape[dim] or not torch.equal(source, numbers.narrow(dim, start, length)):
        return None

    def embed(f: Tensor) -> Tensor:
        result = f.new_zeros(*f.shape[:2], *sizes)
        result.narrow(dim + 1, start, length).copy_(f)
        return result

    embed.window = Window(dim + 1, start, length, sizes[dim - 1])  # type: ignore[attr-defined]
    return embed, places.window(sizes, dim - 1, start, length), lambda t: t.narrow(dim + 1, start, length)


def _by_index(node: Node, x: Value, y: Value) -> tuple[Inverse, bool, places.Places, Inverse]:
    """Any other copy: run the operation on the entries' own numbers to learn where each came from.

    And once more on the negative numbers. A copy changes its sign with them; what the operation fills in (the value of
    a padding) does not, and belongs to nobody. The numbers are float64, whatever the model's dtype: exact to 2**53.
    """
    numbers = torch.arange(1, x.numel + 1, dtype=torch.float64).view(1, *x.sizes)
    args, kwargs = _for_one_sample((node.args, node.kwargs), x)
    try:
        source, negative = (
            node.call(*substitute(args, {x: t}), **substitute(kwargs, {x: t})) for t in (numbers, -numbers)
        )
    except Exception as error:
        reason = without_symbols(str(error).split("\n")[0])
        raise UnsupportedOperationError(f"{node}: cannot tell where its entries come from ({reason})") from error
    if source.shape != (1, *y.sizes):
        raise UnsupportedOperationError(
            f"{node}: cannot tell where its entries come from, since it makes {tuple(source.shape[1:])} of one sample "
            f"and {y.sizes} of each in a batch"
        )
    copied = (source == -negative) & (source != 0)
    filled = (source == negative) | (source.isnan() & negative.isnan())
    whole = (source == source.round()) & (source >= 1) & (source <= x.numel)
    if not bool(torch.where(copied, whole, filled).all()):
        raise UnsupportedOperationError(f"{node} computes with its entries, where a copy of each was expected")
    source = torch.where(copied, source, 0)
    window = _window(source, numbers)
    if window is not None:
        return window[0], True, window[1], window[2]
    flat = source.flatten().long() - 1
    whole_copy = bool((flat >= 0).all())
    index = flat if whole_copy else flat[flat >= 0]
    once = index.unique().numel() == index.numel()
    kept = None if whole_copy else (flat >= 0).nonzero().squeeze(1)

    @cache  # Moved to a device once: a copy from the host would wait for it.
    def on(device: torch.device) -> tuple[Tensor, Tensor | None]:
        return index.to(device), None if kept is None else kept.to(device)

    def gather_back(f: Tensor) -> Tensor:
        where, rows = on(f.device)
        values = f.flatten(2) if f.dim() > 2 else f.unsqueeze(2)
        values = values if rows is None else values.index_select(2, rows)
        result = f.new_zeros(*f.shape[:2], x.numel)
        return result.index_add_(2, where, values).unflatten(2, x.sizes)

    def gather(t: Tensor) -> Tensor:
        where, rows = on(t.device)
        values = t.reshape(*t.shape[:2], x.numel).index_select(2, where)
        if rows is not None:
            values = t.new_zeros(*t.shape[:2], y.numel).index_copy_(2, rows, values)
        return values.reshape(*t.shape[:2], *y.sizes)

    return gather_back, once, places.listed(flat), gather


def _for_one_sample(tree: Any, x: Value) -> Any:
    """Arguments with everything that depends on the batch size alone evaluated for a batch of one."""
    others = [leaf for leaf in leaves(tree) if isinstance(leaf, Value) and leaf is not x]
    found = write.at_batch(others, {x: torch.zeros(1, *x.sizes, dtype=x.dtype)}, 1)
    return write.at_batch(substitute(tree, dict(zip(others, found, strict=True))), {x: x}, 1)


def read(node: Node, bound: dict[str, Any]) -> str | None:
    """All arguments by name, and the number that a padding fills in."""
    node.attributes.update(bound, fill=bound.get("value") or 0)
    return None


KIND = Kind(
    name="move",
    operations=(
        "view reshape flatten unflatten permute transpose t squeeze unsqueeze select slice narrow chunk split "
        "split_with_sizes unbind getitem expand expand_as repeat pad constant_pad_nd reflection_pad1d "
        "reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d roll flip "
        "pixel_shuffle pixel_unshuffle channel_shuffle upsample_nearest1d upsample_nearest2d "
        "upsample_nearest3d _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d "
        "im2col index_select index movedim swapaxes adjoint mT view_as reshape_as tile repeat_interleave "
        "moveaxis swapdims tril triu diagonal unfold rot90 fliplr flipud gather take_along_dim circular_pad "
        "unsafe_chunk unsafe_split unsafe_split_with_sizes tensor_split hsplit vsplit dsplit narrow_copy "
        "native_channel_shuffle as_strided atleast_2d atleast_3d matrix_H mH H numpy_T _unsafe_view unfold_copy "
        "fft_fftshift fft_ifftshift"
    ),
    lower=lower,
    textbook=carry_back,
    read=read,
    needs_rule=False,
    keeps_batch=False,
)
