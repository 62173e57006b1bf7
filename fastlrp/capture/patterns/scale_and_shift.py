"""Finds what a model does to a layer's channels by constants: a bias that it adds itself, a batch norm written out.

``x @ W + b``, ``conv(x) * scale + shift``, ``(conv(x) - mean) / (var + eps).sqrt() * weight + bias`` are affine layers
as any other. The chain of products and sums becomes one node of the kind ``batch_norm``, merged into the layer. A
product without a constant that is added stays one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fastlrp.capture.graph import Constant, Graph, Node, Value, Written

OPERATION = "scale_and_shift"
"""Name of the node that such a chain becomes."""

_SUMS = ("add", "sub", "rsub")


def find_scale_and_shift(graph: Graph, readers: Mapping[Value, list[Node]]) -> None:
    """Make one batch norm of each such chain; ``readers``: who reads entries of each value."""
    outputs = set(graph.outputs)
    for layer in list(graph.nodes):
        if layer.kind not in ("conv", "linear"):
            continue
        axis = 1 if layer.kind == "conv" else len(layer.output.shape) - 1
        if not isinstance(layer.output.shape[axis], int):
            continue
        chain, value = list[Node](), layer.output
        while value not in outputs and len(found := readers.get(value, [])) == 1:
            if not _is_constant_map(found[0], value, axis) or (
                graph.batch is not None and _may_be_of_samples(found[0])
            ):
                break
            chain.append(found[0])
            value = found[0].output
        if any(node.operation in _SUMS for node in chain):
            _replace(graph, layer, chain, axis)


def _is_constant_map(node: Node, x: Value, axis: int) -> bool:
    """Whether it multiplies each channel of ``x`` by a constant, adds one, or both."""
    if len(node.inputs) != 1 or node.inputs[0] is not x or node.output.shape != x.shape or node.output.dtype != x.dtype:
        return False
    if node.kind == "batch_norm":
        return axis == 1
    if node.operation not in (*_SUMS, "mul", "div", "neg") or node.kind not in ("add", "mul"):
        return False
    if node.operation == "div" and node.args[0] is not x:
        return False
    given = _operands(node)
    others = [arg for arg in given if arg is not x]
    # Of ``h * h`` and ``h + h`` both are the layer's output.
    return len(others) == len(given) - 1 and all(_per_channel(other, x, axis) is not None for other in others)


def _operands(node: Node) -> list[Any]:
    """Summands or factors: a difference may have a number beside them."""
    return [v for v, _ in node.attributes["terms"]] if node.kind == "add" else list(node.attributes["operands"])


def _may_be_of_samples(node: Node) -> bool:
    """Whether a constant has an axis where the samples stand: made for one batch size it may differ between them."""
    rank = len(node.output.shape)
    constants = [arg for arg in node.args if isinstance(arg, Constant)]
    return any(torch.as_tensor(constant.tensor()).dim() >= rank for constant in constants)


def _per_channel(constant: Any, x: Value, axis: int) -> Callable[[], Tensor] | None:
    """One number for each channel, or for all, in float64; None if it is something else."""
    if isinstance(constant, (int, float)):
        return lambda: torch.tensor(float(constant), dtype=torch.float64)
    if not isinstance(constant, Constant):
        return None
    shape = tuple(torch.as_tensor(constant.tensor()).shape)  # A weight's item() is a number.
    behind = len(x.shape) - axis
    is_channels = len(shape) >= behind and shape[-behind] == x.shape[axis]
    if any(n != 1 for i, n in enumerate(shape) if not (is_channels and i == len(shape) - behind)):
        return None
    return lambda: torch.as_tensor(constant.tensor()).to(torch.float64).reshape(-1)


def _replace(graph: Graph, layer: Node, chain: list[Node], axis: int) -> None:
    x, last = layer.output, chain[-1]
    steps = [(node.call, node.args, node.kwargs, node.inputs[0]) for node in chain]
    constants = [arg for node in chain for arg in node.args if isinstance(arg, Constant)]
    channels = int(x.shape[axis] or 0)

    def whole(x: Tensor, *tensors: Tensor) -> Tensor:
        rest = iter(tensors)
        for call, args, kwargs, value in steps:
            given = [x if arg is value else next(rest) if isinstance(arg, Constant) else arg for arg in args]
            x = call(*given, **kwargs)
        return x

    def of(part: int) -> Callable[[], Tensor]:
        def number() -> Tensor:
            like = layer.attributes["weight"].tensor()
            scale, shift = _composed(chain, x, axis)
            return (scale, shift)[part].expand(channels).to(like)

        return number

    zero = Constant(f"{layer.output.name} zeros", lambda: _full(layer, channels, 0.0))
    one = Constant(f"{layer.output.name} ones", lambda: _full(layer, channels, 1.0))
    node = Node("batch_norm", OPERATION, whole, (x, *constants), {}, (x,), last.output, last.path, last.module_type)
    node.attributes = {
        "weight": Constant(f"{last.output.name} scale", of(0)), "bias": Constant(f"{last.output.name} shift", of(1)),
        "running_mean": zero, "running_var": one, "eps": 0.0, "axis": axis,
    }  # fmt: skip
    within = {other.output for other in chain[:-1]}
    graph.written += [Written(n.operation, n.path, n.module_type, ((layer.operation, layer.kind),)) for n in chain]
    graph.modules = {path: last.output if v in within else v for path, v in graph.modules.items()}
    graph.nodes[graph.nodes.index(last)] = node
    graph.nodes = [other for other in graph.nodes if other not in chain]
    last.output.producer = node


def _full(layer: Node, channels: int, number: float) -> Tensor:
    like: Tensor = layer.attributes["weight"].tensor()
    return like.new_full((channels,), number)


def _composed(chain: list[Node], x: Value, axis: int) -> tuple[Tensor, Tensor]:
    """Scale and shift of all of them, one after the other, in float64."""
    scale, shift = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    for node in chain:
        if node.kind == "batch_norm":
            factor, summand = _of_batch_norm(node)
        else:
            factor, summand = _of_operation(node, x, axis)
        factor, summand = factor.to(scale.device), summand.to(scale.device)
        scale, shift = scale * factor, shift * factor + summand
        x = node.output
    return scale, shift


def _of_operation(node: Node, x: Value, axis: int) -> tuple[Tensor, Tensor]:
    others = [_per_channel(arg, x, axis) for arg in _operands(node) if arg is not x]
    numbers = [other() for other in others if other is not None]
    one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    if node.operation == "neg":
        return -one, zero
    if node.operation in ("mul", "div"):
        return (numbers[0] if node.operation == "mul" else 1 / numbers[0]), zero
    (first, of_first), (_, of_second) = node.attributes["terms"]
    of_x, of_other = (of_first, of_second) if first is x else (of_second, of_first)
    return one * float(of_x), numbers[0] * float(of_other)


def _of_batch_norm(node: Node) -> tuple[Tensor, Tensor]:
    a = node.attributes
    mean, var = (a[key].tensor().double() for key in ("running_mean", "running_var"))
    scale = (var + a["eps"]).rsqrt() * (1.0 if a["weight"] is None else a["weight"].tensor().double())
    return scale, (0.0 if a["bias"] is None else a["bias"].tensor().double()) - mean * scale
