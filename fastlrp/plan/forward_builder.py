"""The half of lowering that is about the forward pass: its steps, the slots that they fill, and who computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fastlrp.backends.dispatch import BACKEND, compiled_backend, select, sparse_kernels
from fastlrp.capture.bind import bind_forward
from fastlrp.capture.graph import Graph, Node, Value
from fastlrp.capture.signs import nonnegative
from fastlrp.looking import may_look
from fastlrp.plan.narrow import representable, wide
from fastlrp.plan.rows import Draft, Filtered
from fastlrp.plan.steps import Factor, Flow, ForwardStep, SweepPart, step_name
from fastlrp.precision import FULL, Products
from fastlrp.reference.weightless import MaxPoolMode
from fastlrp.stabilizer import Stabilizer


@dataclass(eq=False)
class ForwardBuilder:
    """Collects forward steps and gives their results slots, each made once.

    Attributes:
        graph, backend, device, dtype, max_pool, products: what the plan is made for.
        shared: weights in other forms, for all plans of the model. forward: the steps so far.
        slots: how many there are; the first ``own_slots`` are the same ones under every composite.
        keyed: slots by the names under which another plan has the same. slot_bytes: of caches, per sample.
        numbers: slots that hold one number everywhere, known beforehand.
        uneven: values whose relevance per unit may differ from place to place by more than the network's weights make
            it, :mod:`fastlrp.plan.products.even`; complete when all is lowered. filtered: those that Winograd's
            filtering
            may make, and how they are made in the end: ``"plain"``, ``"filtered"``, ``"alike"``, ``"looked"`` or
            ``"looked, alike"``.
        passed: max-pools of maps that relevance per unit of activation passes as it is.
        pooled: values below these. They take the first of equal entries, so that places that read the same must give
            the same, as those of a flat background do.
        compared: values below any other choice of entries. divided: outputs by which a rule divides what is uneven.
            All three are complete when all is lowered.
        kept_full: nodes whose products stay float32 under the rules of this plan, :mod:`fastlrp.plan.bottlenecks`.
        beside: slots of what a node's forward step makes beside its output: the winners of a max-pool.
    """

    graph: Graph
    backend: str
    device: torch.device
    dtype: torch.dtype
    shared: dict[Any, Any] = field(default_factory=dict)
    max_pool: MaxPoolMode = "winner"
    products: Products = FULL
    forward: list[ForwardStep] = field(init=False, default_factory=list)
    slots: int = field(init=False)
    own_slots: int = field(init=False)
    keyed: dict[tuple[Any, ...], int] = field(init=False, default_factory=dict)
    slot_bytes: dict[int, int] = field(init=False, default_factory=dict)
    numbers: dict[int, float] = field(init=False, default_factory=dict)
    uneven: set[Value] = field(init=False, default_factory=set)
    filtered: dict[Value, Callable[[], str]] = field(init=False, default_factory=dict)
    passed: set[Node] = field(init=False, default_factory=set)
    pooled: set[Value] = field(init=False, default_factory=set)
    compared: set[Value] = field(init=False, default_factory=set)
    divided: set[Value] = field(init=False, default_factory=set)
    kept_full: frozenset[Node] = field(init=False, default=frozenset())
    beside: dict[Node, int] = field(init=False, default_factory=dict)
    _factors: dict[Factor, int] = field(init=False, default_factory=dict)
    _row: Draft | None = field(init=False, default=None)
    _name: str = field(init=False, default="(model)")
    _node: Node | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.slots = self.own_slots = self.graph.values
        self._nonnegative = nonnegative(self.graph)

    @cached_property
    def has_sparse_kernels(self) -> bool:
        """Whether relevance can be kept for alive neurons only."""
        compiled = compiled_backend(self.device)
        kinds = compiled == "cuda" or self.dtype in (torch.float32, torch.float64)
        return kinds and self.backend in ("auto", compiled) and sparse_kernels(self.device) is not None

    def operation(self, name: str, noted: bool = True) -> Callable[..., Any]:
        """The backend's implementation of one of our operations; notes it in the current row, of the way down."""
        selected = select(name, self.backend, self.device, self.dtype)
        if noted:
            self.note(selected.backend)
        implementation: Callable[..., Any] = selected.call
        if selected.backend in ("torch", "reference"):
            return implementation
        plain: Callable[..., Any] = select(name, "torch", self.device, self.dtype).call

        def operation(first: Tensor, *others: Any) -> Any:
            # Compiled kernels know no derivative: where one is asked for, PyTorch's operations take their place.
            return (plain if first.requires_grad else implementation)(first, *others)

        return operation

    def operation_into(self, name: str) -> Callable[..., None] | None:
        """The same operation, which writes its results into memory that it is given first; None if there is none.

        It takes float32 and float64, and knows no derivative.
        """
        if self.dtype not in (torch.float32, torch.float64):
            return None
        return getattr(BACKEND[self.backend_of(name)].load(name), f"{name}_into", None)

    def note(self, backend: str) -> None:
        """Who computes, in the current row."""
        if self._row is not None:
            self._row.note(backend)

    def note_filtered(self, what: Filtered, looked: bool = False) -> None:
        """That Winograd's filtering makes these products, ``looked``: after a look at them; in the current row."""
        if self._row is not None:
            (self._row.looked if looked else self._row.filtered).add(what)

    def backend_of(self, name: str) -> str:
        """Which backend :meth:`operation` would take."""
        return select(name, self.backend, self.device, self.dtype).backend

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

    def number(self, number: float, like: Value) -> int:
        """Slot of one number as large as a value, which takes no memory."""

        def as_large(x: Tensor) -> Tensor:
            return torch.full((), number, dtype=x.dtype, device=x.device).expand_as(x)  # Not a copy from the host.

        slot = self.cache(as_large, [like.index], 0)
        self.numbers[slot] = number
        return slot

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
        part = SweepPart("share", (stabilizer.epsilon,), (z, factor)) if stabilizer.is_absolute else None
        return self.cache(shares, ins, numel, part=part)

    def is_nonnegative(self, value: Value) -> bool:
        """True if the graph proves that no entry is below zero."""
        return value in self._nonnegative

    def sign_slot(self, value: Value) -> int:
        """Slot of the value itself where it may be negative, or of False where this input's turns out not to be.

        Many models get images in [0, 1]: one look at the input saves half of a signed first layer. Not on a GPU,
        where looking would wait for the device.
        """

        def value_or_false(x: Tensor) -> Any:
            return False if may_look(x) and x.numel() and x.min().item() >= 0 else x

        return self.cache(value_or_false, [value.index], 0, key=("sign", value))

    def add_forward(
        self, node: Node, extra_outs: int = 0, call: Callable[..., Any] | None = None, part: SweepPart | None = None,
        with_relu: Callable[..., Any] | None = None,
    ) -> int:  # fmt: skip
        """The node's own forward step; ``call`` replaces its function where more than the output is wanted."""
        first = self.slots
        self.slots += extra_outs
        outs = (node.output.index, *range(first, first + extra_outs))
        ins = tuple(v.index for v in node.inputs)
        run = call or bind_forward(node)
        step = ForwardStep(step_name(node), node, run, ins, outs, is_cache=False, part=part, with_relu=with_relu)
        self.forward.append(step)
        return first
