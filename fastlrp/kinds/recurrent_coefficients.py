"""What relevance through a recurrent layer is multiplied with at each step: computed once for each sample."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
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
    spread: Tensor | None = None

    def tensors(self) -> tuple[Tensor, ...]:
        """Those that there are, dense."""
        return tuple(t.contiguous() for t in (getattr(self, field.name) for field in fields(self)) if t is not None)


def within(found: Coefficients, valid: Tensor | None) -> Coefficients:
    """Behind the last valid step nothing flows, but what comes into the last memory goes on to that step."""
    if valid is None:
        return found

    def cut(name: str, t: Any) -> Any:
        if t is None or name == "final":
            return t
        return torch.where(valid if t.dim() == 3 else valid.unsqueeze(2), t, 1.0 if name == "carry" else 0.0)

    return replace(found, **{name: cut(name, getattr(found, name)) for name in NAMES})


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
    """The names of the coefficients that a layer has under this rule, in the order of their slots."""
    if rule.bias_factor:
        found = {"entry", "scale", "gates", "spread"} | ({"carry"} if mode in ("lstm", "gru") else set())
        found |= ({"reset"} if mode == "gru" else set()) | ({"output_scale"} if projected else set())
        return tuple(name for name in NAMES if name in found)
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


def spread_coefficients(mode: str, s: States, rule: rules.Recurrent, bias: Tensor, projected: bool) -> Coefficients:
    """In terms of relevance itself, where ``bias_factor`` spreads what biases and stabilizer keep over the lower units.

    Args:
        bias: of the sum that takes the signal, ``(B or 1, T or 1, H)``.
    """
    st, H, factor = Stabilizer.ensure(rule.stabilizer), s.z[0].shape[-1], rule.bias_factor
    z = s.z[2 if mode == "lstm" else -1]
    inverse = st.reciprocal(z)
    found = Coefficients(torch.ones_like(s.h), s.h)
    to_both, gate = torch.zeros_like(z), inverse
    if mode in ("lstm", "gru"):
        memory = s.c if mode == "lstm" else s.h
        assert memory is not None
        if mode == "lstm":
            assert s.c_before is not None
            new, old = s.acts[0] * s.acts[2], s.acts[1] * s.c_before
        else:
            new, old = (1 - s.acts[1]) * s.acts[2], s.acts[1] * s.before
        share = st.reciprocal(memory)
        found.carry, gate = old * share, new * share * inverse
        to_both = factor * (st(memory) - memory) * share / (2 * H)
    found.gates = gate.unsqueeze(2)
    found.reset = s.acts[0] if mode == "gru" else None
    rows = [to_both, inverse, factor * (bias + st(z) - z) / (s.x.shape[-1] + s.h.shape[-1])]
    if projected:
        assert s.c is not None
        found.entry = st.reciprocal(s.h)
        found.scale = s.h * found.entry
        found.output_scale = (s.acts[3] * s.c.tanh()).unsqueeze(2)
        rows.append(torch.nn.functional.pad(factor * (st(s.h) - s.h) / H, (0, H - s.h.shape[-1])))
    found.spread = torch.stack(rows, 2)
    return found
