"""Finds linear layers that a model spells otherwise, and makes them layers with a weight.

``einsum("...i,oi->...o", x, W)``, ``tensordot(x, W, ([-1], [1]))``, ``inner(x, W)``, ``W @ x[..., None]``, ``bmm`` with
one matrix for all samples, ``(x[..., None, :] * W).sum(-1)``: a constant of two axes, one of which is summed up with
the last axis of ``x``. Over another axis, or with more axes, such a product stays a linear map.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastlrp.capture.arguments import bind
from fastlrp.capture.graph import Constant, Graph, Node, Value, Written, derived

_PRODUCTS = ("matmul", "mm", "bmm")
_IN_ORDER = ("squeeze", "unsqueeze", "view", "reshape", "flatten", "unflatten", "select", "slice", "_unsafe_view")


@dataclass(frozen=True)
class Layer:
    """A linear layer in another form.

    Attributes:
        x: its input. matrix: ``(O, I)``, or ``(I, O)`` if ``transposed``.
        single: axis of ``x`` of size 1 beside that of its entries, -1 or -2; None if there is none.
        steps: operations that it stands for. keeps: whether the result has the axis of size 1, too.
    """

    x: Value
    matrix: Constant
    steps: tuple[Node, ...]
    transposed: bool = False
    single: int | None = None
    keeps: bool = False


def find_written_linear(graph: Graph) -> None:
    """Give each of these the kind ``linear``."""
    for node in list(graph.nodes):
        if node.kind != "linear_map" or not node.output.has_batch_first or len(node.sources) != 1:
            continue
        layer = None
        if node.operation in ("einsum", "tensordot", "inner", *_PRODUCTS):
            layer = _of_product(node)
        elif node.operation == "sum":
            layer = _of_sum(graph, node)
        if layer is not None and layer.x.has_batch_first and layer.x.is_differentiable:
            _replace(graph, node, layer)
    _without_single_axes(graph)


def _of_product(node: Node) -> Layer | None:
    a = bind(node.call, node.args, node.kwargs)
    if node.operation == "einsum":
        return _of_einsum(node, a["equation"].replace(" ", ""), a["tensors"]) if a else None
    x, weight = node.args[:2]
    if node.operation in _PRODUCTS:
        return _of_matrix_product(node, x, weight)
    if not isinstance(x, Value) or not _is_matrix(weight) or len(x.shape) < 2:
        return None
    if node.operation == "inner":
        return Layer(x, weight, (node,))
    of_x, of_weight = a["dims_self"], a["dims_other"]
    if len(of_x) != 1 or len(of_weight) != 1 or of_x[0] % len(x.shape) != len(x.shape) - 1:
        return None
    return Layer(x, weight, (node,), transposed=of_weight[0] % 2 == 0)


def _of_einsum(node: Node, equation: str, operands: Any) -> Layer | None:
    left, _, right = equation.partition("->")
    terms = left.split(",")
    if len(terms) != 2 or not right:
        return None
    pairs = list(zip(operands, terms, strict=True))
    for (x, of_x), (weight, of_weight) in (pairs, pairs[::-1]):
        if not isinstance(x, Value) or not _is_matrix(weight) or len(of_weight) != 2 or len(x.shape) < 2:
            continue
        summed = of_x[-1]
        made = of_weight.replace(summed, "")
        if len(made) == 1 and made not in of_x and of_x.count(summed) == 1 and right == of_x[:-1] + made:
            return Layer(x, weight, (node,), transposed=of_weight[0] == summed)
    return None


def _of_matrix_product(node: Node, first: Any, second: Any) -> Layer | None:
    """``W @ x`` with one column, or ``x @ M`` with one matrix for all samples."""
    matrix = _matrix_of(first)
    if matrix is not None and isinstance(second, Value) and len(second.shape) > 2 and second.shape[-1] == 1:
        return Layer(second, matrix, (node,), single=-1, keeps=True)
    matrix = _matrix_of(second)
    if matrix is not None and isinstance(first, Value) and len(first.shape) > 2:
        return Layer(first, matrix, (node,), transposed=True)
    return None


def _matrix_of(operand: Any) -> Constant | None:
    """A constant of two axes, or the one that is copied for all samples."""
    while isinstance(operand, Value) and not operand.depends and operand.producer is not None:
        if operand.producer.operation not in ("expand", "unsqueeze"):
            return None
        operand = operand.producer.args[0]
    if isinstance(operand, Constant):
        tensor = torch.as_tensor(operand.tensor())
        if tensor.dim() == 3 and tensor.is_floating_point() and (len(tensor) == 1 or tensor.stride(0) == 0):
            return derived(operand, lambda t: t[0])
    return operand if _is_matrix(operand) else None


def _of_sum(graph: Graph, node: Node) -> Layer | None:
    """``(x[..., None, :] * W).sum(-1)`` and ``(x[..., None] * M).sum(-2)``."""
    product, axes = node.args[0], node.args[1] if len(node.args) > 1 else None
    made = product.producer if isinstance(product, Value) else None
    if made is None or made.operation != "mul" or len(made.args) != 2 or node.kwargs or len(node.args) != 2:
        return None
    x, matrix = made.args if isinstance(made.args[0], Value) else made.args[::-1]
    rank, places = len(product.shape), [axes] if isinstance(axes, int) else list(axes or ())
    if not isinstance(x, Value) or not _is_matrix(matrix) or len(places) != 1 or rank < 3 or rank != len(x.shape):
        return None
    transposed = places[0] % rank == rank - 2
    if not transposed and places[0] % rank != rank - 1:
        return None
    single = -1 if transposed else -2
    sizes = tuple(torch.as_tensor(matrix.tensor()).shape)
    is_whole = product.shape[-2:] == sizes and x.shape[single] == 1 and x.shape[:-2] == product.shape[:-2]
    alone = [n for n in graph.nodes if product in n.inputs] == [node]
    if not (is_whole and alone) or product in graph.outputs or product in graph.modules.values():
        return None
    return Layer(x, matrix, (made, node), transposed, single)


def _is_matrix(constant: Any) -> bool:
    if not isinstance(constant, Constant):
        return False
    tensor = torch.as_tensor(constant.tensor())
    return tensor.dim() == 2 and tensor.is_floating_point()


def _replace(graph: Graph, node: Node, layer: Layer) -> None:
    x, y, aten, new = layer.x, node.output, torch.ops.aten, list[Node]()
    weight = derived(layer.matrix, Tensor.t) if layer.transposed else layer.matrix

    def add(kind: str, name: str, call: Any, args: tuple[Any, ...], output: Value) -> Node:
        made = Node(kind, name, call, args, {}, (args[0],), output, node.path, node.module_type)
        output.producer = made
        new.append(made)
        return made

    if layer.single is not None:
        kept = x.shape[:-1] if layer.single == -1 else (*x.shape[:-2], x.shape[-1])
        row = graph.new_value(f"{x.name}_row", kept, x.dtype)
        add("move", "squeeze", aten.squeeze.dim, (x, len(x.shape) + layer.single), row)
        x = row
    result = graph.new_value(f"{y.name}_row", y.shape[:-1], y.dtype) if layer.keeps else y
    made = add("linear", "linear", aten.linear.default, (x, weight, None), result)
    made.attributes = {"weight": weight, "bias": None}
    if layer.keeps:
        add("move", "unsqueeze", aten.unsqueeze.default, (result, len(result.shape)), y)
    graph.written += [Written(n.operation, n.path, n.module_type, (("linear", "linear"),)) for n in layer.steps]
    at = graph.nodes.index(node)
    graph.nodes[at : at + 1] = new
    graph.nodes = [other for other in graph.nodes if other not in layer.steps]


def _without_single_axes(graph: Graph) -> None:
    """Let a layer read rows as they were before axes of size 1 came and went, which a bias stands behind."""
    readers, asked = graph.consumers(), {*graph.outputs, *graph.modules.values()}
    for node in [n for n in graph.nodes if n.kind == "linear" and n.operation in ("linear", *_PRODUCTS)]:
        y = node.output
        if node.inputs != (node.args[0],) or y in asked or node.operation == "bmm":
            continue
        before, after, value = [node.inputs[0]], list[Node](), y
        while (made := before[-1].producer) is not None and _is_of_single_axes(made) and made.carried is not None:
            before.append(made.carried)
        while value not in asked and len(found := readers.get(value, [])) == 1 and _is_of_single_axes(found[0]):
            after.append(found[0])
            value = found[0].output
        fitting = ((x, i) for i, move in enumerate(after) for x in before if _is_of_row(x, move.output, node))
        x, last = next(fitting, (None, 0))
        if x is None:
            continue
        gone = after[: last + 1]
        node.args, node.inputs, node.output = (x, *node.args[1:]), (x,), gone[-1].output
        node.output.producer = node
        graph.nodes = [other for other in graph.nodes if other not in gone]


def _is_of_single_axes(node: Node) -> bool:
    """Whether it takes axes of size 1 away, or puts some in, and nothing else."""
    x, y = node.carried, node.output
    if node.kind != "move" or node.operation not in _IN_ORDER or x is None or x.dtype != y.dtype:
        return False
    alike = [n for n in x.shape if n != 1] == [n for n in y.shape if n != 1]
    return alike and x.has_batch_first and y.has_batch_first


def _is_of_row(x: Value, y: Value, node: Node) -> bool:
    ends = x.shape[-1] == node.inputs[0].shape[-1] and y.shape[-1] == node.output.shape[-1]
    return ends and len(x.shape) > 1 and x.shape[:-1] == y.shape[:-1]
