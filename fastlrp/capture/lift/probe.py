"""Finds operations that mix the samples of a batch: what the arguments do not prove is tried.

Relevance of one sample is only defined if its output does not depend on the other samples. Most operations prove that
by their arguments (:mod:`fastlrp.capture.lift.batch_axis`, :mod:`fastlrp.capture.lift.standing`). Any other is run
once, at capture, with three random samples and with each of them alone; a row that differs is an error. A model that
is captured for one batch size cannot take a sample alone: there the other samples are exchanged for others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastlrp.capture import advice
from fastlrp.capture.graph import Constant, Graph, Node, Value, substitute
from fastlrp.capture.lift.batch_axis import keeps_samples_apart, shape_in_words, works_along
from fastlrp.capture.lift.standing import Place, Standing, alone_symbolic
from fastlrp.errors import UnsupportedOperationError, module_text

SAMPLES = 3

TOLERANCE = {torch.float16: 2e-2, torch.bfloat16: 1e-1, torch.float32: 1e-4, torch.float64: 1e-9}
"""Between a row and the sample alone. Measured: 0 to 2e-15 in float64, which is used where the operation takes it."""

_WAYS_OUT = (
    "Relevance of a sample would depend on which others it is explained with. Keep the batch as axis 0 and let the "
    "operation work along other axes (dim=-1 in the place of dim=0, say); or explain the part of the model before or "
    "after it."
)


def refuse_mixed_samples(graph: Graph, examples: Sequence[Tensor], fixed_batch: int | None) -> Standing:
    """Raise if the explained output of a sample depends on the rest of the batch.

    Args:
        examples: the inputs that the model was captured with, in the order of ``graph.inputs``.
        fixed_batch: the only batch size that the graph takes; None if it takes any.

    Returns:
        where the batch stands in the values on the way to the output; its ``rows`` are those whose row b belongs to
        sample b alone.

    Raises:
        UnsupportedOperationError: naming the operation.
    """
    if fixed_batch is not None and fixed_batch < 2:
        return Standing(set())
    with torch.no_grad():
        probe = _Probe(graph, examples, fixed_batch)
        probe.try_all()
    return probe.standing


class _Probe:
    """One walk through the graph.

    Attributes:
        rows: values whose row b depends on sample b alone. They are not held: random rows will do.
        standing: where the batch is in these and in values that are not batch-first, which are not held either.
        together, alone: of every other value, what it is for all samples and for each of :attr:`picked` alone.
        of_samples: values that depend on what the samples are, not only on how many.
        moved: values whose batch is another axis than 0, and which.
        coarse: values that float64 could not be used for.
    """

    def __init__(self, graph: Graph, examples: Sequence[Tensor], fixed: int | None) -> None:
        self.graph, self.fixed = graph, fixed
        self.count = SAMPLES if fixed is None else fixed
        self.picked = sorted({0, self.count // 2, self.count - 1})
        self.examples = dict(zip(graph.inputs, examples, strict=True))
        self.rows = set(graph.inputs)
        self.standing = Standing(self.rows)
        self.together: dict[Value, Any] = {}
        self.alone: dict[Value, list[Any]] = {}
        self.of_samples = set(graph.inputs)
        self.moved: dict[Value, int] = {}
        self.coarse: set[Value] = set()
        self.node: Node | None = None
        self.real: dict[Value, Any] = {v: self._sample(v) for v in graph.inputs}
        self.wanted = ancestors(graph, graph.output)
        self.last = {v: node for node in graph.nodes if node.output in self.wanted for v in node.inputs}
        self.ahead = iter([node for node in graph.nodes if node.output in self.wanted])
        self.next = next(self.ahead, None)

    def try_all(self) -> None:
        for node in self.graph.nodes:
            if node.output not in self.wanted:
                continue
            if any(v in self.of_samples for v in node.inputs) and node.operation != "sym_size":
                self.of_samples.add(node.output)
            if keeps_samples_apart(node, self.rows):
                self.rows.add(node.output)
            elif self.standing.follow(node):
                place = self.standing.place(node.output)
                if place is not None and node.output not in self.rows:
                    self.moved[node.output] = place.axis
            else:
                self.node = node
                self._try(node)
            for value in node.inputs:
                if self.last[value] is node:
                    self.together.pop(value, None)
                    self.alone.pop(value, None)

    # One operation

    def _try(self, node: Node) -> None:
        y = node.output
        together, alone = self._results(node)
        if y.is_tensor and y.shape and y.shape[0] is None:
            if self._same(y, together, alone, 0):
                self.rows.add(y)
                return
            if y in self.of_samples:
                raise UnsupportedOperationError(self._message(node))
        self.together[y], self.alone[y] = together, alone
        for axis in range(1, together.dim() if isinstance(together, Tensor) else 0):
            if self._same(y, together, alone, axis):
                self.moved[y] = axis
                if y in self.of_samples and self.fixed is None and alone_symbolic(y, axis):
                    self.standing.places[y] = Place(axis)

    def _results(self, node: Node) -> tuple[Any, list[Any]]:
        """Of all samples, and of each alone: on random entries, on the example's own where those will not do."""
        if node.operation == "sym_size":
            return self._size(node)
        reason: Exception | None = None
        for entries in (self._random, self._real):
            for double in (True, False):
                try:
                    whole = {v: self._whole(v, entries) for v in node.inputs}
                    parts = [{v: self._part(v, whole[v], i, n) for v in node.inputs} for n, i in enumerate(self.picked)]
                    call = called_in_double if double else _as_declared
                    found = call(node, whole), [call(node, part) for part in parts]
                except Exception as error:  # Any operation may refuse any input in any way.
                    reason = error
                    continue
                if not double or any(v in self.coarse for v in node.inputs):
                    self.coarse.add(node.output)
                return found
        raise UnsupportedOperationError(
            f"{node.operation} in module {module_text(node.path)} fails for {self.count} samples or for one alone, so "
            f"that it cannot be told whether it mixes them: {reason}. {_WAYS_OUT}"
        ) from reason

    def _size(self, node: Node) -> tuple[Any, list[Any]]:
        source, axis = node.args[:2]
        size = source.shape[axis]
        if isinstance(size, int):
            return size, [size] * len(self.picked)
        if size is None:
            return self.count, [1 if self.fixed is None else self.count] * len(self.picked)
        place = self.standing.place(source)
        if place is not None:
            each = place.before * place.after
            return each * self.count, [each] * len(self.picked)
        whole = self._whole(source, self._real)
        parts = [self._part(source, whole, i, n) for n, i in enumerate(self.picked)]
        return whole.shape[axis], [part.shape[axis] for part in parts]

    def _same(self, value: Value, together: Any, alone: list[Any], axis: int) -> bool:
        """True if along ``axis`` each sample has what it has alone."""
        if not isinstance(together, Tensor) or together.dim() <= axis or together.shape[axis] != self.count:
            return False
        dtype = value.dtype if value in self.coarse and value.dtype in TOLERANCE else torch.float64
        tolerance = TOLERANCE[dtype]
        size = 1 if self.fixed is None else self.fixed
        for i, part in zip(self.picked, alone, strict=True):
            if not isinstance(part, Tensor) or part.dim() != together.dim() or part.shape[axis] != size:
                return False
            mine, row = part.select(axis, i if self.fixed else 0), together.select(axis, i)
            if mine.shape != row.shape or not close(mine, row, tolerance):
                return False
        return True

    # Entries

    def _whole(self, value: Value, entries: Callable[[Value], Any]) -> Any:
        return entries(value) if value in self.rows or value in self.standing.places else self.together[value]

    def _part(self, value: Value, whole: Any, sample: int, number: int) -> Any:
        """One sample alone; in a batch of fixed size, with others in the places of the rest."""
        place = self.standing.places.get(value)
        if place is not None:
            parts = whole.unflatten(place.axis, (place.before, self.count, place.after))
            return parts.select(place.axis + 1, sample).flatten(place.axis, place.axis + 1)
        if value not in self.rows:
            return self.alone[value][number]
        if self.fixed is None:
            return whole[sample : sample + 1]
        others = whole.roll(1, 0)
        if whole.is_floating_point():
            others = torch.randn(whole.shape, generator=_seeded(~value.index), dtype=torch.float64).to(whole)
        others[sample] = whole[sample]
        return others

    def _random(self, value: Value) -> Any:
        """The same numbers whenever they are asked for. Only integers and truth values have to be real ones."""
        place = self.standing.place(value)
        if not value.is_differentiable or place is None:
            return self._real(value)
        dtype = torch.complex128 if value.dtype is not None and value.dtype.is_complex else torch.float64
        shape, device = shape_for(value, place, self.count), next(iter(self.examples.values())).device
        return torch.randn(shape, generator=_seeded(value.index), dtype=dtype).to(device)

    def _real(self, value: Value) -> Any:
        """What the model itself computes there for samples like the example.

        One forward pass in all, as far as the operation that is tried.
        """
        while self.next is not None and self.next is not self.node:
            node = self.next
            self.real[node.output] = called(node, {v: self.real[v] for v in node.inputs}, lambda t: t)
            for v in node.inputs:
                if self.last[v] is node:
                    self.real.pop(v, None)
            self.next = next(self.ahead, None)
        return self.real[value]

    def _sample(self, value: Value) -> Tensor:
        """As many samples as are needed: the example's own, again and again, with noise upon floats."""
        return like_example(self.examples[value], self.count, value.index)

    # Words

    def _message(self, node: Node) -> str:
        each = self._folded(node)
        if each > 1:
            return (
                f"{node.operation} in module {module_text(node.path)} takes rows of axis 0, where {each} entries of "
                "each sample lie one after the other (frames or windows that are folded into the batch): as many "
                "rows as there are samples, but those of the first samples. Take the first ones of each sample, "
                f"x.unflatten(0, (batch, -1))[:, 0] in the place of x[:batch]. {_WAYS_OUT}"
            )
        first = self._culprit(node)
        name = f"{first.operation} in module {module_text(first.path)}"
        sized = next((v for v in first.inputs if v not in self.rows and v not in self.of_samples), None)
        axes = {0} if any(v in self.rows for v in first.inputs) else set()
        axes |= {self.moved[v] for v in first.inputs if v in self.moved}
        axis = next((axis for axis in sorted(axes) if works_along(first, axis)), None)
        if axis is not None:
            reason = f"works along axis {axis}, the batch, and so mixes samples"
        elif sized is not None:
            maker = "the batch size" if sized.producer is None else sized.producer.operation
            reason = f"gives a sample another result in a batch than alone, since it reads {maker}, made from its size"
        elif first is not node:
            reason = f"mixes samples: its result, of shape {shape_in_words(first.output)}, has no batch axis"
        else:
            reason = (
                f"mixes samples along the batch axis, or is random: in a trial with {self.count} samples one of them "
                "got another result than it gets without the others"
            )
        reader = (
            "" if first is node else f" ({node.operation} in module {module_text(node.path)} brings it to all samples)"
        )
        ways = next(filter(None, (advice.mixing(n) for n in (first, node))), "")
        return f"{name} {reason}{reader}. {f'{ways}. ' if ways else ''}{_WAYS_OUT}"

    def _folded(self, node: Node) -> int:
        """How many entries of a sample axis 0 holds for an operation that takes a range of it; 1 for any other."""
        x = node.args[0] if node.args else None
        if node.operation not in ("slice", "narrow") or not isinstance(x, Value) or (*node.args[1:2], 0)[0] != 0:
            return 1
        if (*node.args[4:5], node.kwargs.get("step", 1))[0] != 1:
            return 1
        place = self.standing.place(x)
        return place.after if place is not None and place.axis == 0 and place.before == 1 else 1

    def _culprit(self, node: Node) -> Node:
        """The operation at which the samples lost their places, from where ``node`` has it."""
        while True:
            lost = [v for v in node.inputs if v in self.of_samples and v not in self.rows and v not in self.moved]
            maker = next((v.producer for v in lost if v.is_tensor and v.producer is not None), None)
            if maker is None:
                return node
            node = maker


def shape_for(value: Value, place: Place, count: int) -> tuple[int, ...]:
    """Sizes of a value for so many samples."""
    sizes = [n if isinstance(n, int) else place.before * count * place.after for n in value.shape]
    return tuple(sizes)


def like_example(x: Tensor, count: int, seed: int) -> Tensor:
    """As many samples as are asked for: the example's own, again and again, with noise upon floats."""
    if x.shape[0] == 0:
        x = x.new_zeros(1, *x.shape[1:])
    repeated = x[torch.arange(count, device=x.device) % x.shape[0]]
    if not x.is_floating_point():
        return repeated
    noise = torch.randn(repeated.shape, generator=_seeded(seed), dtype=torch.float64).to(repeated)
    return repeated + 0.1 * noise * (x.std(correction=0) if x.numel() else 1)


def close(mine: Tensor, row: Tensor, tolerance: float) -> bool:
    """Equal but for rounding, relative to the largest entry; infinity and NaN in the same places."""
    if not (mine.is_floating_point() or mine.is_complex()):
        return torch.equal(mine, row)
    finite = row[torch.isfinite(row)].abs()
    size = float(finite.max()) if finite.numel() else 0.0
    return torch.allclose(mine, row, rtol=tolerance, atol=tolerance * size, equal_nan=True)


def _seeded(number: int) -> torch.Generator:
    """A generator of one's own: the caller's random numbers stay as they are."""
    return torch.Generator().manual_seed(number & 0xFFFFFFFF)


def ancestors(graph: Graph, value: Value) -> set[Value]:
    """The value and all that it is made from."""
    found = {value}
    for node in reversed(graph.nodes):
        if node.output in found:
            found.update(node.inputs)
    return found


def called(node: Node, table: dict[Value, Any], convert: Callable[[Tensor], Tensor]) -> Any:
    """What the node gives for these values of its inputs, every tensor converted."""
    if node.operation == "sym_size":
        return table[node.args[0]].shape[node.args[1]]

    def plain(leaf: Any) -> Any:
        leaf = leaf.tensor() if isinstance(leaf, Constant) else leaf
        return convert(leaf) if isinstance(leaf, Tensor) else leaf

    args, kwargs = substitute(node.args, table), substitute(node.kwargs, table)
    return node.call(*_mapped(args, plain), **_mapped(kwargs, plain))


def _mapped(tree: Any, change: Callable[[Any], Any]) -> Any:
    return torch.utils._pytree.tree_map(change, tree)


def called_in_double(node: Node, table: dict[Value, Any]) -> Any:
    """In float64, so that rounding is not taken for another sample's share."""
    return called(node, table, lambda t: t.double() if t.is_floating_point() else t)


def _as_declared(node: Node, table: dict[Value, Any]) -> Any:
    """In the model's own dtypes, for operations that insist on them."""
    own = {v: t.to(v.dtype) if isinstance(t, Tensor) and v.dtype is not None else t for v, t in table.items()}
    return called(node, own, lambda t: t)
