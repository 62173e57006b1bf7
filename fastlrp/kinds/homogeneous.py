"""Functions of degree n, ``f(t x) = t^n f(x)``: norms, distances, deviations, products of several activations.

By Euler's theorem ``sum_x x dy/dx = n y``, so that ``R_x = x (dy/dx)^T (R / (n st(y)))`` conserves relevance:

- a norm of order p: ``|x_i|^p / sum |x_i|^p``; a standard deviation or variance the same with ``x_i (x_i - mean)``;
- a distance of two activations: to the entries of both, in proportion to what they add to it;
- a product of n activations (einsum, a bilinear layer, the entries that ``prod`` and ``cumprod`` multiply): a share of
  ``1 / n`` for each;
- values added into places (``scatter_add``, ``index_add``, ``index_put`` with accumulate): in proportion, as at sums.

Sources: distances and bilinear similarities, Eberle et al. 2022 (BiLRP) and Kauffmann et al. 2022; equal shares of
products, Achtibat et al. 2024 (AttnLRP), eq. 7.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from fastlrp import rules
from fastlrp.capture.arguments import bind
from fastlrp.capture.graph import Node, Value, leaves
from fastlrp.kinds import textbook, write
from fastlrp.kinds.jacobian import transpose_at
from fastlrp.kinds.kind import Kind
from fastlrp.kinds.shares import Degree, send_shares, shares_through
from fastlrp.kinds.textbook import Share, Walk
from fastlrp.plan.builder import Builder
from fastlrp.plan.steps import Flow
from fastlrp.stabilizer import Stabilizer

_ADDED = ("scatter_add", "index_add", "index_put", "_unsafe_index_put", "scatter_reduce", "scatter")
_MULTILINEAR = ("bilinear", "einsum", "linalg_cross", "cross")
_COMPLEX = "complex_"
"""What the names of products of complex activations begin with."""


def read(node: Node, bound: dict[str, Any]) -> str | None:
    """No attributes; forms that are not of one degree are unknown."""
    a = arguments(node)
    order = a.get("ord", a.get("p"))
    if isinstance(order, (int, float)) and (order <= 0 or (node.operation == "cdist" and math.isinf(order))):
        return "unknown"
    if node.operation == "scatter_reduce" and a.get("reduce") not in ("sum", "mean"):
        return "scattered" if a.get("reduce") in ("amax", "amin") else "unknown"
    if node.operation == "bilinear" and len(_factors(node)) == 1:
        return "linear_map"
    return None


def arguments(node: Node) -> dict[str, Any]:
    """The operation's arguments by name."""
    return bind(node.call, node.args, node.kwargs)


def _factors(node: Node) -> list[Value]:
    return [v for v in leaves((node.args, node.kwargs)) if isinstance(v, Value) and v.is_differentiable]


def degree(node: Node) -> Degree:
    """By how much ``sum_x x dy/dx`` exceeds ``y``."""
    if node.operation == "var":
        return 2
    if node.operation in _MULTILINEAR or node.operation.startswith(_COMPLEX):
        return len(_factors(node))
    if node.operation not in ("prod", "cumprod"):
        return 1
    x, y = node.sources[0], node.output
    dim = arguments(node).get("dim")
    axis = (dim if isinstance(dim, int) else 0) % len(x.shape)
    length = int(x.shape[axis] or 1)
    if node.operation == "prod":
        return length
    behind = math.prod(y.sizes[axis:])
    return tuple(float(i // behind % length + 1) for i in range(y.numel))


def lower(b: Builder, node: Node, rule: rules.Rule, flow: Flow) -> None:
    """In proportion, or the gradient."""
    if node.operation in _ADDED:
        _check_places(b, node)
    if isinstance(rule, rules.Gradient):
        transpose_at(b, node, flow)
    elif isinstance(rule, (rules.Norm, rules.Epsilon)):
        if isinstance(rule, rules.Norm) and rule.of_sum and arguments(node).get("reduce") == "mean":
            raise TypeError(f"{rule} is not defined for {node}: use Norm or Epsilon, which divide by the mean itself")
        send_shares(b, node, flow, Stabilizer.ensure(rule.stabilizer), node.sources, degree(node))
    else:
        raise TypeError(f"{rule} is not defined for {node}: use Norm, Epsilon or Gradient")


def _check_places(b: Builder, node: Node) -> None:
    """Raise UnsupportedOperationError where a value may be added to another sample."""
    write.check_batch(node)
    if write.places_vary(node):
        write.check_samples(node, b.graph.batch)


def through(walk: Walk, node: Node, rule: rules.Rule, R: Tensor) -> Share:
    """The textbook step."""
    if isinstance(rule, rules.Gradient):
        return textbook.gradient(walk, node, R)
    assert isinstance(rule, (rules.Norm, rules.Epsilon))
    return shares_through(walk, node, R, Stabilizer.ensure(rule.stabilizer), node.sources, degree(node))


KIND = Kind(
    name="homogeneous",
    operations=(
        "linalg_vector_norm norm frobenius_norm std var pairwise_distance cdist bilinear prod cumprod scatter_add "
        "index_add scatter_reduce linalg_cross cross"
    ),
    lower=lower,
    textbook=through,
    read=read,
    preset=lambda sums: sums,
)
