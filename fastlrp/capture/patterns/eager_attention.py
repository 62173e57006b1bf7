"""Finds attention that a model writes out: two products with a softmax between them.

``softmax(cap tanh(scale Q K^T / cap) + masks) V``, each of scale, soft cap and masks present or not, with or without a
sink: scores without a key, which stand behind the others in the softmax and are cut off after it. The graph stays as it
is; a plan may do the whole in one step.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from fastlrp.capture.graph import Constant, Graph, Node, Value

_SAME = {
    "dropout",
    "contiguous",
    "clone",
    "alias",
    "to",
    "_to_copy",
    "type_as",
    "identity",
    "native_dropout",
    "detach_copy",
}
"""Operations that change nothing but the dtype."""


@dataclass(eq=False)
class EagerAttention:
    """Attention that is written out.

    Attributes:
        product: of probabilities and values. scores: of queries and keys. softmax: between them.
        query, key, value: ``(B, *heads, S, D)``, ``(B, *heads, D, T)``, ``(B, *heads, T, E)``.
        masks: what is added to the scores. scale, cap: see :func:`fastlrp.reference.attention.attention_forward`.
        sums, passes: the nodes that add the masks; those that scale and cap.
        inner: all nodes from the scores to the probabilities.
    """

    product: Node
    softmax: Node
    scores: Node
    masks: list[Any] = field(default_factory=list)
    scale: float = 1.0
    cap: float = 0.0
    sums: list[Node] = field(default_factory=list)
    passes: list[Node] = field(default_factory=list)
    inner: list[Node] = field(default_factory=list)

    @property
    def operands(self) -> tuple[Value, Value, Value]:
        """Query, key and value."""
        return self.scores.args[0], self.scores.args[1], self.product.args[1]


def find_eager_attention(graph: Graph) -> list[EagerAttention]:
    """All attention in a graph that is written out in this form."""
    consumers, outputs = graph.consumers(), set(graph.outputs)
    found = []
    for node in graph.nodes:
        attention = _ending_in(node) if node.kind == "product" else None
        if attention is not None and all(
            len(consumers[inner.output]) == 1 and inner.output not in outputs for inner in attention.inner
        ):
            found.append(attention)
    return found


def _ending_in(product: Node) -> EagerAttention | None:
    if not _is_matrix_product(product) or product.attributes.get("weights") is not product.args[0]:
        return None
    inner: list[Node] = []
    weights, value = product.args[:2]
    keys = value.shape[-2]
    node: Node | None = _before_copies(weights, inner)
    cut = False
    if node is not None and node.operation == "slice" and _cuts_behind(node, keys):
        inner.append(node)
        node, cut = _before_copies(node.sources[0], inner), True
    if node is None or node.operation != "softmax" or node.kind != "attention_weights":
        return None
    if not node.attributes.get("is_exact", True):
        return None  # Something stands beside the sum of the exponentials.
    if node.attributes["parameters"]["dim"] not in (-1, len(node.output.shape) - 1):
        return None
    softmax = node
    inner.append(softmax)
    node = _before_copies(softmax.inputs[0], inner)
    if cut:
        if node is None or node.operation != "cat" or not _appends(node, keys):
            return None
        inner.append(node)
        node = _before_copies(node.sources[0], inner)
    elif softmax.output.shape[-1] != keys:
        return None
    found = EagerAttention(product, softmax, product, inner=inner)
    return found if _read_scores(found, node) else None


def _read_scores(found: EagerAttention, node: Node | None) -> bool:
    """From the softmax up to the product of queries and keys; whether all that lies between is known."""
    factor, outer = 1.0, 0.0
    while node is not None and node.kind != "product":
        x: Any
        if node.kind == "add" and not outer and factor == 1:
            terms = [(v, c) for v, c in node.attributes["terms"] if v in node.sources]
            others = [v for v, c in node.attributes["terms"] if v not in node.sources and c == 1]
            if len(terms) != 1 or len(others) != 1 or terms[0][1] != 1:
                return False
            x = terms[0][0]
            found.masks.append(others[0])
            found.sums.append(node)
        elif node.kind == "mul" and node.operation in ("mul", "div"):
            numbers = [v for v in node.args[:2] if isinstance(v, (int, float)) and not isinstance(v, bool)]
            if len(node.sources) != 1 or len(numbers) != 1 or numbers[0] == 0 or node.args[0] is not node.sources[0]:
                return False
            x = node.args[0]
            factor *= numbers[0] if node.operation == "mul" else 1 / numbers[0]
            found.passes.append(node)
        elif node.operation == "tanh" and node.kind == "activation" and not outer:
            x, outer, factor = node.args[0], factor, 1.0
            found.passes.append(node)
        else:
            return False
        if x.shape != node.output.shape:
            return False
        found.inner.append(node)
        node = _before_copies(x, found.inner)
    if node is None or not _is_matrix_product(node) or node.args[0].dtype != found.product.output.dtype:
        return False
    found.scores, found.cap, found.scale = node, outer, factor * (outer or 1.0)
    found.inner.append(node)
    same_heads = {v.shape[:-2] for v in found.operands} == {found.product.output.shape[:-2]}
    return (
        same_heads and found.scale > 0 and found.cap >= 0 and node.output.shape[-1] == found.product.args[1].shape[-2]
    )


def _before_copies(value: Value, passed: list[Node]) -> Node | None:
    """The node that made a value, behind copies of the same shape, which ``passed`` gets."""
    node = value.producer
    while node is not None and node.operation in _SAME and node.sources and node.sources[0].shape == node.output.shape:
        passed.append(node)
        node = node.sources[0].producer
    return node


def _is_matrix_product(node: Node) -> bool:
    """A product of two stacks of matrices that both carry relevance, of the same dtype, heads and all."""
    if node.operation not in ("matmul", "bmm") or len(node.args) < 2 or len(node.sources) != 2 or len(node.inputs) != 2:
        return False
    first, second = node.args[:2]
    if not (isinstance(first, Value) and isinstance(second, Value)):
        return False
    return (
        len(first.shape) == len(second.shape) >= 3
        and first.shape[:-2] == second.shape[:-2]
        and first.dtype == second.dtype == node.output.dtype
        and all(v.has_batch_first and v.is_float for v in (first, second, node.output))
    )


def _cuts_behind(node: Node, keys: Any) -> bool:
    """``x[..., :keys]``."""
    x, y = node.sources[0] if len(node.sources) == 1 else None, node.output
    if x is None or x.shape[:-1] != y.shape[:-1] or y.shape[-1] != keys:
        return False
    axis, start, step = (*node.args[1:3], node.args[4] if len(node.args) > 4 else 1)
    return axis in (-1, len(y.shape) - 1) and start in (0, None) and step == 1


def _appends(node: Node, keys: Any) -> bool:
    """Scores with others behind them that carry no relevance."""
    parts = node.args[0]
    axis = node.attributes["dim"] % len(node.output.shape)
    return (
        len(parts) == 2
        and axis == len(node.output.shape) - 1
        and node.sources == (parts[0],)
        and parts[0].shape[-1] == keys
        and isinstance(parts[1], (Value, Constant))
    )


def masks_as_numbers(masks: list[Any], tensors: list[torch.Tensor]) -> torch.Tensor | None:
    """The sum of all masks, of which ``tensors`` are those that are values, in order; None if there are none."""
    rest = iter(tensors)
    total: torch.Tensor | None = None
    for mask in masks:
        part = next(rest) if isinstance(mask, Value) else mask.tensor() if isinstance(mask, Constant) else mask
        if not isinstance(part, torch.Tensor):
            part = torch.tensor(float(part), device=tensors[0].device if tensors else None)
        total = part if total is None else total + part
    return total
