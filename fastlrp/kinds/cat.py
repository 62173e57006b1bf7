"""Concatenation and stacking: each part takes its own slice."""

from __future__ import annotations

from typing import Any

from fastlrp.capture.graph import Node, Value
from fastlrp.errors import UnsupportedOperationError
from fastlrp.kinds import id_moves
from fastlrp.kinds.kind import Kind
from fastlrp.kinds.move import Inverse, send_inverse
from fastlrp.kinds.places import Taken
from fastlrp.kinds.textbook import carry_back
from fastlrp.plan.builder import Builder
from fastlrp.plan.steps import Flow


def read(node: Node, bound: dict[str, Any]) -> str | None:
    """The axis along which the parts stand side by side."""
    node.attributes.update(dim=bound.get("dim", 0))
    return None


def lower(b: Builder, node: Node, rule: None, flow: Flow) -> None:
    """Concatenation and stacking: each part takes its own slice."""
    if not node.output.is_float:
        id_moves.lower(b, node, flow)
        return
    y = node.output
    parts = node.args[0]
    dim = node.attributes["dim"] % len(y.shape)
    if dim == 0:
        raise UnsupportedOperationError(f"{node} joins along the batch axis: relevance of samples cannot be told apart")
    start = 0
    for part in parts:
        if node.operation == "stack":
            index = start
            start += 1
            inverse: Inverse = lambda f, i=index: f.select(dim + 1, i)  # type: ignore[misc]  # noqa: E731
            part_of = Taken(dim - 1, index, 1, drops=True)
        else:
            shape = part.shape if isinstance(part, Value) else part.tensor().shape
            if len(shape) != len(y.shape):
                continue  # PyTorch lets an empty list of numbers be joined with anything.
            size = shape[dim]
            where = (start, size)
            start += size
            inverse = lambda f, w=where: f.narrow(dim + 1, *w)  # type: ignore[misc]  # noqa: E731
            part_of = Taken(dim - 1, *where, drops=False)
        if isinstance(part, Value) and part.is_differentiable:
            send_inverse(b, part, y, flow, inverse, one_to_one=True, up=part_of.inverse(y.sizes))


KIND = Kind(
    name="cat",
    operations="cat concat concatenate stack",
    lower=lower,
    textbook=carry_back,
    read=read,
    needs_rule=False,
)
