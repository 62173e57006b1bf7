"""Tries lifted forms that do not prove themselves: the part of the graph that they stand in, beside the model's own.

A part is what hangs together by values whose batch is not in front: from batch-first values, whose rows may be random,
to batch-first values, which are compared. Three samples are run together in the model's own operations, in float64,
each operation's constants converted for itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fastlrp.capture.graph import Graph, Node, Value
from fastlrp.capture.lift.lifter import Lifter, UnliftableError, rows_reshaped
from fastlrp.capture.lift.probe import SAMPLES, TOLERANCE, ancestors, called, called_in_double, close
from fastlrp.capture.lift.proof import is_proved
from fastlrp.capture.lift.standing import Standing
from fastlrp.errors import module_text


@dataclass(eq=False)
class Lifted:
    """One node of the model's own graph with what stands for it: itself, or lifted nodes.

    ``exits`` are values of earlier nodes that are brought back into the model's own layout in front of it.
    """

    node: Node
    new: list[Node]
    exits: list[tuple[Value, Value]] = field(default_factory=list)


@dataclass(eq=False)
class _Part:
    """Lifted entries that hang together, in order; ``exits`` as those of :class:`Lifted`, by the original value."""

    entries: list[Lifted] = field(default_factory=list)
    exits: dict[Value, Value] = field(default_factory=dict)


def check(graph: Graph, lifter: Lifter, lifted: list[Lifted], standing: Standing, examples: Sequence[Tensor]) -> None:
    """Raise UnliftableError where lifted values are neither proved nor found equal to the model's own."""
    unproved = [part for part in _parts(lifter, lifted) if not _proved(lifter, part, standing)]
    if not unproved:
        return
    trial = _Trial(graph, lifter, examples, unproved)
    for part in unproved:
        try:
            trial.check_part(part, True)
        except UnliftableError:
            raise
        except Exception:  # An operation that insists on the model's own dtype.
            trial.check_part(part, False)


def _proved(lifter: Lifter, part: _Part, standing: Standing) -> bool:
    return all(
        standing.place(e.node.output) is not None and is_proved(lifter, e.node, _own_nodes(e)) for e in part.entries
    )


def _own_nodes(entry: Lifted) -> list[Node]:
    """The nodes that stand for the entry's own operation, without exits of earlier ones."""
    leaving = {new for _, new in entry.exits}
    return [node for node in entry.new if node.output not in leaving]


def _parts(lifter: Lifter, lifted: list[Lifted]) -> list[_Part]:
    """Entries whose new nodes read one another's results, those through reshapes that melted into one included."""
    entries = [e for e in lifted if e.node.output in lifter.twins]
    made_by = {n.output: e for e in entries for n in _own_nodes(e)}
    entry_of = {e.node.output: e for e in entries}
    leaving = {new: entry_of[old] for e in lifted for old, new in e.exits}
    leader = {e: e for e in entries}

    def first(e: Lifted) -> Lifted:
        while leader[e] is not e:
            e = leader[e]
        return e

    for e in entries:
        read = [v for n in _own_nodes(e) for v in n.inputs] + [lifter.twins[e.node.output]]
        found = [made_by.get(v) or leaving.get(v) for v in read]
        found += [entry_of.get(v) for v in e.node.inputs]
        for other in filter(None, found):
            a, b = first(e), first(other)
            leader[b] = a
    parts: dict[Lifted, _Part] = {}
    for e in entries:
        parts.setdefault(first(e), _Part()).entries.append(e)
    for e in lifted:
        for old, new in e.exits:
            parts[first(entry_of[old])].exits[old] = new
    return list(parts.values())


class _Trial:
    """Runs parts of the graph in both forms on the same entries.

    Attributes:
        real: values that are no floats with relevance, as the model itself computes them.
    """

    def __init__(self, graph: Graph, lifter: Lifter, examples: Sequence[Tensor], parts: list[_Part]) -> None:
        self.graph, self.lifter = graph, lifter
        self.examples = dict(zip(graph.inputs, examples, strict=True))
        self.real: dict[Value, Any] = {}
        self.numbers: dict[Value, Any] = {}
        needed = {v for part in parts for v in _read_from_outside(lifter, part) if not _may_be_random(v)}
        self._compute(needed)

    def _compute(self, needed: set[Value]) -> None:
        """One forward pass as far as these values, in the model's own dtypes; sizes alone need none."""
        needed = {v for v in needed if self._number(v) is None}
        wanted: set[Value] = set().union(*(ancestors(self.graph, v) for v in needed)) if needed else set()
        state: dict[Value, Any] = {
            v: random_example(x, SAMPLES, v.index) for v, x in self.examples.items() if v in wanted
        }
        last = {v: node for node in self.graph.nodes if node.output in wanted for v in node.inputs}
        self.real = {v: t for v, t in state.items() if v in needed}
        for node in self.graph.nodes:
            if node.output in wanted:
                state[node.output] = called(node, {v: state[v] for v in node.inputs}, lambda t: t)
                if node.output in needed:
                    self.real[node.output] = state[node.output]
                for v in node.inputs:
                    if last[v] is node:
                        state.pop(v, None)

    def _number(self, value: Value) -> Any:
        """A size, or a number made of sizes, for these samples; None if it takes more than the symbolic sizes."""
        node = value.producer
        if value.is_tensor or node is None:
            return None
        if value not in self.numbers and node.operation == "sym_size":
            sizes = sizes_for(node.args[0], SAMPLES)
            self.numbers[value] = None if sizes is None else sizes[node.args[1]]
        elif value not in self.numbers:
            known = {v: self._number(v) for v in node.inputs}
            self.numbers[value] = None if None in known.values() else called(node, known, lambda t: t)
        return self.numbers[value]

    def given(self, value: Value) -> Any:
        """What stands in a value that a part reads from outside."""
        if not _may_be_random(value):
            return self.real[value] if value in self.real else self._number(value)
        dtype = torch.complex128 if value.dtype is not None and value.dtype.is_complex else torch.float64
        generator = torch.Generator().manual_seed(value.index)
        return torch.randn((SAMPLES, *value.sizes), generator=generator, dtype=dtype).to(self.lifter.device)

    def check_part(self, part: _Part, double: bool) -> None:
        """Compute a part by the model's own nodes and by the lifted ones, and refuse the lifted ones that differ."""
        call: Callable[[Node, dict[Value, Any]], Any] = called_in_double if double else as_it_is
        own: dict[Value, Any] = {v: self.given(v) for v in _read_from_outside(self.lifter, part)}
        if not double:
            own = {v: t.to(v.dtype) if isinstance(t, Tensor) and v.is_tensor else t for v, t in own.items()}
        ours = dict(own)
        last_own = {v: e for e in part.entries for v in e.node.inputs}
        last_ours = {v: e for e in part.entries for v in _read_by(self.lifter, part, e)}
        for entry in part.entries:
            y = entry.node.output
            own[y] = call(entry.node, own)
            for node in _with_exit(self.lifter, part, entry):
                try:
                    ours[node.output] = call(node, ours)
                except Exception as error:
                    if double:
                        raise
                    why = f"{type(error).__name__}: {str(error).splitlines()[0]}"
                    raise UnliftableError(reason(entry.node, why)) from error
            if y in part.exits:
                self._compare(entry.node, own[y], ours[part.exits[y]], double)
            for table, last in ((own, last_own), (ours, last_ours)):
                for v in [v for v in table if last.get(v, entry) is entry and v is not y]:
                    table.pop(v)

    def _compare(self, node: Node, own: Tensor, ours: Tensor, double: bool) -> None:
        if own.shape != ours.shape or not close(ours, own, tolerance(node.output, double)):
            why = f"of {SAMPLES} samples together one has another result there than it has alone"
            raise UnliftableError(reason(node, why))


def _with_exit(lifter: Lifter, part: _Part, entry: Lifted) -> list[Node]:
    """The entry's new nodes, and what brings its result into the model's own layout, if that is a node of its own.

    Where the model only undoes an earlier reshape, both melt, and what is read is the value from before.
    """
    new, leaving = _own_nodes(entry), part.exits.get(entry.node.output)
    if leaving is None or leaving is lifter.twins[entry.node.output] or not _is_reshaped(leaving):
        return new
    assert leaving.producer is not None
    return [*new, leaving.producer]


def _is_reshaped(value: Value) -> bool:
    return value.producer is not None and value.producer.call is rows_reshaped


def _read_by(lifter: Lifter, part: _Part, entry: Lifted) -> list[Value]:
    """What the entry's lifted form reads, and the value that its result is compared by."""
    read = [v for n in _with_exit(lifter, part, entry) for v in n.inputs]
    return [*read, part.exits[entry.node.output]] if entry.node.output in part.exits else read


def _read_from_outside(lifter: Lifter, part: _Part) -> list[Value]:
    """What the part reads and does not make itself, in either form."""
    made = {n.output for e in part.entries for n in (e.node, *_with_exit(lifter, part, e))}
    read = [v for e in part.entries for v in (*e.node.inputs, *_read_by(lifter, part, e))]
    return list(dict.fromkeys(v for v in read if v not in made))


def _may_be_random(value: Value) -> bool:
    return value.is_differentiable and value.has_batch_first


def sizes_for(value: Value, count: int) -> tuple[int, ...] | None:
    """Sizes of a value for so many samples; None if the capture says too little."""
    sizes: list[int] = []
    for n in value.shape:
        factor = None if isinstance(n, int) else re.fullmatch(r"(?:(\d+)\*)?s\d+", n or "s0")
        if isinstance(n, int):
            sizes.append(n)
        elif factor:
            sizes.append(int(factor[1] or 1) * count)
        else:
            return None
    return tuple(sizes)


def reason(node: Node, why: str) -> str:
    """A sentence for people whose model was not lifted."""
    return (
        f"The batch axis leaves axis 0, and {node.operation} in module {module_text(node.path)} could not "
        f"be written for each sample alone: {why}"
    )


def tolerance(value: Value, double: bool) -> float:
    """Between both forms, by the dtype in which they are run."""
    return TOLERANCE.get(torch.float64 if double else value.dtype or torch.float64, 0.0)


def as_it_is(node: Node, table: dict[Value, Any]) -> Any:
    """What a node gives, in the dtypes of its operands."""
    return called(node, table, lambda t: t)


def random_example(x: Tensor, count: int, seed: int) -> Tensor:
    """Random samples in the range of the example: floats of its mean and spread, any of its own integers."""
    generator = torch.Generator().manual_seed(seed + 1)
    shape = (count, *x.shape[1:])
    if x.numel() == 0:
        return x.new_zeros(shape)
    if not x.is_floating_point():
        return x.flatten()[torch.randint(x.numel(), shape, generator=generator).to(x.device)]
    spread = x.double().std(correction=0)
    noise = torch.randn(shape, generator=generator, dtype=torch.float64).to(x.device)
    return (x.double().mean() + noise * torch.where(spread > 0, spread, 1.0)).to(x.dtype)
