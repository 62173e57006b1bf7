"""Recurrent layers as the textbook has them: relevance itself, step by step, share by share.

Shapes: ``x (B, T, C)``, first states ``(B, P)`` and ``(B, H)``, weights as ``torch.nn`` has them, relevance
``(B, K, T, P)``. Everything in the dtype given: pass float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fastlrp.reference.redistribution import Ledger, Stabilize


@dataclass(frozen=True)
class Weights:
    """Of one layer and direction: ``(G H, C)``, ``(G H, P)``, ``(G H)``, ``(P, H)``; the last three may be None."""

    ih: Tensor
    hh: Tensor
    bias_ih: Tensor | None
    bias_hh: Tensor | None
    projection: Tensor | None

    def blocks(self, count: int) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Weights and biases of each gate."""
        zero = self.ih.new_zeros(len(self.ih))
        parts = (self.ih, self.hh, self._or(self.bias_ih, zero), self._or(self.bias_hh, zero))
        return list(zip(*(p.chunk(count) for p in parts), strict=True))

    @staticmethod
    def _or(bias: Tensor | None, zero: Tensor) -> Tensor:
        return zero if bias is None else bias


@dataclass
class Shares:
    """Proportional shares at sums, and what they keep.

    Attributes:
        st: stabilizer. bias_factor: which part of what bias and stabilizer keep is spread over the lower units.
        gate: the part of a product's relevance that its gate gets.
    """

    st: Stabilize
    bias_factor: float
    gate: float
    ledger: Ledger = field(init=False)

    def begin(self, like: Tensor) -> None:
        zero = like.new_zeros(like.shape[:2])
        self.ledger = Ledger(zero, zero.clone(), zero.clone())

    def divide(self, R: Tensor, z: Tensor, bias: Tensor, units: int) -> tuple[Tensor, Tensor]:
        """``R / st(z)`` for ``z (B, n)``, and what each of ``units`` lower units gets of bias and stabilizer."""
        denominator = self.st(z)
        s = R * torch.where(denominator == 0, 0.0, 1 / denominator).unsqueeze(1)
        of_bias, of_slack = (s * bias.unsqueeze(1)).sum(-1), (s * (denominator - z).unsqueeze(1)).sum(-1)
        self.ledger.bias = self.ledger.bias + (1 - self.bias_factor) * of_bias
        self.ledger.stabilizer = self.ledger.stabilizer + (1 - self.bias_factor) * of_slack
        self.ledger.dead = self.ledger.dead + torch.where((denominator == 0).unsqueeze(1), R, 0.0).sum(-1)
        return s, (self.bias_factor * (of_bias + of_slack) / units).unsqueeze(-1)


def through_layer(
    mode: str,
    x: Tensor,
    first: tuple[Tensor, Tensor],
    weights: Weights,
    R: Tensor,
    R_final: Tensor | None,
    shares: Shares,
) -> tuple[Tensor, Tensor, Tensor, Ledger]:
    """Relevance of the input and of both first states, and what is kept.

    Args:
        R: of the hidden states. R_final: of the last memory, ``(B, K, H)``; None is 0.
    """
    shares.begin(R)
    steps, h, c = [], *first
    forward = {"lstm": _lstm, "gru": _gru}.get(mode, _plain(torch.tanh if mode == "rnn_tanh" else torch.relu))
    for t in range(x.shape[1]):
        h, c, back = forward(x[:, t], h, c, weights, shares)
        steps.append(back)
    R_h = R.new_zeros(*R.shape[:2], R.shape[3])
    R_c = R.new_zeros(*R.shape[:2], first[1].shape[1]) if R_final is None else R_final
    of_inputs = []
    for t in range(x.shape[1] - 1, -1, -1):
        R_x, R_h, R_c = steps[t](R_h + R[:, :, t], R_c)
        of_inputs.append(R_x)
    return torch.stack(of_inputs[::-1], 2), R_h, R_c, shares.ledger


Back = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
Step = tuple[Tensor, Tensor, Back]


Sum = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, "Tensor | None"]


def _both(sums: Sequence[Sum], x: Tensor, h: Tensor, shares: Shares) -> tuple[Tensor, Tensor]:
    """What sums ``z = W x + U h + b`` send to x and h: ``(R, z, W, U, b, reset or None)`` each."""
    R_x: Tensor | float = 0.0
    R_h: Tensor | float = 0.0
    units = x.shape[1] + h.shape[1]
    for R, z, W, U, bias, reset in sums:
        s, spread = shares.divide(R, z, bias, units)
        to_h = s if reset is None else s * reset.unsqueeze(1)
        R_x = R_x + x.unsqueeze(1) * (s @ W) + spread
        R_h = R_h + h.unsqueeze(1) * (to_h @ U) + spread
    assert isinstance(R_x, Tensor)
    assert isinstance(R_h, Tensor)
    return R_x, R_h


def _lstm(x: Tensor, h: Tensor, c: Tensor, weights: Weights, shares: Shares) -> Step:
    blocks = weights.blocks(4)
    z = [x @ W.T + h @ U.T + b + d for W, U, b, d in blocks]
    i, f, g, o = z[0].sigmoid(), z[1].sigmoid(), z[2].tanh(), z[3].sigmoid()
    new = f * c + i * g
    m = o * new.tanh()
    out = m if weights.projection is None else m @ weights.projection.T
    part = shares.gate

    def back(R_h: Tensor, R_c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if weights.projection is not None:
            s, spread = shares.divide(R_h, out, torch.zeros_like(out), m.shape[1])
            R_h = m.unsqueeze(1) * (s @ weights.projection) + spread
        R_o, R_c = part * R_h, R_c + (1 - part) * R_h
        s, spread = shares.divide(R_c, new, torch.zeros_like(new), 2 * new.shape[1])
        R_fc, R_ig = (f * c).unsqueeze(1) * s + spread, (i * g).unsqueeze(1) * s + spread
        R_z = [part * R_ig, part * R_fc, (1 - part) * R_ig, R_o]
        chosen = range(4) if part else (2,)
        sums = [(R_z[n], z[n], blocks[n][0], blocks[n][1], (blocks[n][2] + blocks[n][3]).expand_as(z[n]), None)
                for n in chosen]  # fmt: skip
        return *_both(sums, x, h, shares), (1 - part) * R_fc

    return out, new, back


def _gru(x: Tensor, h: Tensor, c: Tensor, weights: Weights, shares: Shares) -> Step:
    blocks = weights.blocks(3)
    of_x, of_h = [x @ W.T + b for W, _, b, _ in blocks], [h @ U.T + d for _, U, _, d in blocks]
    z_r, z_z = of_x[0] + of_h[0], of_x[1] + of_h[1]
    r, z = z_r.sigmoid(), z_z.sigmoid()
    y = of_x[2] + r * of_h[2]
    n = y.tanh()
    out, part = (1 - z) * n + z * h, shares.gate

    def back(R_h: Tensor, R_c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        s, spread = shares.divide(R_h, out, torch.zeros_like(out), 2 * out.shape[1])
        R_new, R_old = ((1 - z) * n).unsqueeze(1) * s + spread, (z * h).unsqueeze(1) * s + spread
        R_n, kept = (1 - part) * R_new, (1 - part) * R_old
        W, U, b, d = blocks[2]
        sums: list[Sum] = [(R_n, y, W, U, b + r * d, r)]
        if part:
            # The share of r (U h + d) in y, of which the reset gate gets its part and the signal the rest.
            inverse = torch.where(shares.st(y) == 0, 0.0, 1 / shares.st(y))
            R_r = part * (r * of_h[2] * inverse).unsqueeze(1) * R_n
            shares.ledger.bias = shares.ledger.bias - part * ((r * d * inverse).unsqueeze(1) * R_n).sum(-1)
            sums = [
                (R_r, z_r, *blocks[0][:2], (blocks[0][2] + blocks[0][3]).expand_as(z_r), None),
                (part * (R_new + R_old), z_z, *blocks[1][:2], (blocks[1][2] + blocks[1][3]).expand_as(z_z), None),
                (R_n, y, W, U, b + r * d, (1 - part) * r),
            ]
        R_x, R_before = _both(sums, x, h, shares)
        return R_x, R_before + kept, R_c

    return out, c, back


def _plain(act: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor, Tensor, Weights, Shares], Step]:
    def step(x: Tensor, h: Tensor, c: Tensor, weights: Weights, shares: Shares) -> Step:
        ((W, U, b, d),) = weights.blocks(1)
        z = x @ W.T + h @ U.T + b + d

        def back(R_h: Tensor, R_c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return *_both([(R_h, z, W, U, (b + d).expand_as(z), None)], x, h, shares), R_c

        return act(z), c, back

    return step
