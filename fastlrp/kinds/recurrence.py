"""Recurrent layers, LSTM, GRU and plain: signals take relevance, or gates and signals half each, or the gradient.

A node is one layer and direction of sequences ``(B, T, C)``, see :mod:`fastlrp.capture.trace.recurrent`. A forward step
caches what each step of the layer multiplies relevance with; one operation, ``recurrence_relevance``, then walks a
block of targets from the last step to the first and on to the input.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastlrp import rules
from fastlrp.capture.graph import Node, Value
from fastlrp.capture.trace.recurrent import Layer
from fastlrp.kinds import textbook
from fastlrp.kinds.chained import is_chained
from fastlrp.kinds.jacobian import transpose_at
from fastlrp.kinds.kind import Kind
from fastlrp.kinds.recurrent_coefficients import (
    Arriving,
    Coefficients,
    coefficients,
    names_of,
    spread_coefficients,
    within,
)
from fastlrp.kinds.recurrent_layer import RecurrentLayer
from fastlrp.kinds.recurrent_textbook import Shares, Weights, through_layer
from fastlrp.kinds.textbook import Share, Walk
from fastlrp.plan.builder import Builder
from fastlrp.plan.narrow import wide
from fastlrp.plan.steps import Factor, Flow
from fastlrp.plan.total import multiply
from fastlrp.reference.redistribution import Ledger
from fastlrp.stabilizer import Stabilizer


def read(node: Node, bound: dict[str, Any]) -> str | None:
    """Operations that were not taken apart have no rule."""
    return None if isinstance(node.call, Layer) else "unknown"


def lower(b: Builder, node: Node, rule: rules.Rule, flow: Flow) -> None:
    """See :func:`fastlrp.reference.recurrence.recurrence_relevance` for what flows."""
    if isinstance(rule, rules.Gradient):
        transpose_at(b, node, flow)
        return
    if not isinstance(rule, rules.Recurrent):
        raise TypeError(f"{rule} is not defined for {node}: use Recurrent or Gradient")
    if Stabilizer.ensure(rule.stabilizer).relative is not None:
        raise TypeError(f"{rule} at {node}: a relative stabilizer is not defined over steps, use an absolute epsilon")
    if rule.bias_factor:
        _lower_spread(b, node, rule, flow)
        return
    sequence, y = RecurrentLayer(node), node.output
    mode, projected, with_cell = sequence.layer.mode, sequence.projected, sequence.layer.with_cell
    chained = is_chained(flow, y)
    factor = flow.factor.scale if chained else b.slot_of(flow.factor)
    names = names_of(mode, rule, projected, with_cell)

    def coefficients_of_steps(y: Tensor, *inputs: Any) -> tuple[Tensor, ...] | Tensor:
        values, factor = inputs[: len(node.inputs)], inputs[len(node.inputs) :]
        hidden, memory = sequence.parts(sequence.folded(wide(factor[0])), 1) if factor else (None, None)
        lengths = sequence.lengths_among(values)
        hidden = None if hidden is None else sequence.ordered(hidden, 1, lengths)
        arriving = Arriving(chained, hidden, memory)
        states = sequence.states(y, *values)
        found = within(coefficients(mode, states, rule, arriving, projected, with_cell), states.valid)
        made = tuple(sequence.unfolded(t.to(y.dtype)) for t in found.tensors())
        return made[0] if len(made) == 1 else made

    ins = [y.index, *(v.index for v in node.inputs), *([] if factor is None else [factor])]
    first = b.cache(coefficients_of_steps, ins, (sequence.several or 1) * sequence.steps * sequence.size, len(names))
    relevance = b.operation("recurrence_relevance")
    places, targets = _targets(sequence)

    def through_steps(f: Tensor, *cached: Tensor) -> tuple[Tensor, ...]:
        c = Coefficients(**dict(zip(names, map(sequence.folded, cached[: len(names)]), strict=True)))
        lengths = sequence.lengths(*cached[len(names) :])
        ih, hh, _, _, projection = sequence.weights()
        hidden, memory = sequence.parts(sequence.folded_targets(f), 2)
        final = None if memory is None or c.final is None else multiply(memory, c.final)
        of_x, a, m, _ = relevance(
            sequence.ordered(hidden, 2, lengths), final, sequence.chosen(hh, rule.gates), c.entry, c.scale, c.carry,
            c.gates, c.output_entry, c.output_scale, c.reset, projection, sequence.chosen(ih, rule.gates), None,
        )  # fmt: skip
        results = [sequence.ordered(of_x, 2, lengths), a + m if mode == "gru" else a, m]
        return tuple(sequence.unfolded_targets(results[i]) for i in places)

    given = sequence.given_lengths
    slots = [*range(first, first + len(names)), *([given.index] if isinstance(given, Value) else [])]
    registers = b.step_with_results(through_steps, [flow.register], slots, [x.numel for x in targets])
    for x, register in zip(targets, registers, strict=True):
        b.send(x, Flow(register, Factor(x)))


def _targets(sequence: RecurrentLayer) -> tuple[list[int], list[Value]]:
    """Which operands get relevance, by position and themselves."""
    found = [(i, v) for i, v in enumerate(sequence.operands) if isinstance(v, Value) and v in sequence.node.sources]
    return [i for i, _ in found], [v for _, v in found]


def _lower_spread(b: Builder, node: Node, rule: rules.Recurrent, flow: Flow) -> None:
    """Relevance itself, which shares that no input has a part in make a sum and not a multiple of it."""
    sequence, y = RecurrentLayer(node), node.output
    mode, projected = sequence.layer.mode, sequence.projected
    names = names_of(mode, rule, projected, sequence.layer.with_cell)
    register = b.relevance_register(flow, y.numel)

    def coefficients_of_steps(y: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        states, (_, _, of_x, of_h, _) = sequence.states(y, *inputs), map(wide, sequence.weights())
        bias = torch.zeros(1, device=y.device, dtype=states.h.dtype)
        if of_x is not None:
            of_x, of_h = sequence.chosen(of_x, rule.gates), sequence.chosen(of_h, rule.gates)
            bias = of_x + (states.acts[0] * of_h if mode == "gru" else of_h)
        found = within(spread_coefficients(mode, states, rule, bias, projected), states.valid)
        return tuple(sequence.unfolded(t.to(y.dtype)) for t in found.tensors())

    ins = [y.index, *(v.index for v in node.inputs)]
    first = b.cache(coefficients_of_steps, ins, (sequence.several or 1) * sequence.steps * sequence.size, len(names))
    relevance = b.operation("recurrence_relevance")
    places, targets = _targets(sequence)

    def through_steps(R: Tensor, *slots: Tensor) -> tuple[Tensor, ...]:
        c = Coefficients(**dict(zip(names, map(sequence.folded, slots[: len(names)]), strict=True)))
        inputs = dict(zip(node.inputs, map(sequence.folded, slots[len(names) :]), strict=True))
        lengths = sequence.lengths_among(slots[len(names) :])
        ih, hh, _, _, projection = sequence.weights()
        hidden, memory = sequence.parts(sequence.folded_targets(R), 2)
        of_x, a, m, to_all = relevance(
            sequence.ordered(hidden, 2, lengths), memory, sequence.chosen(hh, rule.gates), c.entry, c.scale, c.carry,
            c.gates, None, c.output_scale, c.reset, projection, sequence.chosen(ih, rule.gates), c.spread,
        )  # fmt: skip
        results: dict[int, Tensor] = {2: m}
        for i, v in zip(places, targets, strict=True):
            if i == 0:
                to_each = sequence.ordered(of_x, 2, lengths), sequence.ordered(to_all.unsqueeze(3), 2, lengths)
                results[i] = inputs[v].unsqueeze(1) * to_each[0] + to_each[1]
            elif i == 1:
                results[i] = inputs[v].unsqueeze(1) * a + to_all[:, :, :1]
                results[i] = results[i] + m if mode == "gru" else results[i]
        return tuple(sequence.unfolded_targets(results[i]) for i in places)

    slots = [*range(first, first + len(names)), *(v.index for v in node.inputs)]
    registers = b.step_with_results(through_steps, [register], slots, [x.numel for x in targets])
    for x, out in zip(targets, registers, strict=True):
        b.send(x, Flow(out))


def through(walk: Walk, node: Node, rule: rules.Rule, R: Tensor) -> Share:
    """The textbook step: relevance itself, step by step."""
    if isinstance(rule, rules.Gradient):
        return textbook.gradient(walk, node, R)
    assert isinstance(rule, rules.Recurrent)
    sequence, operands = RecurrentLayer(node), []
    for v in sequence.operands:
        operands.append(sequence.folded(walk.values[v]) if isinstance(v, Value) else textbook.double(v))
    x, h0, c0 = operands
    weights = Weights(*textbook.double(node.args[3:8]))
    h0 = x.new_zeros(len(x), sequence.hidden) if h0 is None else h0
    c0 = x.new_zeros(len(x), sequence.size) if c0 is None else c0
    hidden, memory = sequence.parts(sequence.folded_targets(R), 2)
    shares = Shares(Stabilizer.ensure(rule.stabilizer), rule.bias_factor, 0.5 if rule.gates == "uniform" else 0.0)
    found_lengths = sequence.lengths_among([walk.values[v] for v in node.inputs])
    by_sample = _by_sample(x, found_lengths)
    ordered_x, ordered_R = sequence.ordered(x, 1, found_lengths), sequence.ordered(hidden, 2, found_lengths)
    parts = [
        through_layer(
            sequence.layer.mode, ordered_x[rows, :steps], (h0[rows], c0[rows]), weights, ordered_R[rows, :, :steps],
            None if memory is None else memory[rows], shares,
        )
        for rows, steps in by_sample
    ]  # fmt: skip
    R_x = torch.cat([nn.functional.pad(part[0], (0, 0, 0, x.shape[1] - part[0].shape[2])) for part in parts])
    R_h0, R_c0 = torch.cat([part[1] for part in parts]), torch.cat([part[2] for part in parts])
    ledger = Ledger(*(torch.cat([getattr(part[3], k) for part in parts]) for k in ("bias", "stabilizer", "dead")))
    if sequence.several is not None:
        kept = (ledger.bias, ledger.stabilizer, ledger.dead)
        ledger = Ledger(*(sequence.unfolded_targets(part).sum(2) for part in kept))
    found: dict[Value, Tensor] = {}
    for v, r in zip(
        sequence.operands,
        map(sequence.unfolded_targets, (sequence.ordered(R_x, 2, found_lengths), R_h0, R_c0)),
        strict=True,
    ):
        if isinstance(v, Value) and v in node.sources:
            found[v] = found[v] + r if v in found else r
        else:  # First states that are no activations keep theirs.
            ledger.bias = ledger.bias + r.flatten(2).sum(2)
    return Share(found, ledger)


def _by_sample(x: Tensor, lengths: Tensor | None) -> list[tuple[slice, int]]:
    """Samples that go through the layer together, and their steps: each alone where they have lengths."""
    if lengths is None or not len(x):
        return [(slice(None), x.shape[1])]
    return [(slice(i, i + 1), int(n)) for i, n in enumerate(lengths)]


KIND = Kind(
    name="recurrence",
    operations="lstm gru rnn_tanh rnn_relu",
    lower=lower,
    textbook=through,
    read=read,
    preset=lambda sums: rules.Recurrent(stabilizer=textbook.stabilizer_of(sums)),
    keeps=True,
    modules={"lstm": nn.LSTM, "gru": nn.GRU, "rnn_tanh": nn.RNN, "rnn_relu": nn.RNN},
)
