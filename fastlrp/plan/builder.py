"""Collects forward and backward steps while a plan is lowered, and keeps the books on what flows where."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import Tensor

from fastlrp.backends.dispatch import compiled_backend, select, sparse_kernels
from fastlrp.capture.graph import Graph, Node, Value
from fastlrp.capture.signs import nonnegative
from fastlrp.plan.absent import without_absent
from fastlrp.plan.bind import bind_forward
from fastlrp.plan.forms import Form, Sum
from fastlrp.plan.narrow import representable, wide
from fastlrp.plan.steps import BackwardStep, Factor, Flow, ForwardStep, Program, Row, SweepPart, step_name, value_name
from fastlrp.plan.total import Total, multiply
from fastlrp.precision import FULL, Products
from fastlrp.reference.weightless import MaxPoolMode
from fastlrp.stabilizer import Stabilizer


def channels_last(x: Tensor) -> Tensor:
    """What 2-D convolutions read lies channels-last: oneDNN is 1.1 to 5 times faster so, tensor cores want it too."""
    wanted = x.dim() == 4 and x.device.type in ("cpu", "cuda")
    return x.contiguous(memory_format=torch.channels_last) if wanted else x


@dataclass(eq=False)
class Draft:
    """A :class:`~fastlrp.plan.steps.Row` while its layer is lowered."""

    node: Node
    rule: str
    flows: str = ""
    backend: str = ""
    slots: list[int] = field(default_factory=list)


class Builder:
    """State of one lowering: which steps exist, which flows have been sent to which value."""

    def __init__(
        self,
        graph: Graph,
        backend: str,
        device: torch.device,
        dtype: torch.dtype,
        shared: dict[Any, Any] | None = None,
        max_pool: MaxPoolMode = "winner",
        products: Products = FULL,
    ) -> None:
        self.max_pool, self.products = max_pool, products
        self.beside: dict[Node, int] = {}
        """Slots of what a node's forward step makes beside its output: the winners of a max-pool."""
        self.graph, self.backend, self.device, self.dtype = graph, backend, device, dtype
        self.shared = {} if shared is None else shared
        self.keyed: dict[tuple[Any, ...], int] = {}
        self.finite: dict[Value, int] = {}
        """Slots of values that may be infinite where no relevance is (masked scores), with 0 there."""
        self.top = 0
        self.forward: list[ForwardStep] = []
        self.backward: list[BackwardStep] = []
        self.drafts: list[Draft] = []
        self.flows: dict[Value, Flow] = {}
        self.slots = self.own_slots = graph.values
        self.registers = 0
        self.slot_bytes: dict[int, int] = {}
        self._sent: dict[Value, list[Flow]] = {}
        self._senders: dict[Value, list[Node | None]] = {}
        self._factors: dict[Factor, int] = {}
        self._nonnegative = nonnegative(graph)
        self._row: Draft | None = None
        self._name, self._node = "(model)", cast("Node | None", None)

    @cached_property
    def has_sparse_kernels(self) -> bool:
        """Whether relevance can be kept for alive neurons only."""
        compiled = compiled_backend(self.device)
        kinds = compiled == "cuda" or self.dtype in (torch.float32, torch.float64)
        return kinds and self.backend in ("auto", compiled) and sparse_kernels(self.device) is not None

    def build(self, sweep: Callable[..., Any] | None = None) -> Program:
        """All that was collected, as it will stay. ``sweep``: see :class:`~fastlrp.plan.steps.Program`."""
        return Program(
            inputs=tuple(v.index for v in self.graph.inputs),
            slots=self.slots,
            own_slots=self.own_slots,
            registers=self.registers,
            top=self.top,
            forward=tuple(self.forward),
            backward=tuple(self.backward),
            flows=MappingProxyType({value: self.finite_flow(value, flow) for value, flow in self.flows.items()}),
            rows=tuple(Row(d.node, d.rule, d.flows, d.backend, tuple(d.slots)) for d in self.drafts),
            keyed=MappingProxyType(dict(self.keyed)),
            slot_bytes=MappingProxyType(dict(self.slot_bytes)),
            sweep=sweep,
        )

    # Forward side

    def operation(self, name: str) -> Callable[..., Any]:
        """The backend's implementation of one of our operations; notes it in the current row."""
        selected = select(name, self.backend, self.device, self.dtype)
        self.note(selected.backend)
        implementation: Callable[..., Any] = selected.call
        if selected.backend in ("torch", "reference"):
            return implementation
        plain: Callable[..., Any] = select(name, "torch", self.device, self.dtype).call

        def operation(first: Tensor, *others: Any) -> Any:
            # Compiled kernels know no derivative: where one is asked for, PyTorch's operations take their place.
            return (plain if first.requires_grad else implementation)(first, *others)

        return operation

    def note(self, backend: str) -> None:
        """Who computes, in the current row."""
        if self._row is not None and backend not in self._row.backend.split("+"):
            self._row.backend = "+".join(filter(None, (self._row.backend, backend)))

    def constant(self, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        """What ``make`` returns, made once for all plans of the model: weights in other forms."""
        if key not in self.shared:
            self.shared[key] = make()
        return self.shared[key]

    def cache(
        self,
        run: Callable[..., Any],
        ins: Sequence[int],
        numel: int,
        outs: int = 1,
        itemsize: int | None = None,
        key: tuple[Any, ...] | None = None,
        part: SweepPart | None = None,
    ) -> int:
        """A tensor computed once per sample from slots. Returns its slot, the first of ``outs`` consecutive ones.

        ``key`` names what does not depend on a rule's numbers: another plan of the model takes it over by that name.
        """
        if key in self.keyed:
            return self.keyed[key]
        first = self.slots
        if key is not None:
            self.keyed[key] = first
        self.slots += outs
        slots = tuple(range(first, first + outs))
        self.forward.append(ForwardStep(self._name, self._node, run, tuple(ins), slots, is_cache=True, part=part))
        for slot in slots:
            self.slot_bytes[slot] = numel * (itemsize or self.dtype.itemsize)
        if self._row is not None:
            self._row.slots.extend(slots)
        return first

    def slot_of(self, factor: Factor) -> int | None:
        """The slot that holds a factor's value, made if it needs a product; None if the factor is 1."""
        if factor.value is None or factor.scale is None:
            return factor.scale if factor.value is None else factor.value.index
        if factor not in self._factors:
            ins = (factor.value.index, factor.scale)
            self._factors[factor] = self.cache(torch.mul, ins, factor.value.numel)
        return self._factors[factor]

    def share(self, flow: Flow, z: int, numel: int, stabilizer: Stabilizer) -> int | None:
        """Slot of ``factor / st(z)``: what a proportional rule multiplies the arriving register with; None for 1.

        In the limit of epsilon to 0 the factor ``z`` cancels against the denominator ``z``.
        """
        if stabilizer.in_limit and flow.factor.value is not None and flow.factor.value.index == z:
            return flow.factor.scale
        factor, dtype = self.slot_of(flow.factor), self.dtype
        ins = [z] if factor is None else [z, factor]
        if stabilizer.is_absolute:
            op, epsilon = self.operation("elementwise_coefficients"), stabilizer.epsilon

            def shares(z: Tensor, f: Tensor | None = None) -> Tensor:
                f = f if f is None or f.dtype == z.dtype else f.to(z.dtype)  # The factor may be of a wider dtype.
                quotient: Tensor = op(z, None, None, f, "epsilon", 1, epsilon)[0]
                return quotient
        else:

            def shares(z: Tensor, f: Tensor | None = None) -> Tensor:
                inverse = stabilizer.reciprocal(wide(z))
                return (inverse if f is None else inverse.mul_(f)).to(z.dtype)

        if dtype == torch.float16:
            return self.cache(lambda z, *f: representable(shares(z, *f), z, dtype), ins, numel)
        return self.cache(shares, ins, numel)

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

    def is_nonnegative(self, value: Value) -> bool:
        """True if the graph proves that no entry is below zero."""
        return value in self._nonnegative

    def sign_slot(self, value: Value) -> int:
        """Slot of the value itself where it may be negative, or of False where this input's turns out not to be.

        Many models get images in [0, 1]: one look at the input saves half of a signed first layer. Not on a GPU,
        where looking would wait for the device.
        """
        look = self.device.type == "cpu"

        def value_or_false(x: Tensor) -> Any:
            return False if look and x.numel() and x.min().item() >= 0 else x

        return self.cache(value_or_false, [value.index], 0, key=("sign", value))

    def add_forward(
        self, node: Node, extra_outs: int = 0, call: Callable[..., Any] | None = None, part: SweepPart | None = None
    ) -> int:
        """The node's own forward step; ``call`` replaces its function where more than the output is wanted."""
        first = self.slots
        self.slots += extra_outs
        outs = (node.output.index, *range(first, first + extra_outs))
        ins = tuple(v.index for v in node.inputs)
        run = call or bind_forward(node)
        self.forward.append(ForwardStep(step_name(node), node, run, ins, outs, is_cache=False, part=part))
        return first

    def finite_flow(self, value: Value, flow: Flow) -> Flow:
        """The same flow read with a factor that is 0 where the value is infinite, for nothing times infinity is NaN."""
        slot = self.finite.get(value) if flow.factor == Factor(value) else None
        return flow if slot is None else Flow(flow.register, Factor(None, slot))

    # Backward side

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
        ``by_position``, ``overwrites``, ``takes_bf16``, ``up``, ``up_at``, ``up_from`` and ``is_linear`` of
        :class:`~fastlrp.plan.steps.BackwardStep`.
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

    def backend_of(self, name: str) -> str:
        """Which backend :meth:`operation` would take."""
        return select(name, self.backend, self.device, self.dtype).backend

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
        self.flows[value] = flow
        return flow

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
        )
        return Flow(register, Factor(value) if chained else Factor())
