"""autoLRP configured to share relevance as the presets ``attnlrp`` and ``cp_lrp`` do, through its public registries.

Its presets of these names are other rule sets. What is equal: products with weights, products of two activations (half
to each), the softmax, activations (relevance passes). What is not, and stands here in its place:

==================  =========================================  ==========================================
at                  autoLRP                                    here, as in LXT
==================  =========================================  ==========================================
sums ``a + b``      ``|a| / (|a| + |b|)``                      ``a / (a + b)``
biases              ``|z| / (|z| + |b|)`` is passed on         ``z / (z + b)``
means, sums         ``|x_i| / sum |x|``                        ``x_i / sum x``
layer norms         relevance passes, less the bias's share    sigma held fixed, the mean is subtracted
gates               by magnitude to both factors               half to each
RMS norms           the factor counts as a constant if the     it always does
                    norm's epsilon is small beside ``x^2``
global pooling      the gradient: the same to all positions    ``x_i / sum x``
==================  =========================================  ==========================================

autoLRP begins with a relevance of 1, so that its result times the score is relevance of the score.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

FACTOR = "inverse_root_operand"
"""Name of the fact that tells which factor of a product is ``1 / sqrt(…)``: the scale of a written-out RMS norm."""


def configuration(library: Any, composite: str) -> Any:
    """An ``LRPConfig`` with the rules of a preset.

    Args:
        library: the package ``autolrp``.
        composite: ``"attnlrp"`` or ``"cp_lrp"``.

    Raises:
        ValueError: for another composite.
    """
    if composite not in ("attnlrp", "cp_lrp"):
        raise ValueError(f"autoLRP is configured like attnlrp and cp_lrp alone, not like {composite!r}")
    library.register_analyzer(FACTOR, _inverse_root)
    entries = {
        **library.BASE,
        **library.ATTNLRP,
        **(library.CPLRP if composite == "cp_lrp" else {}),
        **library.on(library.ADD_NODES[:1], share_of_sum),
        **library.on(library.MUL_NODES, half_to_each),
        **library.on(library.LAYERNORM_NODES, sigma_held_fixed),
        **library.on(("MeanBackward", "SumBackward"), share_of_total),
        FACTOR: ("detach", {"by": FACTOR}),
    }
    del entries["statistic_operand"]  # Two facts about one node are an error.
    return library.LRPConfig(rule=entries)


@contextmanager
def written_out(library: Any) -> Iterator[None]:
    """Forward passes in which biases are sums of their own and global pooling is a mean, as the rules above want them.

    A bias of zeros stays where it is: it takes nothing under any rule.
    """

    def native(function: Any, *arguments: Any, **named: Any) -> Tensor:
        with torch._C.DisableTorchFunctionSubclass():
            found: Tensor = function(*arguments, **named)
        return found.as_subclass(library.LRPTensor)

    def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if bias is None or not bool(bias.any()):
            return native(F.linear, input, weight, bias)
        return native(F.linear, input, weight) + bias

    def addmm(input: Tensor, mat1: Tensor, mat2: Tensor, **named: Any) -> Tensor:
        if not bool(input.any()):
            return native(torch.addmm, input, mat1, mat2, **named)
        return native(torch.mm, mat1, mat2) + input

    def conv2d(input: Tensor, weight: Tensor, bias: Tensor | None = None, *places: Any, **named: Any) -> Tensor:
        if bias is None or not bool(bias.any()):
            return native(F.conv2d, input, weight, bias, *places, **named)
        return native(F.conv2d, input, weight, None, *places, **named) + bias.view(-1, 1, 1)

    def adaptive_avg_pool2d(input: Tensor, output_size: Any) -> Tensor:
        if output_size in (1, (1, 1), [1, 1]):
            return input.mean((-2, -1), keepdim=True)
        return native(F.adaptive_avg_pool2d, input, output_size)

    before = dict(library.REWRITES)
    for rewrite in (linear, addmm, conv2d, adaptive_avg_pool2d):
        library.register_rewrite(rewrite.__name__, rewrite)
    try:
        yield
    finally:
        library.REWRITES.clear()
        library.REWRITES.update(before)


Shares = tuple[Tensor | None, Tensor | None]


def share_of_sum(a: Tensor, b: Tensor, R: Tensor, eps: float, *_: Any, attribute: str = "both") -> Shares:
    """``R_a = a / st(a + b) R`` and the same for ``b``; a summand that is not asked for keeps its share."""
    each = R / _stabilized(a + b, eps)
    return a * each if attribute != "rhs" else None, b * each if attribute != "lhs" else None


def half_to_each(a: Tensor, b: Tensor, R: Tensor, eps: float, *_: Any, attribute: str = "both") -> Shares:
    """Half of the relevance to each factor, or all of it to the one that carries relevance."""
    if attribute == "both":
        return R / 2, R / 2
    return (R, None) if attribute == "lhs" else (None, R)


def share_of_total(x: Tensor, y: Tensor, R: Tensor, eps: float, *, dim: Any = None, keepdim: bool = False) -> Tensor:
    """``R_i = x_i / st(sum_i x_i) R`` for sums and means along ``dim``."""
    axes = tuple(range(x.dim())) if dim is None else (dim,) if isinstance(dim, int) else tuple(dim)
    if not keepdim:
        for axis in sorted(axis % x.dim() for axis in axes):
            R = R.unsqueeze(axis)
    return x * (R / _stabilized(x.sum(axes, keepdim=True), eps))


def sigma_held_fixed(
    x: Tensor, y: Tensor | None, R: Tensor, eps: float, *, normalized_shape: Any, weight: Tensor | None = None,
    bias: Tensor | None = None, mean: Tensor, rstd: Tensor,
) -> Tensor:  # fmt: skip
    """A layer norm with sigma as a constant, a linear map: the epsilon rule, whose denominator has the bias."""
    axes = tuple(range(-len(normalized_shape), 0))
    scale = rstd if weight is None else rstd * weight
    y = (x - mean) * scale
    c = R / _stabilized(y if bias is None else y + bias, eps) * scale
    return x * (c - c.mean(axes, keepdim=True))


def _stabilized(z: Tensor, eps: float) -> Tensor:
    return torch.where(z < 0, z - eps, z + eps)


def _inverse_root(node: Any) -> int | None:
    """Which factor of a product comes from ``rsqrt``, of a node of the graph; None if neither does."""
    if "MulBackward" not in node.name():
        return None
    for position, (parent, _) in enumerate(node.next_functions):
        while parent is not None and "AliasBackward" in parent.name():
            parent = parent.next_functions[0][0]
        if parent is not None and "Rsqrt" in parent.name():
            return position
    return None
