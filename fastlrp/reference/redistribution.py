"""What the rules of LRP for affine layers have in common, as the textbook states them: z, s, c, R.

Notation: ``x`` input, ``R`` relevance of the output, ``st`` the stabilizer, ``w+ = max(w, 0)``, ``w- = min(w, 0)``,
``P = sum_i (x_i w_i)+`` and ``N = sum_i (x_i w_i)-``. Each rule (the ``textbook`` functions
of :mod:`fastlrp.rules`) has the same four steps:

    z = what the inputs contribute + bias,   s = R / st(z),   c = transpose(s),   R_in = contribution by contribution

and returns, next to ``R_in``, a :class:`Ledger` of what does not arrive: for every sample and target

    R_in.sum() + ledger.bias + ledger.stabilizer + ledger.dead = R.sum()

Shapes: ``x (B, ...)``, ``R (B, K, ...)``, ``R_in (B, K, *x.shape[1:])``. ``st`` is any callable from a denominator to
the stabilized one; ``1 / st(z)`` is 0 where ``st(z)`` is 0. Everything is computed in the dtype given: pass float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Stabilize = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Affine:
    """An affine layer as a function of its parameters.

    Args:
        apply: ``(x (B, ...), weight, bias or None) -> z (B, ...)``, linear in ``x`` for a bias of None, and linear in
            weight and bias together.
        weight: any shape.
        bias: any shape, or None.
    """

    apply: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    weight: Tensor
    bias: Tensor | None


@dataclass
class Ledger:
    """What a layer keeps of the relevance, summed over neurons, each ``(B, K)``.

    Args:
        bias: share of the bias in the denominators.
        stabilizer: share of the stabilizer (what epsilon absorbs), without ``dead``.
        dead: relevance of neurons to which no input contributes (numerator exactly 0) or whose stabilized denominator
            is 0. It has nobody to go to.
    """

    bias: Tensor
    stabilizer: Tensor
    dead: Tensor


@dataclass(frozen=True)
class Part:
    """One linear contribution to a numerator: ``multiplier * forward(input)``, redistributed over ``input``."""

    forward: Callable[[Tensor], Tensor]
    input: Tensor


def ordinary(t: Tensor) -> Tensor:
    """The tensor without its history, and as one that autograd takes: those of inference mode it does not."""
    return t.clone() if t.is_inference() else t.detach()


def vjp(forward: Callable[[Tensor], Tensor], x: Tensor, S: Tensor) -> Tensor:
    """Vector-Jacobian products, one target after the other: ``c[:, k] = (d forward / d x)^T S[:, k]``.

    Args:
        forward: function of one tensor, sample by sample.
        x: where the derivative is taken, ``(B, ...)``.
        S: ``(B, K, *forward(x).shape[1:])``.

    Returns:
        ``(B, K, *x.shape[1:])``.
    """
    out = x.new_zeros(x.shape[0], S.shape[1], *x.shape[1:])
    if S.shape[1] == 0:
        return out
    # Contiguous: PyTorch's derivative of an instance norm of one sample is wrong for relevance that lies channels-last.
    with torch.enable_grad():
        point = x.detach().clone().requires_grad_(True)
        y = forward(point)
        if S.requires_grad:  # It is linear in S, of which a derivative is wanted.
            each = [torch.autograd.grad(y, point, s, create_graph=True)[0] for s in S.contiguous().unbind(1)]
            return torch.stack(each, 1)
        for k in range(S.shape[1]):
            (out[:, k],) = torch.autograd.grad(y, point, S[:, k].detach().contiguous(), retain_graph=True)
    return out


def positive_part(w: Tensor) -> Tensor:
    return w.clamp(min=0)


def negative_part(w: Tensor) -> Tensor:
    return w.clamp(max=0)


def part_of(layer: Affine, weight: Tensor, x: Tensor) -> Part:
    return Part(lambda value: layer.apply(value, weight, None), x)


def times(part: Part, factor: float) -> Part:
    return Part(lambda value: factor * part.forward(value), part.input)


def positive_products(layer: Affine, x: Tensor) -> list[Part]:
    """``(x w)+ = x+ w+ + x- w-``."""
    return [
        part_of(layer, positive_part(layer.weight), positive_part(x)),
        part_of(layer, negative_part(layer.weight), negative_part(x)),
    ]


def negative_products(layer: Affine, x: Tensor) -> list[Part]:
    """``(x w)- = x+ w- + x- w+``."""
    return [
        part_of(layer, negative_part(layer.weight), positive_part(x)),
        part_of(layer, positive_part(layer.weight), negative_part(x)),
    ]


def bias_of(layer: Affine, x: Tensor, modify: Callable[[Tensor], Tensor], zero_bias: bool) -> Tensor | None:
    """The modified bias as part of the denominator, ``(B, *out)``."""
    if layer.bias is None or zero_bias:
        return None
    return layer.apply(torch.zeros_like(x), torch.zeros_like(layer.weight), modify(layer.bias))


def redistribute(parts: list[Part], bias: Tensor | None, R: Tensor, st: Stabilize) -> tuple[Tensor, Ledger]:
    """z, s, c, R for a numerator that is a sum of linear parts, all of them over inputs of one shape."""
    numerator = torch.stack([part.forward(part.input) for part in parts]).sum(dim=0)
    constant = torch.zeros_like(numerator) if bias is None else bias
    s, ledger = divide(R, numerator, constant, st)
    relevance = sum(part.input.unsqueeze(1) * vjp(part.forward, part.input, s) for part in parts)
    assert isinstance(relevance, Tensor)
    return relevance, ledger


def divide(R: Tensor, numerator: Tensor, constant: Tensor, st: Stabilize) -> tuple[Tensor, Ledger]:
    """``s = R / st(numerator + constant)``, and who gets what: the input ``numerator s``, the bias ``constant s``.

    Args:
        R: ``(B, K, ...)``.
        numerator: what the inputs contribute, ``(B, ...)``.
        constant: what does not depend on the inputs, ``(B, ...)``.
        st: the stabilizer. One that has a ``quotient`` knows ``s`` where the denominator is 0
            (:class:`fastlrp.stabilizer.LimitAt`).

    Returns:
        ``s (B, K, ...)`` and the ledger.
    """
    stabilized = st(numerator + constant)
    inverse = torch.where(stabilized == 0, 0.0, 1 / stabilized)
    s = R * inverse.unsqueeze(1)
    dead = ((numerator == 0) | (stabilized == 0)).unsqueeze(1)
    known = getattr(st, "quotient", None)
    if known is not None and known.shape == s.shape:
        at_zero = (stabilized == 0).unsqueeze(1)
        s, dead = torch.where(at_zero, known, s), dead & ~(at_zero & (known != 0))
    slack = stabilized - numerator - constant
    ledger = Ledger(
        bias=total(torch.where(dead, 0.0, s * constant.unsqueeze(1))),
        stabilizer=total(torch.where(dead, 0.0, s * slack.unsqueeze(1))),
        dead=total(torch.where(dead, R, 0.0)),
    )
    return s, ledger


def total(R: Tensor) -> Tensor:
    return R.flatten(2).sum(dim=2) if R.dim() > 2 else R
