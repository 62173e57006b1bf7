"""Operations that copy entries of several sources, or from places that depend on the sample.

``where``, ``masked_fill``, slice assignment, ``index_put``: each entry of the result is one entry of a source or a
constant, so that its relevance goes to where it came from; what was overwritten, and constants, get nothing. The same
for ``gather`` and an index that is computed: the places are those of the sample.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastlrp.capture.bind import bind_forward
from fastlrp.capture.carrying import moved
from fastlrp.capture.graph import Constant, Node, Value, leaves, substitute
from fastlrp.capture.wording import shape_text
from fastlrp.errors import UnsupportedOperationError
from fastlrp.kinds import id_moves
from fastlrp.kinds.chained import is_chained
from fastlrp.kinds.jacobian import vjp_each
from fastlrp.kinds.kind import Kind
from fastlrp.kinds.textbook import carry_back
from fastlrp.plan.builder import Builder
from fastlrp.plan.steps import Factor, Flow
from fastlrp.plan.total import multiply

_OWN_MAPS = ("max_unpool2d", "max_unpool3d")
"""Operations whose indices count the entries of the sample's own map."""

_SAMPLES = 3
"""Size of the batch with which an operation is tried out, to see that each sample's entries are its own."""


def lower(b: Builder, node: Node, rule: None, flow: Flow) -> None:
    """Send each source the relevance of the entries that were copied from it."""
    if not node.output.is_float:
        id_moves.lower(b, node, flow)
        return
    check_batch(node)
    if places_vary(node):
        lower_places(b, node, flow)
        return
    for x in node.sources:
        send_static(b, node, x, flow)


def unread(node: Node) -> tuple[Value, ...]:
    """Activations of which the operation reads the shape or dtype only."""
    found: tuple[Value, ...] = node.attributes.get("unread", ())
    return found


def conditions(node: Node) -> list[Value]:
    """Activations whose entries are read and get no relevance: indices, masks, what is written without relevance."""
    return [v for v in node.inputs if v not in node.sources and v not in unread(node)]


def places_vary(node: Node) -> bool:
    """True if which entries are copied depends on the sample, by an index or a mask."""
    written = {v for v in moved(node) if v.is_float}
    return any(v.depends for v in conditions(node) if v not in written)


def check_batch(node: Node) -> None:
    """Raise UnsupportedOperationError unless sources and result keep the batch as axis 0."""
    for value in (node.output, *node.sources):
        if not value.has_batch_first:
            raise UnsupportedOperationError(
                f"{node}: a tensor of shape {shape_text(value.shape)} does not keep the batch as axis 0, so relevance "
                "of one sample cannot be told from that of the others"
            )


def lower_places(b: Builder, node: Node, flow: Flow) -> None:
    """Which entries are copied depends on the sample: the derivative is the copy's inverse."""
    check_batch(node)
    check_samples(node, b.graph.batch)
    y, sources = node.output, node.sources
    forward = bind_forward(node)
    chained = is_chained(flow, y)
    scale = flow.factor.scale if chained else b.slot_of(flow.factor)
    wanted = [node.inputs.index(v) for v in sources]
    slots = [v.index for v in node.inputs]
    for x, position in zip(sources, wanted, strict=True):

        def relevance_of_source(f: Tensor, s: Tensor | None, *values: Any, position: int = position) -> Tensor:
            return vjp_each(forward, values, position, f if s is None else multiply(f, s))

        register = b.step(relevance_of_source, [flow.register], [scale, *slots], x.numel)
        b.send(x, Flow(register, Factor(x) if chained else Factor()))


def check_samples(node: Node, batch: int | None) -> None:
    """Raise UnsupportedOperationError where an index that depends on the sample may reach into another sample."""
    if getattr(node.call, "keeps_samples_apart", False):
        return
    operands = [v for v in conditions(node) if v.is_tensor]
    rank, name = len(node.output.shape), node.operation
    if any(v.depends and not v.is_tensor for v in conditions(node)):
        raise UnsupportedOperationError(
            f"{node}: a size or position is computed from data. Use torch.where or torch.gather, or fix the number"
        )
    if name in ("where", "masked_fill"):
        ok = all(
            (len(v.shape) == rank and v.shape[0] in (None, 1)) or (len(v.shape) < rank and None not in v.shape)
            for v in operands
        )
    elif name in ("gather", "take_along_dim", "scatter", "scatter_add", "scatter_reduce"):
        dim = node.args[1] if len(node.args) > 1 and name != "take_along_dim" else node.kwargs.get("dim")
        dim = node.args[2] if name == "take_along_dim" and len(node.args) > 2 else dim
        ok = isinstance(dim, int) and dim % rank != 0 and all(v.has_batch_first for v in operands)
    elif name in ("index", "index_put", "_unsafe_index_put"):
        ok = _picks_own_sample(node.args[1], batch)
    else:
        ok = name in _OWN_MAPS and all(v.has_batch_first for v in operands)
    if not ok:
        raise UnsupportedOperationError(
            f"{node}: its index is computed from data and may reach from one sample into another. Index each sample "
            f"with torch.gather along another axis than 0, or as x[torch.arange(len(x)), index]"
        )


def _picks_own_sample(indices: Any, batch: int | None) -> bool:
    """True for ``[arange(B), index, …]`` with the batch along axis 0 of all, or one mask."""
    if len(indices) == 1 and isinstance(indices[0], Value) and indices[0].dtype == torch.bool:
        return indices[0].has_batch_first
    if not indices or indices[0] is None or any(i is None for i in indices[: _last(indices)]):
        return False
    first = indices[0]
    if isinstance(first, Value) and first.depends:
        return False
    try:
        rows = at_batch(first, {}, batch or _SAMPLES)
    except UnsupportedOperationError:
        return False
    if not isinstance(rows, Tensor) or rows.dim() == 0 or rows.dtype not in (torch.int64, torch.int32):
        return False
    if not torch.equal(rows, _rows(rows, batch or _SAMPLES)):
        return False
    others = [i for i in indices[1:] if i is not None]
    return all(
        isinstance(i, Value) and i.has_batch_first and len(i.shape) == rows.dim()
        if isinstance(i, Value) and i.depends
        else True
        for i in others
    )


def _rows(like: Tensor, batch: int) -> Tensor:
    """``arange(batch)`` along axis 0, of the shape that an index of its own sample has."""
    numbers = torch.arange(batch, dtype=like.dtype).view(-1, *[1] * (like.dim() - 1))
    return numbers.expand(batch, *like.shape[1:])


def _last(indices: Any) -> int:
    return max(i for i, item in enumerate(indices) if item is not None) + 1


def send_static(b: Builder, node: Node, x: Value, flow: Flow) -> None:
    """The same entries for all samples: their numbers are learnt once."""
    y = node.output
    places, index = _places(node, x, b.graph.batch or _SAMPLES)
    sizes = x.sizes
    whole = places.numel() == y.numel and bool((places == torch.arange(y.numel)).all())
    same = whole and places.numel() == x.numel and torch.equal(index, places)
    chained = is_chained(flow, y)
    scale = flow.factor.scale if chained else b.slot_of(flow.factor)
    moved: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def relevance_of_source(f: Tensor, s: Tensor | None) -> Tensor:
        f = f if s is None else multiply(f, s)
        if same:
            return f.reshape(*f.shape[:2], *sizes)
        if f.device not in moved:  # Moved to a device once: a copy from the host would wait for it.
            moved[f.device] = (places.to(f.device), index.to(f.device))
        taken, to = moved[f.device]
        values = f.reshape(*f.shape[:2], y.numel).index_select(2, taken)
        return f.new_zeros(*f.shape[:2], x.numel).index_add_(2, to, values).reshape(*f.shape[:2], *sizes)

    def up(t: Tensor, s: Tensor | None) -> Tensor:
        if same:
            copied = t.reshape(*t.shape[:2], *y.sizes)
        else:
            values = t.reshape(*t.shape[:2], x.numel).index_select(2, index.to(t.device))
            copied = t.new_zeros(*t.shape[:2], y.numel).index_add_(2, places.to(t.device), values)
            copied = copied.reshape(*t.shape[:2], *y.sizes)
        return copied if s is None else multiply(copied, s)

    register = b.step(relevance_of_source, [flow.register], [scale], x.numel, up=up)
    b.send(x, Flow(register, Factor(x) if chained else Factor()))


def _places(node: Node, x: Value, batch: int) -> tuple[Tensor, Tensor]:
    """Which entries of one sample's result come from ``x``, and from which entry each.

    The operation is run on the entries' own numbers, plus and minus: what does not change is not from ``x``.
    """
    found = []
    for sign in (1.0, -1.0):
        table: dict[Value, Any] = {}
        for v in node.sources:
            shape = (batch, *v.sizes)
            numbers = torch.arange(1, batch * v.numel + 1, dtype=torch.float64).view(shape)
            table[v] = numbers * sign if v is x else torch.zeros(shape, dtype=torch.float64)
        try:
            args, kwargs = at_batch((node.args, node.kwargs), table, batch)
            found.append(node.call(*args, **kwargs))
        except Exception as error:
            raise UnsupportedOperationError(
                f"{node}: cannot tell where its entries come from, since it does not work for a batch of {batch}: "
                "write it so that it holds for any batch size"
            ) from error
    plus, minus = (t.double().reshape(batch, -1) for t in found)
    mine = plus != minus
    numbers = plus.nan_to_num(0).round().long() - 1
    start = torch.arange(batch).view(-1, 1) * x.numel
    own = torch.where(mine, numbers - start, 0)
    outside = (own < 0) | (own >= max(x.numel, 1))
    if bool((mine != mine[:1]).any()) or bool((own != own[:1]).any()) or bool(outside.any()):
        raise UnsupportedOperationError(
            f"{node} treats the samples of a batch differently, or writes from one into another, so relevance of one "
            "sample cannot be told from that of the others: write along other axes than axis 0"
        )
    places = mine[0].nonzero()[:, 0]
    return places, own[0, places]


def at_batch(tree: Any, table: dict[Value, Any], batch: int) -> Any:
    """The tree with values replaced: those in the table, and what depends on the batch size alone for this size."""
    known = dict(table)
    todo = [leaf for leaf in leaves(tree) if isinstance(leaf, Value) and leaf not in known]
    while todo:
        value = todo[-1]
        node = value.producer
        if value in known:
            todo.pop()
        elif node is not None and node.operation == "sym_size":
            size = node.args[0].shape[node.args[1]]
            known[value] = batch if size is None else size
        elif value.depends and value.is_tensor and all(n is None or isinstance(n, int) for n in value.shape):
            # Only its size is read.
            sizes = [batch if n is None else int(n) for n in value.shape]
            known[value] = torch.zeros(sizes, dtype=value.dtype)
        elif node is None or value.depends:
            raise UnsupportedOperationError(f"'{value.name}' is computed from data")
        else:
            missing = [v for v in node.inputs if v not in known]
            todo += missing
            if not missing:
                known[value] = _plain(node.call(*_bare(substitute(node.args, known)),
                                              **_bare(substitute(node.kwargs, known))))  # fmt: skip
    return _bare(substitute(tree, known))


def _bare(tree: Any) -> Any:
    def plain(leaf: Any) -> Any:
        leaf = leaf.tensor() if isinstance(leaf, Constant) else leaf
        if isinstance(leaf, torch.device):
            return torch.device("cpu")
        if isinstance(leaf, Tensor):
            return leaf.cpu().double() if leaf.is_floating_point() else leaf.cpu()
        return leaf

    return torch.utils._pytree.tree_map(plain, tree)


def _plain(result: Any) -> Any:
    """The result in float64, if it is a tensor of floats."""
    return result.double() if isinstance(result, Tensor) and result.is_floating_point() else result


def read(node: Node, bound: dict[str, Any]) -> str | None:
    """No attributes; what adds or multiplies where it writes is another kind."""
    if bound.get("accumulate") or bound.get("reduce") == "add":
        return "homogeneous"  # Adds where it writes.
    return None if bound.get("reduce") is None else "unknown"


KIND = Kind(
    name="write",
    operations=(
        "where masked_fill index_put _unsafe_index_put masked_scatter index_copy index_fill scatter "
        "slice_scatter select_scatter diagonal_scatter copy fill max_unpool2d max_unpool3d"
    ),
    lower=lower,
    textbook=carry_back,
    read=read,
    needs_rule=False,
)
