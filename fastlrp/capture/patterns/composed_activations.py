"""Activations that a model spells out, ``0.5 x (1 + tanh(…))`` or ``1 / (1 + exp(-x))``, as one operation each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fastlrp.capture.graph import Constant, Graph, Node, Value, Written, leaves, substitute, with_tensors

_COMPARISONS = {"gt", "ge", "lt", "le"}
_ELEMENTWISE = {
    "add", "sub", "rsub", "mul", "div", "neg", "pow", "square", "exp", "tanh", "sigmoid", "erf", "softplus", "sqrt",
    "abs", "reciprocal", "log", "log1p", "expm1", "hardsigmoid", "clamp", "hardtanh", "relu6", "relu", "clamp_min",
    "clamp_max", "log_sigmoid", "silu", "elu", "maximum", "minimum", "fmax", "fmin", "where", "sign", *_COMPARISONS,
}  # fmt: skip
_BENDS = {
    "tanh", "sigmoid", "erf", "softplus", "exp", "hardsigmoid", "clamp", "hardtanh", "relu6", "relu", "clamp_min",
    "clamp_max", "log_sigmoid", "silu", "elu", "expm1", "abs", "sign", "maximum", "minimum", "fmax", "fmin", "where",
}  # fmt: skip
_LARGEST = 16
"""Operations of one activation."""


def compose_activations(graph: Graph) -> None:
    """Functions of one value, entry by entry, that a model spells out become one node of the kind ``activation``.

    Only where nothing else reads what is in between. These are:

    - a product of two functions of one value. ``0.5 x (1 + tanh(0.8 (x + 0.04 x^3)))`` (GELU as GPT-2 has it),
      ``x (1 + erf(x / 1.4))`` and ``x sigmoid(1.7 x)`` are products of two activations in form; in truth they are
      functions of ``x`` alone, to which all relevance goes.
    - a function that PyTorch has. ``1 / (1 + exp(-x))`` is a sigmoid, ``relu6(x + 3) / 6`` a hard sigmoid: operation
      by operation their constants would keep a share, and a gate would be none.
    """
    gone: set[Node] = set()  # Nodes within an activation that a later one stands for by now.
    readers, position = _places(graph)
    for node in reversed(list(graph.nodes)):
        if node in gone or node.operation not in _ELEMENTWISE or not node.output.is_differentiable:
            continue
        is_product = node.operation == "mul" and node.kind == "mul" and len(node.sources) == 2
        found = _function_of_one(graph, node, is_product, readers, position)
        if found is not None:
            _replace(graph, node, *found, is_product)
            gone.update(found[1])
            readers, position = _places(graph)


def _places(graph: Graph) -> tuple[dict[Value, list[Node]], dict[Node, int]]:
    return graph.consumers(), {node: i for i, node in enumerate(graph.nodes)}


def _function_of_one(
    graph: Graph, last: Node, is_product: bool, readers: dict[Value, list[Node]], position: dict[Node, int]
) -> tuple[Value, list[Node]] | None:
    """The value that the node's result is a function of, and the operations from there to it, in order.

    Of a product the nearest such value; otherwise the nearest of which it is a function that PyTorch has.
    """
    if not _is_elementwise(last, last):
        return None
    inside, frontier = {last}, {v for v in last.inputs if v.is_tensor}
    while frontier and len(inside) <= _LARGEST:
        if len(frontier) == 1 and (is_product or len(inside) > 1):
            (root,) = frontier
            ordered = sorted(inside, key=lambda node: position[node])
            alike = root.shape == last.output.shape and root.dtype == last.output.dtype and root.is_differentiable
            bends = any(node.operation in _BENDS for node in ordered)
            if is_product:
                return (root, ordered) if alike and bends else None
            known = _known(_composed(root, ordered)) if alike and bends and _are_fixed(ordered) else None
            if known is not None and not any(n.operation == known[0] and n.inputs[0] is root for n in ordered):
                return root, ordered  # Not ``relu(x) + 0``, as sum() begins.
        latest = max(frontier, key=lambda v: -1 if v.producer is None else position.get(v.producer, -1))
        node = latest.producer
        if node is None or latest in graph.outputs or not _is_elementwise(node, last):
            return None
        if any(reader not in inside for reader in readers[latest]):
            return None
        inside.add(node)
        frontier = (frontier - {latest}) | set(node.inputs)
    return None


def _is_elementwise(node: Node, last: Node) -> bool:
    y = last.output
    same = node.output.shape == y.shape and (
        node.output.dtype == torch.bool
        if node.operation in _COMPARISONS
        else node.output.dtype == y.dtype and node.output.is_differentiable
    )
    constants = [leaf for leaf in leaves((node.args, node.kwargs)) if isinstance(leaf, Constant)]
    plain = all(torch.as_tensor(constant.tensor()).numel() == 1 for constant in constants)
    return node.operation in _ELEMENTWISE and same and plain and all(v.shape == y.shape for v in node.inputs)


def _composed(root: Value, nodes: list[Node]) -> Callable[[Tensor], Tensor]:
    steps = [(node.call, node.args, node.kwargs, node.output) for node in nodes]

    def composed(x: Tensor) -> Tensor:
        table: dict[Value, Any] = {root: x}
        for call, args, kwargs, output in steps:
            table[output] = call(*substitute(with_tensors(args), table), **substitute(with_tensors(kwargs), table))
        result: Tensor = table[steps[-1][3]]
        return result

    return composed


def _are_fixed(nodes: list[Node]) -> bool:
    """Whether no parameter is in it, with which it would be another function after training."""
    found = [leaf for node in nodes for leaf in leaves((node.args, node.kwargs)) if isinstance(leaf, Constant)]
    return all(constant.is_fixed for constant in found)


def _replace(graph: Graph, last: Node, root: Value, nodes: list[Node], is_product: bool) -> None:
    gone = {node for node in nodes if node is not last}
    composed = _composed(root, nodes)
    known = _known(composed) if _are_fixed(nodes) else None
    # A function that a model spells out keeps its own numbers, where it overflows for example.
    call = known[1] if known is not None and known[0] == "gelu" else composed
    operation = "composed_activation" if is_product or known is None else known[0]
    part = (operation, "activation")
    graph.written += [Written(node.operation, node.path, node.module_type, (part,)) for node in nodes]
    last.kind, last.operation, last.call = "activation", operation, call
    last.args, last.kwargs, last.inputs = (root,), {}, (root,)
    last.attributes = {"low": None, "parameters": {}, "unread": ()}
    graph.nodes = [node for node in graph.nodes if node not in gone]
    graph.modules = {path: v for path, v in graph.modules.items() if v.producer not in gone}


def _known(composed: Callable[[Tensor], Tensor]) -> tuple[str, Callable[[Tensor], Tensor]] | None:
    """PyTorch's own operation for the same function; None if there is none.

    Compared in float64 at 97 places from -12 to 12, where ``log(1 + exp(x))`` is exact to 2e-11.
    """
    places = torch.linspace(-12, 12, 97, dtype=torch.float64)
    try:
        found = composed(places).reshape(-1)
    except Exception:  # It is made for one dtype or shape.
        return None
    if found.shape != places.shape or found.dtype != places.dtype:
        return None
    same = (known for known in _KNOWN if torch.allclose(known[1](places), found, rtol=1e-9, atol=1e-13))
    return next(same, None)


def _gelu_by_tanh(x: Tensor) -> Tensor:
    return functional.gelu(x, approximate="tanh")


_KNOWN: tuple[tuple[str, Callable[[Tensor], Tensor]], ...] = (
    ("gelu", _gelu_by_tanh), ("gelu", functional.gelu), ("sigmoid", torch.sigmoid), ("tanh", torch.tanh),
    ("silu", functional.silu), ("softplus", functional.softplus), ("relu", torch.relu), ("relu6", functional.relu6),
    ("elu", functional.elu), ("hardsigmoid", functional.hardsigmoid), ("hardswish", functional.hardswish),
    ("hardtanh", functional.hardtanh), ("log_sigmoid", functional.logsigmoid), ("mish", functional.mish),
    ("softsign", functional.softsign), ("abs", torch.abs),
)  # fmt: skip
