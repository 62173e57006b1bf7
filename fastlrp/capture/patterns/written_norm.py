"""Finds layer, group and instance norms that a model writes out, and makes each the one node that it is.

``(x - mean) / sqrt(var + eps) * weight + bias``, in whichever operations mean and variance are written, over any axes
but that of the batch: with ``eps`` beside the variance or the standard deviation, and with either divisor of the
variance. Operation by operation the mean that is taken away, and the bias, would keep shares.

What is one is proved by its numbers, in float64 at the sizes of the model: they are free of parameters. A norm without
a mean needs no such node, its scale is a gate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastlrp.capture.graph import Constant, Graph, Node, Value, Written, leaves
from fastlrp.capture.patterns.norm_parameters import Affine, affine_of, is_product_with_constant

_ROOTS = {"sqrt", "rsqrt", "std"}
_STATISTICS = {"mean", "sum", "var", "std"}
_MOVES = {"unsqueeze", "squeeze", "view", "reshape", "expand", "expand_as", "flatten", "unflatten", "slice"}
_INSIDE = {"add", "sub", "rsub", "mul", "div", "neg", "pow", "square", "reciprocal"} | _ROOTS | _STATISTICS | _MOVES
_LARGEST = 20
"""Operations of one norm, without its weight and bias."""


@dataclass(frozen=True)
class Core:
    """A norm without weight and bias.

    Attributes:
        x: what is normalised. steps: its operations in order. axes: those over which statistics are taken.
        ratio: the variance's divisor, as a factor of the mean square. eps: beside the variance; beside: the same beside
            its root. weight: a constant that is a factor within.
    """

    x: Value
    steps: tuple[Node, ...]
    axes: tuple[int, ...]
    ratio: float
    eps: float
    beside: float
    weight: Constant | None


def find_written_norms(graph: Graph) -> None:
    """Make one node of the kind ``normalization`` of each, where nothing else reads what is in between."""
    if not any(_is_root(node) for node in graph.nodes):
        return
    readers = graph.consumers()
    position = {node: i for i, node in enumerate(graph.nodes)}
    asked, proofs = {*graph.outputs, *graph.modules.values()}, dict[str, Any]()
    for node in list(graph.nodes):
        if node.operation in ("mul", "div") and node.kind == "mul" and len(node.sources) == 2:
            core = _core_of(node, readers, position, asked, graph.batch or 2, proofs)
            affine = None
            if core is not None:
                affine = affine_of(core.x, core.steps[-1], core.axes, core.weight, readers, asked)
            if core is not None and affine is not None:
                _replace(graph, core, affine)


def _is_root(node: Node) -> bool:
    return node.operation in _ROOTS or (node.operation == "pow" and node.args[1] in (0.5, -0.5))


def _core_of(
    last: Node, readers: Mapping[Value, list[Node]], position: dict[Node, int], asked: set[Value], batch: int,
    proofs: dict[str, Any],
) -> Core | None:  # fmt: skip
    """The norm whose product with the inverse deviation, or quotient by it, is this node.

    Args:
        proofs: of the norms so far, which later ones like them need not repeat.
    """
    y, weight, weighs = last.output, None, None
    inside, frontier = {last}, set(last.inputs)
    while frontier and len(inside) <= _LARGEST:
        if len(frontier) == 1 and len(inside) > 4:
            (x,) = frontier
            steps = tuple(sorted(inside, key=lambda node: position[node]))
            alike = x.shape == y.shape and x.dtype == y.dtype and x.is_differentiable and x.has_batch_first
            if alike and _may_be_one(steps):
                key = _text_of(x, steps, weighs)
                if key not in proofs:
                    proofs[key] = _proved(x, steps, weighs, batch)
                if proofs[key] is not None:
                    axes, ratio, eps, beside = proofs[key]
                    return Core(x, steps, axes, ratio, eps, beside, weight)
        latest = max(frontier, key=lambda v: -1 if v.producer is None else position.get(v.producer, -1))
        node = latest.producer
        if node is None or latest in asked or not latest.is_tensor or latest.dtype != y.dtype:
            return None
        if node.operation not in _INSIDE or node.path != last.path or any(r not in inside for r in readers[latest]):
            return None
        if _of_parameters(node):
            divides = last.operation == "div" and last.args[0] is not latest
            if weight is not None or divides or readers[latest] != [last] or not is_product_with_constant(node):
                return None
            weighs, weight = node, next(arg for arg in node.args if isinstance(arg, Constant))
        inside.add(node)
        frontier = (frontier - {latest}) | set(node.inputs)
    return None


def _of_parameters(node: Node) -> bool:
    constants = [leaf for leaf in leaves((node.args, node.kwargs)) if isinstance(leaf, Constant)]
    return not all(c.is_fixed and torch.as_tensor(c.tensor()).numel() == 1 for c in constants)


def _may_be_one(steps: tuple[Node, ...]) -> bool:
    names = {node.operation for node in steps}
    return bool(names & _STATISTICS) and bool(names & {"sub", "add", "rsub"}) and any(_is_root(n) for n in steps)


def _text_of(x: Value, steps: tuple[Node, ...], weighs: Node | None) -> str:
    """What the numbers of the steps depend on, the same for norms that are alike."""
    names: dict[Any, Any] = {x: "x", **{node.output: i for i, node in enumerate(steps)}}
    for constant in leaves([(node.args, node.kwargs) for node in steps]):
        if isinstance(constant, Constant):
            is_weight = weighs is not None and constant in weighs.args
            names[constant] = tuple(constant.tensor().shape) if is_weight else float(constant.tensor())
    return repr((x.sizes, [(str(n.call), id(n.call), *_filled((n.args, n.kwargs), names)) for n in steps]))


def _proved(
    x: Value, steps: tuple[Node, ...], weighs: Node | None, batch: int
) -> tuple[tuple[int, ...], float, float, float] | None:
    """Axes, ratio, eps and what is beside the root, if the steps are such a norm at every size of its input."""
    random = torch.randn(batch, *x.sizes, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.5

    def result(given: Tensor) -> Tensor:
        return run(steps, {x: given}, lambda c: _as_number(c, steps, weighs))

    try:
        plain = result(random)
        axes = _axes_of(result, random, plain)
        if axes is None:
            return None
        numbers = sorted({0.0, *_numbers(steps)})
        scales = {s for n in numbers if 0 < n < 1 for s in (n**0.5, n)}
        found = [(random, plain), *((scale * random, result(scale * random)) for scale in scales)]
    except Exception:  # Its operations are made for one dtype, device or shape.
        return None
    count = int(torch.tensor([x.shape[axis] for axis in axes]).prod())
    if count < 2:
        return None
    for ratio in (1.0, count / (count - 1)):
        for eps in numbers:
            for beside in numbers:
                if all(_is_norm(given, y, axes, ratio, eps, beside) for given, y in found):
                    return axes, ratio, eps, beside
    return None


def _as_number(constant: Constant, steps: tuple[Node, ...], weighs: Node | None) -> Tensor:
    """A number of the model's code; ones for the weight, which is a factor of the result."""
    tensor = torch.as_tensor(constant.tensor()).detach().cpu()
    return torch.ones_like(tensor) if weighs is not None and constant in weighs.args else tensor


def _axes_of(result: Any, x: Tensor, plain: Tensor) -> tuple[int, ...] | None:
    """The axes along which one entry changes results; None if these are not whole axes of its own sample."""
    other = x.clone()
    other.view(-1)[0] += 1.0
    changed = result(other) != plain
    extent = changed.nonzero().amax(0) if changed.any() else torch.zeros(x.dim(), dtype=torch.int64)
    axes = tuple(axis for axis in range(1, x.dim()) if extent[axis] > 0)
    box = changed[tuple(slice(None) if axis in axes else slice(0, 1) for axis in range(x.dim()))]
    whole = bool(box.all()) and int(changed.sum()) == box.numel()
    return axes if axes and whole and extent[0] == 0 else None


def _is_norm(x: Tensor, y: Tensor, axes: tuple[int, ...], ratio: float, eps: float, beside: float) -> bool:
    """Within 1e-9: between the two divisors of the variance are 5e-7 for a million entries."""
    centred = x - x.mean(axes, keepdim=True)
    sigma = (centred.square().mean(axes, keepdim=True) * ratio + eps).sqrt() + beside
    return bool(torch.allclose(y, centred / sigma, rtol=1e-9, atol=1e-9 * float(y.abs().max())))


def _numbers(steps: tuple[Node, ...]) -> list[float]:
    """What is added somewhere."""
    found = [leaf for n in steps if n.operation == "add" for leaf in leaves((n.args, n.kwargs))]
    numbers = [float(c.tensor()) if isinstance(c, Constant) else c for c in found if not isinstance(c, Value)]
    return [float(n) for n in numbers if isinstance(n, (int, float)) and n > 0]


def run(steps: tuple[Node, ...], table: dict[Value, Any], tensor: Any) -> Tensor:
    """What the last of some operations gives, with ``tensor(constant)`` in the place of a constant."""
    for node in steps:
        constants: dict[Any, Any] = {c: tensor(c) for c in leaves((node.args, node.kwargs)) if isinstance(c, Constant)}
        args, kwargs = _filled((node.args, node.kwargs), {**table, **constants})
        table[node.output] = node.call(*args, **kwargs)
    result: Tensor = table[steps[-1].output]
    return result


def _filled(tree: Any, table: dict[Any, Any]) -> Any:
    if isinstance(tree, (tuple, list)):
        return type(tree)(_filled(item, table) for item in tree)
    if isinstance(tree, dict):
        return {key: _filled(item, table) for key, item in tree.items()}
    return table.get(tree, tree) if isinstance(tree, (Value, Constant)) else tree


class WrittenNorm:
    """A norm in the model's own operations.

    Args:
        order: of the axes of its argument and result, as the model's axes; None if they are the model's.
    """

    def __init__(self, core: Core, affine: Affine, constants: list[Constant], order: tuple[int, ...] | None) -> None:
        self.core, self.affine, self.constants, self.order = core, affine, constants, order

    def __call__(self, x: Tensor, *tensors: Tensor) -> Tensor:
        core, affine = self.core, self.affine
        given = dict(zip(self.constants, tensors, strict=True))
        if self.order is not None:
            x = x.permute([self.order.index(axis) for axis in range(x.dim())])
        rows = x if affine.shape is None else x.reshape(len(x), *core.x.sizes)
        y = run(core.steps, {core.x: rows}, given.__getitem__)
        if affine.shape is not None:
            y = y.reshape(x.shape)
        if affine.steps:
            y = y if affine.conversion is None else y.to(affine.before.dtype)
            y = run(affine.steps, {affine.before: y}, given.__getitem__).to(x.dtype)
        return y if self.order is None else y.permute(self.order)


def _replace(graph: Graph, core: Core, affine: Affine) -> None:
    steps = (*core.steps, *affine.moves, *affine.steps)
    last, x = steps[-1], affine.x
    found = [leaf for node in (*core.steps, *affine.steps) for leaf in leaves((node.args, node.kwargs))]
    constants = list(dict.fromkeys(leaf for leaf in found if isinstance(leaf, Constant)))
    order = None
    if affine.groups is None and core.axes != tuple(range(len(x.shape) - len(core.axes), len(x.shape))):
        order = (*(axis for axis in range(len(x.shape)) if axis not in core.axes), *core.axes)
    attributes: dict[str, Any] = {"eps": core.eps, "weight": affine.weight, "bias": affine.bias}
    if core.ratio != 1 or core.beside:
        attributes |= {"ratio": core.ratio, "beside": core.beside}
    if affine.groups is None:
        operation, attributes["normalized_shape"] = "layer_norm", [x.shape[axis] for axis in core.axes]
    else:
        operation, attributes["num_groups"] = "group_norm", affine.groups
    call, at, new = WrittenNorm(core, affine, constants, order), graph.nodes.index(last), list[Node]()
    result, conversion = last.output, affine.conversion
    if conversion is not None:
        result = graph.new_value(f"{result.name}_{x.dtype}", result.shape, x.dtype)

    def node(kind: str, name: str, function: Any, args: tuple[Any, ...], output: Value) -> Node:
        made = Node(kind, name, function, args, {}, (args[0],), output, last.path, last.module_type)
        output.producer = made
        new.append(made)
        return made

    if order is None:
        made = node("normalization", operation, call, (x, *constants), result)
    else:
        permute, sizes = torch.ops.aten.permute.default, tuple(x.shape[axis] for axis in order)
        first, second = (graph.new_value(f"{last.output.name}_{part}", sizes, x.dtype) for part in ("rows", "normed"))
        node("move", "permute", permute, (x, list(order)), first)
        made = node("normalization", operation, call, (first, *constants), second)
        node("move", "permute", permute, (second, [order.index(axis) for axis in range(len(order))]), result)
    if conversion is not None:
        node("move", conversion.operation, conversion.call, (result, *conversion.args[1:]), last.output)
        new[-1].kwargs = conversion.kwargs
    made.attributes = attributes
    part = (operation, "normalization")
    graph.written += [Written(n.operation, n.path, n.module_type, (part,)) for n in steps]
    graph.nodes[at : at + 1] = new
    gone = set(steps)
    graph.nodes = [other for other in graph.nodes if other not in gone]
