"""The half of lowering that is about relevance: its steps, the registers of these, and what flows to each value."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from fastlrp.capture.graph import Node, Value
from fastlrp.plan.absent import without_absent
from fastlrp.plan.forms import Form, Sum
from fastlrp.plan.forward_builder import ForwardBuilder
from fastlrp.plan.rows import Draft
from fastlrp.plan.steps import Alternative, BackwardStep, Factor, Flow, Program, step_name, value_name
from fastlrp.plan.total import Total, multiply
from fastlrp.stabilizer import Stabilizer


@dataclass(eq=False)
class Builder(ForwardBuilder):
    """State of one lowering: which steps exist, which flows have been sent to which value.

    Attributes:
        backward: the steps so far, from the output down. registers: how many there are. top: the one of the initial
            relevance. flows: how the relevance of each value reads. drafts: of the plan's table.
        alternatives: steps that may take the place of several, see :class:`~fastlrp.plan.steps.Alternative`.
        finite: slots of values that may be infinite where no relevance is (masked scores), with 0 there.
        sends_evenly: whether what is being lowered keeps relevance per unit as even as it arrives, see ``uneven``.
        apart: values that get a register of their own, whose relevance is known at every entry, also where nobody reads
            it: the register itself, or the activation times it.
    """

    apart: frozenset[Value] = frozenset()
    backward: list[BackwardStep] = field(init=False, default_factory=list)
    registers: int = field(init=False, default=0)
    top: int = field(init=False, default=0)
    flows: dict[Value, Flow] = field(init=False, default_factory=dict)
    drafts: list[Draft] = field(init=False, default_factory=list)
    alternatives: list[Alternative] = field(init=False, default_factory=list)
    up_copies: dict[Node, list[Any]] = field(init=False, default_factory=dict)
    finite: dict[Value, int] = field(init=False, default_factory=dict)
    sends_evenly: bool = field(init=False, default=True)
    _sent: dict[Value, list[Flow]] = field(init=False, default_factory=dict)
    _senders: dict[Value, list[Node | None]] = field(init=False, default_factory=dict)

    def build(self, sweep: Callable[..., Any] | None = None) -> Program:
        """All that was collected, as it will stay. ``sweep``: see :class:`~fastlrp.plan.steps.Program`."""
        made = {value.index: way() for value, way in self.filtered.items()}
        for draft in self.drafts:
            way = made.get(draft.node.output.index, "plain")
            if way != "plain":
                (draft.looked if way.startswith("looked") else draft.filtered).add("forward")
        return Program(
            inputs=tuple(v.index for v in self.graph.inputs),
            slots=self.slots,
            own_slots=self.own_slots,
            registers=self.registers,
            top=self.top,
            forward=tuple(self.forward),
            backward=tuple(self.backward),
            flows=MappingProxyType({value: self.finite_flow(value, flow) for value, flow in self.flows.items()}),
            rows=tuple(draft.row() for draft in self.drafts),
            keyed=MappingProxyType(dict(self.keyed)),
            slot_bytes=MappingProxyType(dict(self.slot_bytes)),
            sweep=sweep,
            alternatives=tuple(self.alternatives),
            made=MappingProxyType(made),
            up_copies=MappingProxyType({node: tuple(copies) for node, copies in self.up_copies.items()}),
        )

    def send_shares(
        self, x: Value, z: int, numel: int, flow: Flow, stabilizer: Stabilizer, transpose: Callable[..., Tensor],
        form_of: Callable[[int | None], Form | None] = lambda scale: None, up: Callable[..., Tensor] | None = None,
    ) -> None:  # fmt: skip
        """A proportional rule of a linear map of ``x``: ``c = transpose(F, factor / st(z))`` and the factor ``x``.

        In float16 relevance itself over a small denominator is out of range, so that where it arrives without a factor
        ``x c`` is formed in float32 and sent as relevance.
        """
        if self.dtype == torch.float16 and flow.factor == Factor():
            scale = self.cache(lambda z: torch.where(z == 0, 0.0, stabilizer.reciprocal(z.float())), [z], numel)

            def relevance_in_float32(f: Tensor, s: Tensor, x: Tensor) -> Tensor:
                return multiply(transpose(f.float(), s), x.float()).to(f.dtype)

            self.send(x, Flow(self.step(relevance_in_float32, [flow.register], [scale, x.index], x.numel)))
            return
        quotient = self.share(flow, z, numel, stabilizer)
        register = self.step(transpose, [flow.register], [quotient], x.numel, form=form_of(quotient), up=up)
        self.send(x, Flow(register, Factor(x)))

    def finite_flow(self, value: Value, flow: Flow) -> Flow:
        """The same flow read with a factor that is 0 where the value is infinite, for nothing times infinity is NaN."""
        slot = self.finite.get(value) if flow.factor == Factor(value) else None
        return flow if slot is None else Flow(flow.register, Factor(None, slot))

    def start(self) -> None:
        """All of the model's own forward steps are there, and relevance begins at its output."""
        self.own_slots = self.slots
        self.top = self.new_register()
        self.send(self.graph.output, Flow(self.top))

    def new_register(self) -> int:
        self.registers += 1
        return self.registers - 1

    def step(
        self,
        run: Callable[..., Tensor],
        registers: Sequence[int],
        slots: Sequence[int | None],
        numel: int,
        work: int | None = None,
        form: Form | None = None,
        **others: Any,
    ) -> int:
        """One backward step; slots that are None are passed as None. Returns the register it fills.

        ``numel``: entries of the result, ``work``: floating-point operations, both per sample and target; ``others``:
        ``reduced``, ``unpool``, ``unpooled``, ``accepts_one_hot``, ``keeps_one_hot``, ``embeds``, ``fresh``,
        ``by_position``, ``moves_from``, ``into``, ``numbers``, ``overwrites``, ``takes_bf16``, ``up``, ``up_at``,
        ``up_from``, ``senders``, ``in_full`` and ``is_linear`` of :class:`~fastlrp.plan.steps.BackwardStep`.
        """
        return self._append(run, registers, slots, (numel,), work or numel, form=form, **others)[0]

    def step_with_results(
        self,
        run: Callable[..., tuple[Tensor, ...]],
        registers: Sequence[int],
        slots: Sequence[int | None],
        numels: Sequence[int],
        work: int | None = None,
        **others: Any,
    ) -> tuple[int, ...]:
        """One backward step whose ``run`` gives a tuple; ``numels``: entries of each. Returns their registers."""
        work = work or sum(numels)
        if len(numels) == 1:

            def only_result(*operands: Any) -> Tensor:
                return run(*operands)[0]

            return self._append(only_result, registers, slots, tuple(numels), work, **others)
        return self._append(run, registers, slots, tuple(numels), work, **others)

    def _append(
        self,
        run: Callable[..., Any],
        registers: Sequence[int],
        slots: Sequence[int | None],
        numels: tuple[int, ...],
        work: int,
        **others: Any,
    ) -> tuple[int, ...]:
        outs = tuple(self.new_register() for _ in numels)
        present = tuple(slot for slot in slots if slot is not None)
        if len(present) != len(slots):
            absent = [slot is None for slot in slots]
            run, others = without_absent(run, others, len(registers), len(numels), absent)
        place = self._name, self._node
        self.backward.append(BackwardStep(*place, run, tuple(registers), present, outs, numels, work, **others))
        return outs

    def relevance_register(self, flow: Flow, numel: int) -> int:
        """A register that holds R itself."""
        slot = self.slot_of(flow.factor)
        return flow.register if slot is None else self.step(multiply, [flow.register], [slot], numel, up=multiply)

    def begin(self, node: Node, rule: object) -> Draft:
        """What is added from here on belongs to this node under this rule."""
        self._name, self._node = step_name(node, rule), node
        self._row = Draft(node, str(rule))
        self.drafts.append(self._row)
        return self._row

    def send(self, value: Value, flow: Flow) -> None:
        """One consumer's share of the relevance of ``value``."""
        node = self._node
        if node is not None and node.kind != "move" and value.is_float and value.dtype != node.output.dtype:
            flow = self._in_dtype_of(value, node.output, flow)
        if not self.sends_evenly:
            self.uneven.add(value)
        self._sent.setdefault(value, []).append(flow)
        self._senders.setdefault(value, []).append(node)
        if self._row is not None and not self._row.flows:
            factor = flow.factor
            self._row.flows = "R" if factor == Factor() else "c" if factor.value is value else "f*F"

    def _in_dtype_of(self, x: Value, y: Value, flow: Flow) -> Flow:
        """What a node that promotes its operands (float32 plus float64) sends, in the operand's own dtype.

        The scale of a flow may be of the wider dtype, so that it goes into the register.
        """
        chained = flow.factor.value is x

        def narrowed(f: Tensor, s: Tensor | None) -> Tensor:
            return (f if s is None else multiply(f, s)).to(x.dtype)

        def widened(t: Tensor, s: Tensor | None) -> Tensor:
            return (t if s is None else multiply(t, s)).to(y.dtype)

        scale = flow.factor.scale if chained else self.slot_of(flow.factor)
        register = self.step(narrowed, [flow.register], [scale], x.numel, up=widened)
        return Flow(register, Factor(x) if chained else Factor())

    def collect(self, value: Value) -> Flow | None:
        """The sum of all that was sent to ``value``; None if nothing was."""
        sent = self._sent.pop(value, [])
        if not sent:
            return None
        self._row = None
        self._name, self._node = value_name(value, f"sum for {len(sent)} readers"), value.producer
        flow = sent[0] if len(sent) == 1 else self._sum(value, sent)
        if value in self.apart:
            flow = self._set_apart(value, flow)
        self.flows[value] = flow
        return flow

    def _set_apart(self, value: Value, flow: Flow) -> Flow:
        """The same flow in a register that is no other value's; factors that may be 0 where the value is not go in."""
        own = flow.factor.value is value
        slot = flow.factor.scale if own else self.slot_of(flow.factor)
        if slot is None and not self._is_shared(flow.register):
            return flow
        form = Sum((slot,)) if self.has_sparse_kernels else None
        total, scales = Total(1, int(slot is None)), [slot] if slot is not None else []
        register = self.step(
            total, [flow.register], scales, value.numel, form=form, by_position=True, up=total.up, senders=(self._node,)
        )
        return Flow(register, Factor(value) if own else Factor())

    def _is_shared(self, register: int) -> bool:
        """Whether it is the relevance of another value too, or part of one's, of those that are not below."""
        sent = any(flow.register == register for flows in self._sent.values() for flow in flows)
        known = sent or any(flow.register == register for flow in self.flows.values())
        return known or any(register in step.ins for step in self.backward)

    def _sum(self, value: Value, sent: list[Flow]) -> Flow:
        chained = all(flow.factor.value is value for flow in sent)
        slots = [flow.factor.scale if chained else self.slot_of(flow.factor) for flow in sent]
        # A summand without a factor goes first, so that it is the one that is added to.
        order = sorted(range(len(sent)), key=lambda i: slots[i] is not None)
        registers = [sent[i].register for i in order]
        scales = [slots[i] for i in order if slots[i] is not None]
        plain = len(sent) - len(scales)

        total = Total(len(sent), plain)
        form = Sum(tuple(slots[i] for i in order)) if self.has_sparse_kernels else None
        over = {position: partial(total.into, position) for position in range(plain)}
        register = self.step(
            total,
            registers,
            scales,
            value.numel,
            form=form,
            adds=not scales,
            fresh=True,
            by_position=True,
            overwrites=over,
            takes_bf16=not scales,
            up=total.up,
            senders=tuple(self._senders[value][i] for i in order),
            numbers={slot: self.numbers[slot] for slot in scales if slot in self.numbers},
        )
        return Flow(register, Factor(value) if chained else Factor())
