"""The batch axis may travel: what puts it anywhere but in front is rewritten so that it stays there.

Attention with ``(S, B, D)``, windows or frames folded into the batch, tokens flattened into it: such a value has shape
``f(B)``, and its lifted twin ``(B, *f(1))``, row b being what the model would hold if sample b were alone. Operations
get the form that works on twins (:mod:`fastlrp.capture.lift.moves`, :mod:`fastlrp.capture.lift.layers`); what is
batch-first in the model stays untouched, and a value that is so again is read as the model has it.

Nothing is taken on trust: a form proves that it is right (:mod:`fastlrp.capture.lift.proof`), or the part of the graph
that it stands in is run beside the model's own (:mod:`fastlrp.capture.lift.check`). A graph that cannot be lifted is
left as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastlrp.capture.carrying import mark_ids
from fastlrp.capture.graph import Graph, Node, Value, substitute
from fastlrp.capture.lift.check import Lifted, as_it_is, check, random_example, reason, sizes_for, tolerance
from fastlrp.capture.lift.layers import LAYERS
from fastlrp.capture.lift.lifter import Lifter, UnliftableError
from fastlrp.capture.lift.messages import MESSAGES
from fastlrp.capture.lift.moves import MOVES, Form
from fastlrp.capture.lift.probe import ancestors, called, called_in_double, close
from fastlrp.capture.lift.standing import Standing

_FORMS: dict[str, Form] = {name: form for names, form in (*MOVES, *LAYERS, *MESSAGES) for name in names.split()}


def lift(graph: Graph, standing: Standing, examples: Sequence[Tensor]) -> None:
    """Rewrite what is not batch-first on the way to the explained output, if that is batch-first itself.

    Args:
        standing: where the batch is in each value, as far as :mod:`fastlrp.capture.lift.probe` knows.
        examples: the inputs that the model was captured with, in the order of ``graph.inputs``.
    """
    rows = standing.rows
    if not travels(graph, rows) or graph.output not in rows or not graph.output.has_batch_first:
        return
    wanted, values = ancestors(graph, graph.output), graph.values
    try:
        with torch.no_grad():
            lifter, lifted = _lifted(graph, rows, wanted, examples)
            check(graph, lifter, lifted, standing, examples)
    except UnliftableError as error:
        graph.values = values
        graph.not_lifted = str(error)
        return
    commit(graph, lifter, lifted)


def travels(graph: Graph, rows: set[Value]) -> bool:
    """True if the batch is anywhere but in front on the way to the explained output."""
    wanted = ancestors(graph, graph.output)
    return any(n.output in wanted and n.output.depends and not is_natural(n, rows) for n in graph.nodes)


def lift_all(graph: Graph, several: Graph, examples: Sequence[Tensor], count: int) -> bool:
    """Rewrite a graph that was captured for one sample so that it takes any number, if that can be done.

    Args:
        graph: of a model that holds on to one batch size, captured for one sample; changed if it is lifted.
        several: the same model captured for ``count`` samples, with which the result is compared.
        examples: the inputs of ``several``.
    """
    if not all(v.has_batch_first for v in (*graph.inputs, graph.output)):
        return False
    axes = {v: _batch_axis(v, w, count) for v, w in zip(graph.outputs, several.outputs, strict=True)}
    if None in axes.values():
        return False
    wanted = set().union(*(ancestors(graph, v) for v in graph.outputs))
    rows = {*graph.inputs, *(v for v in graph.outputs if v.has_batch_first)}
    try:
        with torch.no_grad():
            lifter, lifted = _lifted(graph, rows, wanted, examples, whole=True)
            _put_back(lifter, lifted[-1], {v: a for v, a in axes.items() if a is not None and not v.has_batch_first})
            commit(graph, lifter, lifted)
            own, ours, double = _both(graph, several, examples, count)
    except Exception:  # Whatever fails, there is the graph for this batch size.
        return False
    graph.batch = None
    return all(
        a.shape == b.shape and close(a, b, tolerance(v, double))
        for v, a, b in zip(graph.outputs, ours, own, strict=True)
    )


def _batch_axis(alone: Value, several: Value, count: int) -> int | None:
    """The axis of an output that has ``count`` times the entries for as many samples: the batch; None if unknown.

    Args:
        alone: the output for one sample. several: for ``count``.
    """
    if alone.has_batch_first or not alone.depends:
        return 0
    one, many = ([n or size for n in v.shape] for v, size in ((alone, 1), (several, count)))
    differ = [i for i, (a, b) in enumerate(zip(one, many, strict=True)) if a != b] if len(one) == len(many) else []
    if len(differ) != 1 or many[differ[0]] != one[differ[0]] * count:
        return None
    return differ[0]


def _put_back(lifter: Lifter, made: Lifted, axes: dict[Value, int]) -> None:
    """Outputs that nobody explains in the model's own layout, with the batch at these axes."""
    for value, axis in axes.items():
        if value not in lifter.twins:
            continue
        assert value.producer is not None
        lifter.node, lifter.made, twin = value.producer, made.new, lifter.twins[value]
        moved = lifter.emit("batch_put_back", partial(_with_batch_at, axis=axis), (twin,), twin.sizes)
        n = value.shape[axis]
        moved.shape = (*value.shape[:axis], None if n == 1 else f"{n}*batch", *value.shape[axis + 1 :])
        lifter.natural[value] = moved


def _with_batch_at(x: Tensor, axis: int) -> Tensor:
    """``f(B)`` of ``(B, *f(1))``."""
    return x.movedim(0, axis).flatten(axis, axis + 1)


def _both(
    graph: Graph, several: Graph, examples: Sequence[Tensor], count: int
) -> tuple[list[Tensor], list[Tensor], bool]:
    """What the model and the lifted graph give for random samples; True if in float64.

    Where an operation insists on the model's own dtype it gets that, where it takes only some integers (as many places
    for an image as it has features) those of the example.
    """
    random = [random_example(x, count, i) for i, x in enumerate(examples)]
    sensible = [r if x.is_floating_point() else x for r, x in zip(random, examples, strict=True)]
    trouble: Exception | None = None
    for samples in (random, sensible):
        for double, call in ((True, called_in_double), (False, as_it_is)):
            try:
                return _run(several, samples, call), _run(graph, samples, call), double
            except Exception as error:  # Any operation may refuse any input in any way.
                trouble = error
    assert trouble is not None
    raise trouble


def _run(graph: Graph, samples: Sequence[Tensor], call: Callable[[Node, dict[Value, Any]], Any]) -> list[Tensor]:
    state: dict[Value, Any] = dict(zip(graph.inputs, samples, strict=True))
    for node in graph.nodes:
        state[node.output] = call(node, {v: state[v] for v in node.inputs})
    return [state[v] for v in graph.outputs]


def is_natural(node: Node, rows: set[Value]) -> bool:
    """True if what it reads of the input is batch-first, and so is what it gives."""
    unread = node.attributes.get("unread", ())
    read = [v for v in node.inputs if v.depends and v not in unread]
    return all(v in rows and v.has_batch_first for v in (*read, node.output))


def _lifted(
    graph: Graph, rows: set[Value], wanted: set[Value], examples: Sequence[Tensor], whole: bool = False
) -> tuple[Lifter, list[Lifted]]:
    """All nodes with their lifted forms; ``whole``: no node stays as it is."""
    lifter = Lifter(graph, *_alone(graph, wanted, examples), examples[0].device)
    result: list[Lifted] = []
    for node in graph.nodes:
        y = node.output
        made = Lifted(node, [])
        result.append(made)
        if y in wanted:
            lifter.node, lifter.made = node, made.new
            if not y.depends:
                lifter.evaluate(node)
                if not whole:
                    made.new.append(node)
            elif not whole and is_natural(node, rows):
                _read_natural(lifter, node, rows, made)
            elif y.is_tensor:
                lifter.twins[y] = twin_of(lifter, node)
    for value in graph.outputs if whole else [graph.output]:
        if value in lifter.twins and value.has_batch_first:
            _leave(lifter, value, result[-1])
    return lifter, result


def twin_of(lifter: Lifter, node: Node) -> Value:
    try:
        twin = _FORMS.get(node.operation, Lifter.mapped)(lifter)
    except UnliftableError as error:
        raise UnliftableError(reason(node, str(error))) from error
    except Exception as error:  # A form may meet any use of an operation.
        raise UnliftableError(reason(node, f"{type(error).__name__}: {str(error).splitlines()[0]}")) from error
    if twin.sizes != lifter.shapes[node.output]:
        raise UnliftableError(reason(node, f"its form gives {twin.sizes}, expected {lifter.shapes[node.output]}"))
    return twin


def _read_natural(lifter: Lifter, node: Node, rows: set[Value], made: Lifted) -> None:
    """A node that stays, reading values that are batch-first again."""
    table: dict[Value, Value] = {}
    for v in node.inputs:
        if v in lifter.twins and v in rows and v.has_batch_first:
            _leave(lifter, v, made)
        if v in lifter.natural:
            table[v] = lifter.natural[v]
    if not table:
        made.new.append(node)
        return
    attributes = dict(node.attributes)
    for key in attributes:
        attributes[key] = substitute(attributes[key], table)
    made.new.append(
        Node(
            node.kind,
            node.operation,
            node.call,
            substitute(node.args, table),
            substitute(node.kwargs, table),
            tuple(dict.fromkeys(table.get(v, v) for v in node.inputs)),
            node.output,
            node.path,
            node.module_type,
            attributes,
        )
    )


def _leave(lifter: Lifter, value: Value, made: Lifted) -> None:
    """The natural layout of a lifted value that is batch-first in the model."""
    if value in lifter.natural:
        return
    before = lifter.node
    assert value.producer is not None
    lifter.node, lifter.made = value.producer, made.new
    lifter.natural[value] = lifter.reshape(lifter.twins[value], value.sizes)
    lifter.node = before
    made.exits.append((value, lifter.natural[value]))


def _alone(
    graph: Graph, wanted: set[Value], examples: Sequence[Tensor]
) -> tuple[dict[Value, tuple[int, ...]], dict[Value, Any]]:
    """Shapes and numbers of a batch of one: read off the symbolic sizes, by a forward pass where that is not enough."""
    found = _read_off(graph, wanted)
    return _by_running(graph, wanted, examples) if found is None else found


def _read_off(graph: Graph, wanted: set[Value]) -> tuple[dict[Value, tuple[int, ...]], dict[Value, Any]] | None:
    shapes: dict[Value, tuple[int, ...]] = {}
    numbers: dict[Value, Any] = {}
    for value in graph.inputs:
        sizes = sizes_for(value, 1)
        if sizes is None:
            return None
        shapes[value] = sizes
    for node in graph.nodes:
        y = node.output
        if y not in wanted:
            continue
        if y.is_tensor:
            sizes = sizes_for(y, 1)
            if sizes is None or node.operation == "squeeze":  # Which may take a batch of one, too.
                return None
            shapes[y] = sizes
        elif node.operation == "sym_size":
            numbers[y] = shapes[node.args[0]][node.args[1]]
        elif all(v in numbers for v in node.inputs):
            numbers[y] = node.call(*substitute(node.args, numbers), **substitute(node.kwargs, numbers))
        elif node.kind == "scalar":
            return None
    return shapes, numbers


def _by_running(
    graph: Graph, wanted: set[Value], examples: Sequence[Tensor]
) -> tuple[dict[Value, tuple[int, ...]], dict[Value, Any]]:
    state: dict[Value, Any] = {v: random_example(x, 1, v.index) for v, x in zip(graph.inputs, examples, strict=True)}
    shapes: dict[Value, tuple[int, ...]] = {v: tuple(t.shape) for v, t in state.items()}
    numbers: dict[Value, Any] = {}
    last = {v: node for node in graph.nodes if node.output in wanted for v in node.inputs}
    for node in graph.nodes:
        if node.output not in wanted:
            continue
        try:
            made = called(node, state, lambda t: t)
        except Exception as error:
            raise UnliftableError(reason(node, f"it fails for a batch of one: {error}")) from error
        state[node.output] = made
        if isinstance(made, Tensor):
            shapes[node.output] = tuple(made.shape)
        elif not isinstance(made, (tuple, list)):
            numbers[node.output] = made
        for value in node.inputs:
            if last[value] is node:
                state.pop(value, None)
    return shapes, numbers


def commit(graph: Graph, lifter: Lifter, lifted: list[Lifted]) -> None:
    """The lifted graph in the place of the model's own; nodes of other outputs stay as they were."""
    nodes: list[Node] = []
    for entry in lifted:
        if entry.node.output not in {node.output for node in entry.new}:
            nodes.append(entry.node)
        nodes += entry.new
        for node in entry.new:
            node.output.producer = node
    graph.nodes = nodes
    found = {**lifter.twins, **lifter.natural}
    graph.outputs = [lifter.natural.get(v, v) for v in graph.outputs]
    graph.output = lifter.natural.get(graph.output, graph.output)
    graph.modules = {path: found.get(v, v) for path, v in graph.modules.items()}
    graph.drop_dead()
    mark_ids(graph)
