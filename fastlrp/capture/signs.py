"""Which values of a graph are proved to have no entry below zero.

With an input of one sign z+, gamma and alpha-beta need half of their products, so that a wrong proof is a wrong number.
:data:`PROOFS` is therefore a list of the ATen operations that keep or make nonnegative values, each with the conditions
on its arguments. An operation that is not in the list proves nothing.

``-0.0`` and NaN count as not below zero: a proof says that ``(value < 0).any()`` is False. Where that would matter it
is in the conditions: ``1 / -0.0`` is minus infinity.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor

from fastlrp.capture.aggregation import added, largest, segment_softmax
from fastlrp.capture.arguments import bind
from fastlrp.capture.graph import Constant, Graph, Node, Value
from fastlrp.capture.patterns.written_softmax import SpeltOut, spelt_out

_UNSIGNED = (torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64)

_OURS: dict[str, Any] = {
    "aggregate": added, "aggregate_max": largest, "segment_softmax": segment_softmax, "softmax": spelt_out
}  # fmt: skip
"""Operations of ours that are no ATen overloads."""

_PARTS = {
    "chunk", "split", "split_with_sizes", "unbind", "max", "min", "median", "kthvalue", "mode", "topk", "sort",
    "cummax", "cummin", "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d",
}  # fmt: skip
"""Operations with several results, of which a node is one: its function is then no ATen operation itself."""

_LARGEST_POWER = 1024
"""Exponents up to it are exact in every floating-point type, so that an even one stays even."""


@dataclass(frozen=True)
class Facts:
    """What a proof may use.

    Attributes:
        arguments: of the operation by the names of its schema, defaults included; the first one is ``x``.
        known: the values that are proved already.
    """

    x: Any
    arguments: dict[str, Any]
    known: set[Value]

    def holds(self, operand: Any) -> bool:
        """True if the operand is a nonnegative number, or a value that is proved to have no entry below zero.

        Parameters prove nothing: they are trained.
        """
        if isinstance(operand, Value):
            return operand in self.known
        if isinstance(operand, Constant):
            tensor = operand.source
            return isinstance(tensor, Tensor) and tensor.dtype in _UNSIGNED
        return _number(operand) and operand >= 0

    def number(self, name: str, default: float) -> Any:
        """A numeric argument, the default where it is None or the operation has none; NaN, which proves nothing, for
        a tensor."""
        value = self.arguments.get(name)
        value = default if value is None else value
        return value if _number(value) else float("nan")


def _number(item: Any) -> TypeGuard[float]:
    return isinstance(item, (int, float))  # bool is an int.


Proof = Callable[[Facts], bool]


def nonnegative(graph: Graph) -> set[Value]:
    """The values of a graph that are proved to have no entry below zero, whatever its inputs and parameters are."""
    known = {value for value in graph.inputs if value.dtype in _UNSIGNED}
    for node in graph.nodes:
        if proves(node, known):
            known.add(node.output)
    return known


def proves(node: Node, known: set[Value]) -> bool:
    """Whether the node's output has no entry below zero if the values in ``known`` have none."""
    dtype = node.output.dtype
    if dtype is None or not dtype.is_floating_point:
        return dtype in _UNSIGNED  # Other integers overflow into negative numbers.
    proof = PROOFS.get(node.operation)
    if proof is None or not node.args:
        return False
    if isinstance(node.call, torch._ops.OpOverload):
        if node.call.namespace != "aten":
            return False  # Somebody's own operator of that name.
    elif node.operation not in {*_PARTS, "custom_backward"} and not _is_ours(node):
        return False
    return proof(Facts(node.args[0], bind(node.call, node.args, node.kwargs), known))


def _is_ours(node: Node) -> bool:
    call = node.call
    return call is _OURS.get(node.operation) or (isinstance(call, SpeltOut) and not call.masks)


def _chosen(f: Facts) -> bool:
    """Entries of x; with a second operand (``torch.min(x, other)``) those of either."""
    return _keeps(f) and f.arguments.get("other") is None


def _always(_: Facts) -> bool:
    return True


def _keeps(f: Facts) -> bool:
    return f.holds(f.x)


def _all_parts(f: Facts) -> bool:
    return isinstance(f.x, (list, tuple)) and all(f.holds(part) for part in f.x)


def _constant_pad(f: Facts) -> bool:
    return _keeps(f) and f.number("value", 0) >= 0


def _max_pool(f: Facts) -> bool:
    """Without dilation every window has an entry of the map; one in the padding alone gives minus infinity."""
    dilated = any(d != 1 for d in _listed(f.arguments.get("dilation", 1)))
    padded = any(p != 0 for p in _listed(f.arguments.get("padding", 0)))
    return _keeps(f) and not (dilated and padded)


def _listed(item: Any) -> list[Any]:
    return list(item) if isinstance(item, (list, tuple)) else [item]


def _avg_pool(f: Facts) -> bool:
    return _keeps(f) and f.number("divisor_override", 1) > 0


def _softplus(f: Facts) -> bool:
    """``log(1 + exp(beta x)) / beta``, and x itself where ``beta x`` is above the threshold."""
    return f.number("beta", 1) > 0 and f.number("threshold", 20) >= 0


def _clamp(low: str, high: str) -> Proof:
    """An upper bound below the lower one wins. A bound that is a tensor proves nothing."""

    def proof(f: Facts) -> bool:
        above = f.number(low, float("-inf")) >= 0 or (_keeps(f) and not _is_tensor(f.arguments.get(low)))
        return above and f.number(high, float("inf")) >= 0

    return proof


def _is_tensor(item: Any) -> bool:
    return isinstance(item, (Value, Constant))


def _threshold(f: Facts) -> bool:
    """x where it is above the threshold, else the value."""
    return f.number("value", -1) >= 0 and (_keeps(f) or f.number("threshold", -1) >= 0)


def _elu(f: Facts) -> bool:
    """``scale x`` above zero, zero at zero."""
    return _keeps(f) and f.number("scale", 1) >= 0


def _softshrink(f: Facts) -> bool:
    return _keeps(f) and f.number("lambd", 0.5) >= 0


def _pow(f: Facts) -> bool:
    """Even whole powers of anything, other powers of at least 0 of what is not below zero (``(-0.0) ** -1`` is)."""
    exponent = f.arguments.get("exponent")
    if not isinstance(f.x, Value) or not _number(exponent):
        return False
    even = exponent % 2 == 0 and abs(exponent) <= _LARGEST_POWER
    return even or (_keeps(f) and exponent >= 0)


def _add(first: int, second: int, scaled: int) -> Proof:
    """``first x + second other``, of which alpha scales one; a term with a coefficient below 0 is a number below 0."""

    def proof(f: Facts) -> bool:
        alpha = f.number("alpha", 1)
        coefficients = [first * (alpha if scaled == 0 else 1), second * (alpha if scaled == 1 else 1)]
        terms = zip((f.x, f.arguments.get("other")), coefficients, strict=True)
        return all(c * term >= 0 if _number(term) else c >= 0 and f.holds(term) for term, c in terms)

    return proof


def _mul(f: Facts) -> bool:
    other = f.arguments.get("other")
    return (isinstance(f.x, Value) and f.x is other) or (_keeps(f) and f.holds(other))


def _div(f: Facts) -> bool:
    """By a number above 0. A quotient by another value proves nothing: that may hold ``-0.0``."""
    other = f.arguments.get("other")
    return _keeps(f) and _number(other) and other > 0


_ALWAYS = "relu relu6 sigmoid hardsigmoid softmax segment_softmax exp square abs"
_KEEPS = (
    # Activations that are at least 0 from 0 on. Not tanhshrink, whose x - tanh(x) rounds to either side of 0.
    "leaky_relu prelu rrelu selu celu silu gelu hardswish mish tanh hardshrink "
    # Sums with weights of at least 0. Not upsample_bicubic2d, whose weights have both signs.
    "mean sum cumsum col2im upsample_linear1d upsample_bilinear2d upsample_trilinear3d "
    "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d "
    "adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d "
    # Copies of entries, zeros between them.
    "view reshape flatten unflatten permute transpose t squeeze unsqueeze select slice narrow chunk split "
    "split_with_sizes unbind expand expand_as repeat reflection_pad1d reflection_pad2d reflection_pad3d "
    "replication_pad1d replication_pad2d replication_pad3d roll flip pixel_shuffle pixel_unshuffle channel_shuffle "
    "upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d _upsample_nearest_exact2d "
    "_upsample_nearest_exact3d im2col index_select index movedim swapaxes adjoint mT view_as reshape_as tile "
    "amax amin median kthvalue mode topk sort cummax cummin sqrt log1p expm1 asinh atan sinh erf "
    "repeat_interleave contiguous clone detach custom_backward alias lift_fresh lift_fresh_copy to _to_copy type_as "
    "aggregate aggregate_max"
)

PROOFS: dict[str, Proof] = {
    **dict.fromkeys(_ALWAYS.split(), _always),
    **dict.fromkeys(_KEEPS.split(), _keeps),
    **dict.fromkeys(("cat", "concat", "concatenate", "stack"), _all_parts),
    **dict.fromkeys(("max", "min"), _chosen),
    **dict.fromkeys(("pad", "constant_pad_nd"), _constant_pad),
    **dict.fromkeys(("max_pool1d", "max_pool2d", "max_pool3d"), _max_pool),
    **dict.fromkeys(("avg_pool1d", "avg_pool2d", "avg_pool3d"), _avg_pool),
    **dict.fromkeys(("clamp", "clamp_min", "clamp_max"), _clamp("min", "max")),
    "hardtanh": _clamp("min_val", "max_val"),
    "softplus": _softplus,
    "threshold": _threshold,
    "elu": _elu,
    "softshrink": _softshrink,
    "pow": _pow,
    "add": _add(1, 1, scaled=1),
    "sub": _add(1, -1, scaled=1),
    "rsub": _add(-1, 1, scaled=0),
    "mul": _mul,
    "div": _div,
}
"""By the operation's name, as :mod:`fastlrp.kinds.vocabulary` has it."""
