"""Operations that only copy entries: relevance goes back to where each entry came from."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastlrp.capture import advice
from fastlrp.capture.bind import bind_forward
from fastlrp.capture.graph import Node, Value, leaves, substitute
from fastlrp.capture.wording import shape_text, without_symbols
from fastlrp.errors import UnsupportedOperationError
from fastlrp.kinds import copies, id_moves, places, write
from fastlrp.kinds.chained import is_chained, pass_on
from fastlrp.kinds.kind import Kind
from fastlrp.kinds.rows_taken import rows_taken
from fastlrp.kinds.textbook import carry_back
from fastlrp.plan.builder import Builder
from fastlrp.plan.products.channels_last import channels_last
from fastlrp.plan.steps import Factor, Flow
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
    if inverse is _unchanged and not node.attributes.get("mark"):  # A mark is there to have a step of its own.
        pass_on(b, flow, y, x)
        return
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
    chained = is_chained(flow, y)
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
        back_to = places.window(sizes, cut)
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
            f"and {y.sizes} of each in a batch. Compute its sizes from one sample's axes, not from the batch"
        )
    copied = (source == -negative) & (source != 0)
    filled = (source == negative) | (source.isnan() & negative.isnan())
    whole = (source == source.round()) & (source >= 1) & (source <= x.numel)
    if not bool(torch.where(copied, whole, filled).all()):
        raise UnsupportedOperationError(f"{node} computes with its entries, where a copy of each was expected")
    found = torch.where(copied, source, 0).long()[0] - 1
    if x.sizes == y.sizes and torch.equal(found.flatten(), torch.arange(x.numel)):
        return _unchanged, True, places.same, _unchanged
    cut = copies.by_taking(found, x.sizes)
    if cut is not None:
        return cut.inverse(x.sizes), True, places.window(x.sizes, cut), cut.take
    pattern = copies.by_digits(found, x.sizes) or copies.by_places(found, x.sizes)
    return pattern.back, pattern.once, places.listed(found.flatten()), pattern.copy


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
