"""Activations that a model spells out, such as ``0.5 x (1 + tanh(…))``, as one operation each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastlrp.capture.graph import Constant, Graph, Node, Value, Written, leaves, substitute, with_tensors

_ELEMENTWISE = {
    "add", "sub", "rsub", "mul", "div", "neg", "pow", "square", "exp", "tanh", "sigmoid", "erf", "softplus", "sqrt",
    "abs", "reciprocal", "log", "log1p", "expm1", "hardsigmoid", "clamp", "hardtanh", "relu6", "relu",
}  # fmt: skip
_BENDS = {"tanh", "sigmoid", "erf", "softplus", "exp", "hardsigmoid", "clamp", "hardtanh", "relu6", "relu"}
_GATES = {"sigmoid", "hardsigmoid"}
_LARGEST = 16
"""Operations of one activation."""


def compose_activations(graph: Graph) -> None:
    """A product of two functions of one value, entry by entry, becomes one node of the kind ``activation``.

    ``0.5 x (1 + tanh(0.8 (x + 0.04 x^3)))`` (GELU as GPT-2 has it) and ``x (1 + erf(x / 1.4))`` are products of two
    activations in form; in truth they are functions of ``x`` alone, to which all relevance goes. Only where nothing
    else reads what is in between. A product with a gate (``x sigmoid(1.7 x)``) stays one: there the signal takes all
    already.
    """
    gone: set[Node] = set()  # Products within an activation that a later product stands for by now.
    for product in reversed(list(graph.nodes)):
        if product in gone or product.operation != "mul" or product.kind != "mul" or len(product.sources) != 2:
            continue
        if any(v.producer is not None and v.producer.operation in _GATES for v in product.sources):
            continue
        found = _function_of_one(graph, product)
        if found is not None:
            _replace(graph, product, *found)
            gone.update(found[1])


def _function_of_one(graph: Graph, product: Node) -> tuple[Value, list[Node]] | None:
    """The value that the product is a function of, and the operations from there to it, in order."""
    consumers, position = graph.consumers(), {node: i for i, node in enumerate(graph.nodes)}
    inside, frontier = {product}, set(product.inputs)
    while len(frontier) > 1:
        if len(inside) > _LARGEST:
            return None
        latest = max(frontier, key=lambda v: -1 if v.producer is None else position[v.producer])
        node = latest.producer
        if node is None or latest in graph.outputs or not _is_elementwise(node, product):
            return None
        if any(reader not in inside for reader in consumers[latest]):
            return None
        inside.add(node)
        frontier = (frontier - {latest}) | set(node.inputs)
    (root,) = frontier
    ordered = sorted(inside, key=lambda node: position[node])
    alike = root.shape == product.output.shape and root.dtype == product.output.dtype
    return (root, ordered) if alike and any(node.operation in _BENDS for node in ordered) else None


def _is_elementwise(node: Node, product: Node) -> bool:
    y = product.output
    same = node.output.shape == y.shape and node.output.dtype == y.dtype and node.output.is_differentiable
    constants = [leaf for leaf in leaves((node.args, node.kwargs)) if isinstance(leaf, Constant)]
    plain = all(constant.tensor().numel() == 1 for constant in constants)
    return node.operation in _ELEMENTWISE and same and plain and all(v.shape == y.shape for v in node.inputs)


def _replace(graph: Graph, product: Node, root: Value, nodes: list[Node]) -> None:
    gone = {node for node in nodes if node is not product}
    steps = [(node.call, node.args, node.kwargs, node.output) for node in nodes]

    def composed(x: Tensor) -> Tensor:
        table: dict[Value, Any] = {root: x}
        for call, args, kwargs, output in steps:
            table[output] = call(*substitute(with_tensors(args), table), **substitute(with_tensors(kwargs), table))
        result: Tensor = table[steps[-1][3]]
        return result

    fixed = not any(isinstance(leaf, Constant) for _, args, kwargs, _ in steps for leaf in leaves((args, kwargs)))
    part = ("composed_activation", "activation")
    graph.written += [Written(node.operation, node.path, node.module_type, (part,)) for node in nodes]
    call = (_one_pass(composed) if fixed else None) or composed
    product.kind, product.operation, product.call = "activation", "composed_activation", call
    product.args, product.kwargs, product.inputs = (root,), {}, (root,)
    product.attributes = {"low": None, "parameters": {}, "unread": ()}
    graph.nodes = [node for node in graph.nodes if node not in gone]
    graph.modules = {path: v for path, v in graph.modules.items() if v.producer not in gone}


def _one_pass(composed: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor] | None:
    """PyTorch's own operation for the same function, which reads its operand once; None if there is none.

    The GELU of GPT-2 is eight operations as written. Compared in float64 at 97 places from -12 to 12.
    """
    places = torch.linspace(-12, 12, 97, dtype=torch.float64)
    try:
        found = composed(places)
    except Exception:  # It is made for one dtype or shape.
        return None
    same = (call for call in _ONE_PASS if torch.allclose(call(places), found, rtol=1e-12, atol=1e-14))
    return next(same, None)


def _gelu_by_tanh(x: Tensor) -> Tensor:
    return torch.nn.functional.gelu(x, approximate="tanh")


_ONE_PASS: tuple[Callable[[Tensor], Tensor], ...] = (_gelu_by_tanh, torch.nn.functional.gelu)
