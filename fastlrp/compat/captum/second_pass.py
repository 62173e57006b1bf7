"""Gradients of functional code as Captum takes them: in a second forward pass, under the changed weights.

Captum computes the explained score, changes the weights as the rules ask, and runs the model again to get its
gradients. In that pass every layer with a rule gets the inputs that it had in the first one; but what functional code
computes from a changed layer's output is other than before: other ReLUs are open, other entries win a pool. What is
linear does not notice, and neither do layers. Everything else is lowered here.

The inputs are given again by writing them into the tensor that the layer reads. Functional code that reads the same
tensor later sees them, and so does the derivative of code that read it before, if autograd kept that input for it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fastlrp.capture.bind import bind_forward
from fastlrp.capture.graph import Graph, Node, Value
from fastlrp.compat.captum.graph import TIMES, before, layer_of
from fastlrp.compat.captum.rules import Asked
from fastlrp.errors import UnsupportedOperationError
from fastlrp.kinds.jacobian import transpose_beside, transpose_from
from fastlrp.kinds.max_pool import max_pool_form, max_pool_forward
from fastlrp.plan.builder import Builder
from fastlrp.plan.steps import Factor, Flow

_LINEAR = (
    "add", "aggregate", "cat", "move", "identity", "detached", "write", "conv", "linear", "batch_norm", "linear_map",
    "avg_pool", "adaptive_avg_pool", "embedding", "embedding_bag",
)  # fmt: skip
"""Kinds whose derivative is the same everywhere, but for masks and indices that they read."""

_BY_RESULT = (
    "relu", "sigmoid", "tanh", "softmax", "log_softmax", "exp", "expm1", "sqrt", "rsqrt", "reciprocal",
    "max_pool1d", "max_pool2d", "max_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d",
    "max", "min", "topk", "sort", "median", "nanmedian", "mode", "kthvalue", "cummax", "cummin",
)  # fmt: skip
"""Operations whose derivative autograd takes from what they computed, not from their input."""

_RULED = ("epsilon", "gamma", "alpha1_beta0", "identity")
"""Layers that Captum gives their first inputs again."""


def changed_forward(module: nn.Module, asked: Asked, *inputs: Tensor) -> Tensor:
    """A layer's output under the weight that its rule sees."""
    weight, bias = module.weight, getattr(module, "bias", None)
    assert isinstance(weight, Tensor)
    changed = {"weight": asked.weight(weight.detach())}
    if asked.zero_bias and isinstance(bias, Tensor):
        changed["bias"] = torch.zeros_like(bias)
    z: Tensor = torch.func.functional_call(module, changed, inputs)
    return z


def changes(module: nn.Module, asked: Asked) -> bool:
    """Whether a layer's rule changes its weight."""
    return asked.changes_weights and isinstance(getattr(module, "weight", None), Tensor)


class SecondPass:
    """Where the values of the second forward pass lie, made as they are asked for.

    Args:
        graph: by modules. asked, modules: what is asked of each layer, by path, and the layers.
    """

    def __init__(self, graph: Graph, asked: Mapping[str, Asked], modules: Mapping[str, nn.Module]) -> None:
        self._asked, self._modules = asked, modules
        self._changed = {path for path, a in asked.items() if changes(modules[path], a)}
        self._order = {node: i for i, node in enumerate(graph.nodes)}
        self._ends = {v: path.split("@")[0] for path, v in graph.modules.items() if path.split("@")[0] in self._changed}
        self._reset: dict[Value, int] = {}
        """When a layer with a rule first reads a tensor: from then on it has its first values again."""
        if self._changed:
            self._find_resets(graph)
        self._made: dict[Value, int] = {}

    def _find_resets(self, graph: Graph) -> None:
        for path, value in graph.modules.items():  # A dropout reads the tensor that it stands at, and no node does so.
            made, path = value.producer, path.split("@")[0]
            if made is not None and path != layer_of(made) and path in self._asked and self._asked[path].given_again:
                self._reset[value] = self._order[made]
        for node in graph.nodes:
            if self._is_given_again(node):
                for value in node.inputs:
                    self._reset.setdefault(value, self._order[node])

    def _is_given_again(self, node: Node) -> bool:
        """True for a layer that has the inputs of the first pass in the second."""
        asked = self._asked.get(layer_of(node))
        return asked is not None and (asked.name in _RULED or asked.given_again)

    def lower(self, b: Builder, node: Node, flow: Flow) -> bool:
        """Lower functional code whose inputs are not those of the first pass. False if they are."""
        if not self._changed or node.operation == TIMES or node.path in self._asked or self._is_given_again(node):
            return False
        # What is kept of an input is read in the backward pass, when all layers have written theirs.
        when = self._order[node] if node.operation in _BY_RESULT else len(self._order)
        matters = [value for value in node.inputs if node.kind not in _LINEAR or value not in node.sources]
        if all(self._slot(b, value, when) == value.index for value in matters):
            return False
        if node.kind == "custom_backward":
            raise UnsupportedOperationError(
                f"{node}: its backward stands behind a layer with GammaRule or Alpha1_Beta0_Rule, where Captum calls "
                "it in a second forward pass at other values than the model's. Attach EpsilonRule to those layers"
            )
        slots = [self._slot(b, value, when) for value in node.inputs]
        b.begin(node, "Gradient(), second pass")
        if node.kind == "max_pool":
            _lower_max(b, node, flow, slots[0])
        elif node.kind == "activation" and "softmax" not in node.operation:
            _lower_elementwise(b, node, flow, slots[0])
        else:
            _lower_any(b, node, flow, slots)
        return True

    def _slot(self, b: Builder, value: Value, reader: int) -> int:
        """The slot of what a node of that place in the order reads in the second pass."""
        value = before(value)
        if not self._is_made_anew(value, reader):
            return value.index
        wanted = [value]
        while wanted:
            node = wanted[-1].producer
            assert node is not None
            missing = self._missing(wanted[-1], node)
            if missing:
                wanted += missing
            else:
                last = wanted.pop()
                if last not in self._made:
                    self._made[last] = self._make(b, last, node)
        return self._made[value]

    def _is_made_anew(self, value: Value, reader: int) -> bool:
        return value.producer is not None and self._reset.get(value, reader) >= reader

    def _missing(self, value: Value, node: Node) -> list[Value]:
        """What has to be made before the value can be."""
        if value in self._made or value in self._ends or self._keeps(node):
            return []
        when = self._order[node]
        inputs = [before(v) for v in node.inputs]
        return [v for v in inputs if v not in self._made and self._is_made_anew(v, when)]

    def _keeps(self, node: Node) -> bool:
        """True for a layer whose second pass has the values of the first."""
        return self._is_given_again(node) or (node.path in self._asked and self._asked[node.path].name == "own")

    def _make(self, b: Builder, value: Value, node: Node) -> int:
        numel = value.numel if value.is_tensor and value.has_batch_first else 0
        if value in self._ends:
            path = self._ends[value]
            module, asked = self._modules[path], self._asked[path]
            entries = [v.index for v in self._entries(node)]
            return b.cache(lambda *x: changed_forward(module, asked, *x), entries, numel)
        if self._keeps(node):
            return value.index
        slots = [self._slot(b, v, self._order[node]) for v in node.inputs]
        if slots == [v.index for v in node.inputs]:
            return value.index
        return b.cache(bind_forward(node), slots, numel)

    def _entries(self, node: Node) -> list[Value]:
        """What the call of a layer that ends in ``node`` reads from outside."""
        found: list[Value] = []
        seen: set[Value] = set()
        wanted = list(reversed(node.inputs))
        while wanted:
            value = wanted.pop()
            if value in seen:
                continue
            seen.add(value)
            source = value.producer
            if source is not None and source.path == node.path and value not in self._ends:
                wanted += reversed(source.inputs)
            else:
                found.append(value)
        return found


def _lower_elementwise(b: Builder, node: Node, flow: Flow, at: int) -> None:
    x, forward, relu = node.inputs[0], bind_forward(node), node.operation == "relu"

    def slope(z: Tensor, factor: Tensor | None = None) -> Tensor:
        if relu:
            found = (z > 0).to(z.dtype)
        else:
            with torch.inference_mode(False), torch.enable_grad():
                leaf = (z.clone() if z.is_inference() else z.detach()).requires_grad_()
                (found,) = torch.autograd.grad(forward(leaf).sum(), leaf)
        return found if factor is None else found * factor

    factor = b.slot_of(flow.factor)
    b.send(x, Flow(flow.register, Factor(None, b.cache(slope, [at] if factor is None else [at, factor], x.numel))))


def _lower_max(b: Builder, node: Node, flow: Flow, at: int) -> None:
    x, y, winner = node.inputs[0], node.output, b.operation("pool_max_relevance")
    forward, size = max_pool_forward(node), list(x.sizes[1:])
    index = b.cache(lambda z: forward(z)[1], [at], y.numel, itemsize=8)
    factor = b.slot_of(flow.factor)
    form = max_pool_form(b, node, index, factor)

    def at_winners(f: Tensor, index: Tensor, factor: Tensor | None) -> Tensor:
        relevance: Tensor = winner(f, index, factor, size)
        return relevance

    b.send(x, Flow(b.step(at_winners, [flow.register], [index, factor], x.numel, form=form)))


def _lower_any(b: Builder, node: Node, flow: Flow, slots: list[int]) -> None:
    """By autograd, as :func:`fastlrp.kinds.jacobian.transpose_at` does."""
    if len(node.sources) == len(node.inputs) and b.graph.batch is None:
        transpose_from(b, bind_forward(node), node.inputs, slots, flow)
    else:
        transpose_beside(b, node, flow, b.slot_of(flow.factor), slots=slots)
