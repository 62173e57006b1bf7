"""The rules of LRP for affine layers, as the textbook states them: z, s, c, R.

Notation: ``x`` input, ``R`` relevance of the output, ``st`` the stabilizer, ``w+ = max(w, 0)``, ``w- = min(w, 0)``,
``P = sum_i (x_i w_i)+`` and ``N = sum_i (x_i w_i)-``. Each rule has the same four steps:

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
class _Part:
    """One linear contribution to a numerator: ``multiplier * forward(input)``, redistributed over ``input``."""

    forward: Callable[[Tensor], Tensor]
    input: Tensor


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
    with torch.enable_grad():
        point = x.detach().clone().requires_grad_(True)
        y = forward(point)
        for k in range(S.shape[1]):
            (out[:, k],) = torch.autograd.grad(y, point, S[:, k].detach(), retain_graph=True)
    return out


def epsilon(layer: Affine, x: Tensor, R: Tensor, st: Stabilize, zero_bias: bool = False) -> tuple[Tensor, Ledger]:
    """LRP-epsilon: ``R_i = sum_j x_i w_ij / st(z_j) R_j``, ``z = W x + b``. With epsilon 0 it is LRP-0.

    Source: Bach et al. 2015, eq. 58.
    """
    return modified_weights(layer, x, R, st, lambda w: w, zero_bias)


def modified_weights(
    layer: Affine,
    x: Tensor,
    R: Tensor,
    st: Stabilize,
    modify: Callable[[Tensor], Tensor],
    zero_bias: bool = False,
    modify_bias: bool = True,
) -> tuple[Tensor, Ledger]:
    """``R_i = x_i sum_j rho(w_ij) / st(sum_i x_i rho(w_ij) + rho(b_j)) R_j``, with ``rho = modify``.

    ``rho(w) = w + gamma max(w, 0)`` is LRP-gamma as first published. Without ``modify_bias`` it is ``b_j`` as it is.

    Source: Montavon et al. 2019, eq. 10.2 to 10.4.
    """
    part = _part(layer, modify(layer.weight), x)
    return _redistribute([part], _bias(layer, x, modify if modify_bias else torch.clone, zero_bias), R, st)


def zplus(layer: Affine, x: Tensor, R: Tensor, st: Stabilize, zero_bias: bool = False) -> tuple[Tensor, Ledger]:
    """LRP-z+: ``R_i = sum_j (x_i w_ij)+ / st(P_j + b_j+) R_j``, for inputs of both signs.

    Source: Montavon et al. 2017, eq. 15; Bach et al. 2015, eq. 60 with beta = 0.
    """
    return _redistribute(_positive(layer, x), _bias(layer, x, _above, zero_bias), R, st)


def alpha_beta(
    layer: Affine,
    x: Tensor,
    R: Tensor,
    st: Stabilize,
    alpha: float,
    beta: float,
    zero_bias: bool = False,
) -> tuple[Tensor, Ledger]:
    """LRP-alpha-beta: ``R_i = sum_j (alpha (x_i w_ij)+ / st(P_j + b_j+) - beta (x_i w_ij)- / st(N_j + b_j-)) R_j``.

    The ledger is that of the positive part times alpha minus that of the negative part times beta; all of it adds up to
    ``(alpha - beta) R.sum()``.

    Source: Bach et al. 2015, eq. 60.
    """
    above, gains = _redistribute(_positive(layer, x), _bias(layer, x, _above, zero_bias), R, st)
    below, losses = _redistribute(_negative(layer, x), _bias(layer, x, _below, zero_bias), R, st)
    ledger = Ledger(
        bias=alpha * gains.bias - beta * losses.bias,
        stabilizer=alpha * gains.stabilizer - beta * losses.stabilizer,
        dead=alpha * gains.dead - beta * losses.dead,
    )
    return alpha * above - beta * below, ledger


def gamma(
    layer: Affine, x: Tensor, R: Tensor, st: Stabilize, gamma: float, zero_bias: bool = False
) -> tuple[Tensor, Ledger]:
    """LRP-gamma, generalised to inputs and outputs of both signs.

    ``R_i = sum_j (x_i w_ij + gamma (x_i w_ij)+) / st(z_j + gamma (P_j + b_j+)) R_j`` over the neurons with ``z_j > 0``,
    the same with ``-``, ``N`` and ``b-`` over those with ``z_j < 0``. Neurons with ``z_j = 0`` are dead. With
    ``zero_bias`` the layer has no bias at all, so the sign of ``z_j`` is that of ``W x`` too.

    Source: Andeol et al. 2021; Montavon et al. 2019, section 10.2.3, for ``x >= 0``.
    """
    bias = None if zero_bias else layer.bias
    z = layer.apply(x, layer.weight, bias).unsqueeze(1)
    plain = _part(layer, layer.weight, x)

    def more(clamp: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda w: w + gamma * clamp(w)

    up = [_scaled(part, gamma) for part in _positive(layer, x)]
    down = [_scaled(part, gamma) for part in _negative(layer, x)]
    above, gains = _redistribute([plain, *up], _bias(layer, x, more(_above), zero_bias), torch.where(z > 0, R, 0.0), st)
    below, losses = _redistribute(
        [plain, *down], _bias(layer, x, more(_below), zero_bias), torch.where(z < 0, R, 0.0), st
    )
    ledger = Ledger(
        bias=gains.bias + losses.bias,
        stabilizer=gains.stabilizer + losses.stabilizer,
        dead=gains.dead + losses.dead + _total(torch.where(z == 0, R, 0.0)),
    )
    return above + below, ledger


def zbox(
    layer: Affine, x: Tensor, R: Tensor, st: Stabilize, low: float | Tensor, high: float | Tensor
) -> tuple[Tensor, Ledger]:
    """LRP-zB: ``R_i = sum_j (x_i w_ij - l_i w_ij+ - h_i w_ij-) / st(z_j) R_j``, ``z = W x - W+ l - W- h``.

    The biases ``b - b+ - b-`` cancel. ``low`` and ``high`` are numbers or tensors that broadcast to ``x``.

    Source: Montavon et al. 2017, eq. 13.
    """
    lowest = torch.as_tensor(low, dtype=x.dtype, device=x.device).expand_as(x)
    highest = torch.as_tensor(high, dtype=x.dtype, device=x.device).expand_as(x)
    parts = [
        _part(layer, layer.weight, x),
        _part(layer, -_above(layer.weight), lowest),
        _part(layer, -_below(layer.weight), highest),
    ]
    return _redistribute(parts, None, R, st)


def wsquare(layer: Affine, x: Tensor, R: Tensor, st: Stabilize, zero_bias: bool = False) -> tuple[Tensor, Ledger]:
    """LRP-w2: ``R_i = sum_j w_ij^2 / st(sum_i w_ij^2 + b_j^2) R_j``. The values of ``x`` play no part.

    Source: Montavon et al. 2017, eq. 12.
    """
    part = _part(layer, layer.weight.square(), torch.ones_like(x))
    return _redistribute([part], _bias(layer, x, torch.square, zero_bias), R, st)


def flat(layer: Affine, x: Tensor, R: Tensor, st: Stabilize) -> tuple[Tensor, Ledger]:
    """LRP-flat: ``R_i = sum_j 1 / st(sum_i 1) R_j`` over the inputs that output ``j`` sees (not padding); no bias.

    Source: Lapuschkin et al. 2019.
    """
    part = _part(layer, torch.ones_like(layer.weight), torch.ones_like(x))
    return _redistribute([part], None, R, st)


def _above(w: Tensor) -> Tensor:
    return w.clamp(min=0)


def _below(w: Tensor) -> Tensor:
    return w.clamp(max=0)


def _part(layer: Affine, weight: Tensor, x: Tensor) -> _Part:
    return _Part(lambda value: layer.apply(value, weight, None), x)


def _scaled(part: _Part, factor: float) -> _Part:
    return _Part(lambda value: factor * part.forward(value), part.input)


def _positive(layer: Affine, x: Tensor) -> list[_Part]:
    """``(x w)+ = x+ w+ + x- w-``."""
    return [_part(layer, _above(layer.weight), _above(x)), _part(layer, _below(layer.weight), _below(x))]


def _negative(layer: Affine, x: Tensor) -> list[_Part]:
    """``(x w)- = x+ w- + x- w+``."""
    return [_part(layer, _below(layer.weight), _above(x)), _part(layer, _above(layer.weight), _below(x))]


def _bias(layer: Affine, x: Tensor, modify: Callable[[Tensor], Tensor], zero_bias: bool) -> Tensor | None:
    """The modified bias as part of the denominator, ``(B, *out)``."""
    if layer.bias is None or zero_bias:
        return None
    return layer.apply(torch.zeros_like(x), torch.zeros_like(layer.weight), modify(layer.bias))


def _redistribute(parts: list[_Part], bias: Tensor | None, R: Tensor, st: Stabilize) -> tuple[Tensor, Ledger]:
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
        st: the stabilizer.

    Returns:
        ``s (B, K, ...)`` and the ledger.
    """
    stabilized = st(numerator + constant)
    inverse = torch.where(stabilized == 0, 0.0, 1 / stabilized)
    s = R * inverse.unsqueeze(1)
    dead = ((numerator == 0) | (stabilized == 0)).unsqueeze(1)
    slack = stabilized - numerator - constant
    ledger = Ledger(
        bias=_total(torch.where(dead, 0.0, s * constant.unsqueeze(1))),
        stabilizer=_total(torch.where(dead, 0.0, s * slack.unsqueeze(1))),
        dead=_total(torch.where(dead, R, 0.0)),
    )
    return s, ledger


def _total(R: Tensor) -> Tensor:
    return R.flatten(2).sum(dim=2) if R.dim() > 2 else R
