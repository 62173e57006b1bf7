"""What relevance through a recurrent layer is multiplied with at each step: computed once for each sample."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from fastlrp import rules
from fastlrp.stabilizer import Stabilizer


@dataclass
class States:
    """What one layer and direction holds at each step, in the order in which it reads the sequence, ``(B, T, …)``.

    Attributes:
        x: input. h: hidden states. before: hidden states one step earlier. c, c_before: the memory, of an LSTM.
        z: sums at the gates, one for each block. acts: their activations; of a GRU also ``r (U_n h + c_n)``.
        valid: which steps there are, ``(B, T, 1)``; None for all. Behind them the memory stays as it is.
    """

    x: Tensor
    h: Tensor
    before: Tensor
    z: tuple[Tensor, ...]
    acts: tuple[Tensor, ...]
    c: Tensor | None = None
    c_before: Tensor | None = None
    valid: Tensor | None = None


def states_of(
    mode: str, x: Tensor, h: Tensor, h0: Tensor | None, c0: Tensor | None, weights: tuple[Tensor | None, ...],
    lengths: Tensor | None = None,
) -> States:  # fmt: skip
    """The states from input and hidden states: all sums of all steps in one product each."""
    ih, hh, bias_ih, bias_hh = weights[:4]
    assert ih is not None
    assert hh is not None
    first = h.new_zeros(h.shape[0], 1, h.shape[2]) if h0 is None else h0.unsqueeze(1)
    before = torch.cat([first, h[:, :-1]], 1)
    valid = None
    if lengths is not None:
        valid = (torch.arange(x.shape[1], device=x.device) < lengths.to(x.device).unsqueeze(1)).unsqueeze(2)
    of_x, of_h = torch.nn.functional.linear(x, ih, bias_ih), torch.nn.functional.linear(before, hh, bias_hh)
    if mode in ("rnn_tanh", "rnn_relu"):
        return States(x, h, before, (of_x + of_h,), (h,), valid=valid)
    if mode == "gru":
        x_r, x_z, x_n = of_x.chunk(3, -1)
        h_r, h_z, h_n = of_h.chunk(3, -1)
        z_r, z_z = x_r + h_r, x_z + h_z
        r = z_r.sigmoid()
        y = x_n + r * h_n
        return States(x, h, before, (z_r, z_z, y), (r, z_z.sigmoid(), y.tanh(), r * h_n), valid=valid)
    z = (of_x + of_h).chunk(4, -1)
    i, f, g, o = z[0].sigmoid(), z[1].sigmoid(), z[2].tanh(), z[3].sigmoid()
    keep, new = (f, i * g) if valid is None else (torch.where(valid, f, 1.0), torch.where(valid, i * g, 0.0))
    c, c_before = _memory(keep, new, c0)
    return States(x, h, before, tuple(z), (i, f, g, o), c, c_before, valid)


def _memory(f: Tensor, new: Tensor, c0: Tensor | None) -> tuple[Tensor, Tensor]:
    """``c_t = f_t c_{t-1} + new_t`` and ``c_{t-1}``, ``(B, T, H)``."""
    keep, add = f.transpose(0, 1).contiguous(), new.transpose(0, 1).contiguous()
    c = torch.zeros_like(add[0]) if c0 is None else c0
    made = [c]
    for k, a in zip(keep.unbind(), add.unbind(), strict=True):
        c = torch.addcmul(a, k, c)
        made.append(c)
    every = torch.stack(made, 1)
    return every[:, 1:], every[:, :-1]


@dataclass
class Coefficients:
    """The arguments of :func:`fastlrp.reference.recurrence.recurrence_relevance`, and the factor of the last memory's
    relevance on its way into ``final``."""

    entry: Tensor
    scale: Tensor | None = None
    carry: Tensor | None = None
    gates: Tensor | None = None
    output_entry: Tensor | None = None
    output_scale: Tensor | None = None
    reset: Tensor | None = None
    final: Tensor | None = None

    def tensors(self) -> tuple[Tensor, ...]:
        """Those that there are, dense."""
        return tuple(t.contiguous() for t in (getattr(self, field.name) for field in fields(self)) if t is not None)


def within(found: Coefficients, valid: Tensor | None) -> Coefficients:
    """Behind the last valid step nothing flows, but what comes into the last memory goes on to that step."""
    if valid is None:
        return found

    def cut(name: str, t: Tensor | None) -> Tensor | None:
        if t is None or name == "final":
            return t
        return torch.where(valid if t.dim() == 3 else valid.unsqueeze(2), t, 1.0 if name == "carry" else 0.0)

    return Coefficients(**{name: cut(name, getattr(found, name)) for name in NAMES})


NAMES = tuple(field.name for field in fields(Coefficients))


@dataclass(frozen=True)
class Arriving:
    """What arriving registers have to be multiplied with to be relevance of hidden states and of the last memory.

    Attributes:
        chained: whether that is the state times ``hidden`` and ``memory``, where None is 1; else those alone.
    """

    chained: bool
    hidden: Tensor | None
    memory: Tensor | None


def names_of(mode: str, rule: rules.Recurrent, projected: bool, with_cell: bool) -> tuple[str, ...]:
    """Which coefficients there are."""
    uniform = rule.gates == "uniform"
    found = {"entry", "scale"}
    if mode in ("lstm", "gru"):
        found |= {"carry", "gates"}
    if mode == "gru":
        found.add("reset")
    if mode == "lstm" and (uniform or projected):
        found.add("output_scale")
    if mode == "lstm" and uniform and not projected:
        found.add("output_entry")
    if with_cell:
        found.add("final")
    return tuple(name for name in NAMES if name in found)


def coefficients(
    mode: str, s: States, rule: rules.Recurrent, arriving: Arriving, projected: bool, with_cell: bool
) -> Coefficients:
    """In terms of what flows, see :class:`Coefficients`, for both kinds of gates."""
    quotients = _Quotients(Stabilizer.ensure(rule.stabilizer), arriving)
    if mode == "lstm":
        return _lstm(s, quotients, rule.gates == "uniform", projected, with_cell)
    if mode == "gru":
        return _gru(s, quotients, rule.gates == "uniform")
    (z,) = s.z
    entry, scale = quotients.entry(s.h, z, quotients.ratio(s.h, z, 1.0 if mode == "rnn_tanh" else 0.0))
    return Coefficients(entry, scale)


class _Quotients:
    """Quotients by stabilized sums; in the limit of epsilon to 0 those of an activation and its sum exist at 0 too."""

    def __init__(self, st: Stabilizer, arriving: Arriving) -> None:
        self.st, self.arriving, self.limit = st, arriving, st.in_limit

    def inverse(self, z: Tensor) -> Tensor:
        """``1 / st(z)``; the stabilizer's mean, where it has one, is that of all steps together."""
        return self.st.reciprocal(z)

    def own(self, z: Tensor) -> Tensor:
        """``z / st(z)``."""
        return torch.ones_like(z) if self.limit else z * self.inverse(z)

    def ratio(self, a: Tensor, z: Tensor, at_zero: float) -> Tensor:
        """``act(z) / st(z)``, with the activation's derivative at 0 in the limit."""
        return torch.where(z == 0, at_zero, a / z) if self.limit else a * self.inverse(z)

    def entry(self, state: Tensor, z: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Factors of what arrives from outside and of what a later step sent, for quotients by ``st(z)``.

        Args:
            scale: ``state / st(z)``.
        """
        factor = self.arriving.hidden
        if self.arriving.chained:
            return (scale if factor is None else scale * factor), scale
        inverse = self.inverse(z)
        return (inverse if factor is None else factor * inverse), scale


def _lstm(s: States, q: _Quotients, uniform: bool, projected: bool, with_cell: bool) -> Coefficients:
    i, f, g, o = s.acts
    assert s.c is not None
    assert s.c_before is not None
    half, m = 0.5 if uniform else 1.0, o * s.c.tanh()
    to_memory = (o * q.ratio(s.c.tanh(), s.c, 1.0) if q.limit else m * q.inverse(s.c)) * half
    found = Coefficients(s.h)
    if projected:
        found.entry, found.scale = q.entry(s.h, s.h, q.own(s.h))
        blocks = [to_memory, *([half * m * q.inverse(s.z[3])] if uniform else [])]
        found.output_scale = torch.stack(blocks, 2)
    else:
        found.entry, found.scale = q.entry(s.h, s.c, to_memory)
        if not q.arriving.chained:
            found.entry = found.entry * half
        if uniform:
            found.output_scale = half * s.h * q.inverse(s.z[3])
            found.output_entry, _ = q.entry(s.h, s.z[3], found.output_scale)
            if not q.arriving.chained:
                found.output_entry = found.output_entry * half
    own = q.own(s.c)
    # What reaches the first memory is relevance per unit of it, no share of a sum.
    found.carry = half * f * torch.cat([torch.ones_like(own[:, :1]), own[:, :-1]], 1)
    signal = half * i * q.ratio(g, s.z[2], 1.0)
    blocks = [signal]
    if uniform:
        blocks = [half * i * g * q.inverse(s.z[0]), half * f * s.c_before * q.inverse(s.z[1]), signal]
    found.gates = torch.stack(blocks, 2)
    if with_cell:
        last, factor = s.c[:, -1], q.arriving.memory
        inverse = q.own(last) if q.arriving.chained else q.inverse(last)
        found.final = inverse if factor is None else inverse * factor
    return found


def _gru(s: States, q: _Quotients, uniform: bool) -> Coefficients:
    r, z, n, of_h = s.acts
    half, own = 0.5 if uniform else 1.0, q.own(s.h)
    found = Coefficients(s.h)
    found.entry, found.scale = q.entry(s.h, s.h, own)
    found.carry = half * z * torch.cat([torch.ones_like(own[:, :1]), own[:, :-1]], 1)
    signal = half * (1 - z) * q.ratio(n, s.z[2], 1.0)
    blocks = [signal]
    if uniform:
        blocks = [half * of_h * signal * q.inverse(s.z[0]), half * s.h * q.inverse(s.z[1]), signal]
    found.gates = torch.stack(blocks, 2)
    found.reset = half * r
    return found


def spread_relevance(
    mode: str, s: States, rule: rules.Recurrent, weights: tuple[Tensor, Tensor, Tensor, Tensor | None],
    R: Tensor, R_final: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Relevance where ``bias_factor`` spreads what biases and stabilizer keep over the lower units.

    Args:
        weights: ``W (H, C)``, ``U (H, P)``, bias ``(B or 1, T or 1, H)`` of the sum that takes the signal; projection.
        R: of hidden states, ``(B, K, T, P)``. R_final: of the last memory, ``(B, K, H)``.

    Returns:
        relevance of the input, of the first hidden state and of the first memory.
    """
    st, W, U, projection = Stabilizer.ensure(rule.stabilizer), weights[0], weights[1], weights[3]
    z, memory = s.z[2 if mode == "lstm" else -1], s.c if mode == "lstm" else s.h
    assert memory is not None
    part = {
        "lstm": lambda: (s.acts[0] * s.acts[2], s.acts[1] * _there(s.c_before)),
        "gru": lambda: ((1 - s.acts[1]) * s.acts[2], s.acts[1] * s.before),
    }.get(mode)
    H, units = z.shape[-1], W.shape[1] + U.shape[1]
    inverse = st.reciprocal(z)
    kept = (
        rule.bias_factor * (weights[2] + st(z) - z) * inverse / units
    )  # Of each unit's relevance, to every lower unit.
    of_sum = rule.bias_factor * (st(memory) - memory) * st.reciprocal(memory) / (2 * H)
    of_out = rule.bias_factor * (st(s.h) - s.h) * st.reciprocal(s.h) / H
    R_h, R_c = R.new_zeros(*R.shape[:2], R.shape[3]), R.new_zeros(*R.shape[:2], H) if R_final is None else R_final
    found: list[Tensor] = []
    for t in range(R.shape[2] - 1, -1, -1):
        arrived = R_h + R[:, :, t]
        if projection is not None:
            m = s.acts[3][:, t] * _there(s.c)[:, t].tanh()
            spread = (arrived * of_out[:, t, None]).sum(-1, keepdim=True)
            arrived = m.unsqueeze(1) * ((arrived * st.reciprocal(s.h[:, t]).unsqueeze(1)) @ projection) + spread
        R_z, old = arrived, None
        if part is not None:
            new_part, old_part = (p[:, t, None] * st.reciprocal(memory[:, t]).unsqueeze(1) for p in part())
            total = arrived + R_c if mode == "lstm" else arrived
            spread = (total * of_sum[:, t, None]).sum(-1, keepdim=True)
            R_z, old = new_part * total + spread, old_part * total + spread
        spread = (R_z * kept[:, t, None]).sum(-1, keepdim=True)
        flow = R_z * inverse[:, t, None]
        found.append(s.x[:, t, None] * (flow @ W) + spread)
        R_h = s.before[:, t, None] * ((flow if mode != "gru" else flow * s.acts[0][:, t, None]) @ U) + spread
        if mode == "gru" and old is not None:
            R_h = R_h + old
        elif old is not None:
            R_c = old
    return torch.stack(found[::-1], 2), R_h, R_c


def _there(tensor: Any) -> Tensor:
    assert isinstance(tensor, Tensor)
    return tensor
