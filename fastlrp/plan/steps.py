"""What a plan consists of: forward steps that fill slots, and backward steps that move a block of targets down.

*Slots* hold tensors with a batch axis, ``(B, …)``: activations (slot = ``Value.index``) and caches. *Registers* hold
what flows down, with a target axis, ``(B, K, …)``. A :class:`Flow` says how a register reads as relevance:
``R = value * scale * register``. Factors are kept apart so that an element-wise rule costs nothing per target: they
melt into the next layer's coefficients, which are computed once per sample.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from torch import Tensor

from fastlrp.capture.graph import Node, Value
from fastlrp.plan.forms import Form
from fastlrp.plan.geometry import PoolGeometry
from fastlrp.plan.rows import Row
from fastlrp.plan.window import Window

LANES = 16
"""Sparse steps compute targets in multiples of this many."""

BLOCK = 32
"""Targets that a sparse step takes at once: two AVX-512 registers, and rows of two cache lines."""


@dataclass(frozen=True)
class Factor:
    """What a register must be multiplied with to be relevance: an activation, a cached slot, both or neither."""

    value: Value | None = None
    scale: int | None = None

    @property
    def slots(self) -> tuple[int, ...]:
        """The slots whose product it is."""
        return tuple(s for s in (None if self.value is None else self.value.index, self.scale) if s is not None)


@dataclass(frozen=True)
class Flow:
    """``R = factor * register``. A ``value`` factor equal to the place itself is the chained form (``c``)."""

    register: int
    factor: Factor = Factor()


@dataclass(frozen=True)
class SweepPart:
    """A step that one sweep over a layer's output can do with others.

    Attributes:
        kind: a ReLU, the max-pool after it, or the coefficients of the layer before it; or the sum of two maps before
            a ReLU, or its share, what a proportional rule multiplies what arrives with.
        arguments: of the operation that a kernel does, as far as this step brings them: a pool's kernel size, stride,
            padding, dilation and ceil_mode; rule, alpha and epsilon.
        slots: of coefficients: z, P, N and the factor, None where the rule takes none; of a share: z and the factor.
    """

    kind: Literal["relu", "pool", "coefficients", "sum", "share"]
    arguments: tuple[Any, ...] = ()
    slots: tuple[int | None, ...] = ()


def step_name(node: Node, rule: object = "") -> str:
    """``"features.3 (conv2d, Epsilon)"``: the module's path, the operation, and the rule or words about it."""
    word = rule if isinstance(rule, str) else type(rule).__name__
    return f"{node.path or '(model)'} ({', '.join(filter(None, (node.operation, word)))})"


def value_name(value: Value, words: str = "") -> str:
    """The same of the node that made a value; of the model's inputs their own name."""
    if value.producer is not None:
        return step_name(value.producer, words)
    return f"{value.name} ({', '.join(filter(None, ('input', words)))})"


@dataclass(frozen=True, eq=False)
class ForwardStep:
    """``state[out…] = run(*state[in…])``.

    Attributes:
        name: as :func:`step_name` makes it. node: that it stands for.
        part: of what :mod:`fastlrp.plan.passes.fusion` makes one step of.
        is_cache: a coefficient, made for relevance alone.
        with_relu: the same as ``run`` with a ReLU behind it, if one call does both.
    """

    name: str
    node: Node | None
    run: Callable[..., Any]
    ins: tuple[int, ...]
    outs: tuple[int, ...]
    is_cache: bool
    part: SweepPart | None = None
    with_relu: Callable[..., Any] | None = None


@dataclass(frozen=True, eq=False)
class BackwardStep:
    """``registers[out…] = run(*registers[in…], *state[slots…])``; with several outs ``run`` gives a tuple.

    Attributes:
        name: as :func:`step_name` makes it. node: that it stands for.
        numels: entries of each result, and work: floating-point operations, both of one sample and target.
        form: the same in the terms of the sparse kernels, if it has one.
        least: as many targets cost no more than one (sparse kernels take them in multiples of a vector).
        reduced: the same as ``run`` with the result's channels summed up, ``(B, K, 1, *S)``.
        unpool, unpooled: of a max-pool and of the layer above it, which :mod:`fastlrp.plan.passes.fusion` joins.
        accepts_one_hot: whether ``run`` takes :class:`~fastlrp.targets.one_hot.OneHot` in the place of initial
            relevance.
        keeps_one_hot: whether it then gives another :class:`~fastlrp.targets.one_hot.OneHot`, as copies do.
        up: the transpose, ``up(*registers[out…], *state[slots…])``: what the results' cotangents ``(B, G, …)`` are at
            ``ins``; with several ins a tuple. Of several results those may be None that nothing comes from. None: it
            is found by automatic differentiation, see :mod:`fastlrp.plan.transpose`.
        up_from: of attention the same for cotangents of the positions from ``first`` on alone, ``up_from(first, …)``,
            before which they are zero; None where an earlier position sees a later one.
        up_at: of a linear layer over positions the same for some of them, ``up_at(positions, …)``.
        is_linear: whether ``run`` is linear in its registers, so that it has a transpose at all.
        embeds: of a step that writes its operand into zeros. adds: whether it is the sum of its registers alone.
        fresh: whether its results share memory with nothing that another step reads.
        by_position: whether it treats the first axis after the targets position by position, in registers and slots
            alike, so that it can do with some of the positions.
        overwrites: by the position of a register among its operands, the same as ``run`` that may write over it; what
            :mod:`fastlrp.plan.passes.joining` chooses from.
        moves_from: of a step that brings each entry back to where the model copied it from, and does nothing else: the
            sizes of what arrives. numbers: slots that hold one number everywhere, known beforehand.
        into: the same as ``run``, which writes its results where they are wanted, ``into(rooms, times, …)``; see
            :data:`Rooms`.
        senders: of the sum of what several readers of a value send to it, the node that sent each operand.
        takes_bf16: whether its registers may be of bfloat16 although the plan is of float32: it multiplies them with
            weights of bfloat16, or only moves and adds them. Others get them in float32.
        in_full: the same as ``run`` with a result of float32, where that one's is of bfloat16; it writes into memory of
            its own. :mod:`fastlrp.plan.passes.widening` takes it where a reader wants float32.
        out, numel: of the first, as a rule the only result, and of the largest.
    """

    name: str
    node: Node | None
    run: Callable[..., Any]
    ins: tuple[int, ...]
    slots: tuple[int, ...]
    outs: tuple[int, ...]
    numels: tuple[int, ...]
    work: int
    form: Form | None = None
    least: int = 1
    reduced: Callable[..., Tensor] | None = None
    unpool: PoolGeometry | None = None
    unpooled: Callable[..., Tensor] | None = None
    accepts_one_hot: bool = False
    keeps_one_hot: bool = False
    up: Callable[..., Any] | None = None
    up_at: Callable[..., Tensor] | None = None
    up_from: Callable[..., Tensor | None] | None = None
    is_linear: bool = True
    embeds: Window | None = None
    adds: bool = False
    fresh: bool = False
    by_position: bool = False
    overwrites: Mapping[int, Callable[..., Any]] = field(default_factory=dict)
    takes_bf16: bool = False
    moves_from: tuple[int, ...] | None = None
    numbers: Mapping[int, float] = field(default_factory=dict)
    into: Callable[..., Tensor] | None = None
    senders: tuple[Node | None, ...] = ()
    in_full: Callable[..., Tensor] | None = None
    out: int = field(init=False)
    numel: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "out", self.outs[0])
        object.__setattr__(self, "numel", max(self.numels))


@dataclass(frozen=True, eq=False)
class Emission:
    """A step that hands out the relevance of a value: ``register * state[slots…]``.

    Attributes:
        whole: False where entries that no later step reads need not be computed; the register may then be compact.
    """

    value: Value
    register: int
    slots: tuple[int, ...]
    whole: bool = True

    @property
    def name(self) -> str:
        """``"features.3 (conv2d, relevance)"``."""
        return value_name(self.value, "relevance")


Steps = list[tuple[Any, tuple[int, ...]]]
"""Backward steps and emissions in order, each with the registers that are not needed after it."""

Sink = Callable[..., None]
"""``sink(value, first target, register, factors)``: relevance of ``value`` is the product of register and factors. With
``rows`` it is that of some samples of the batch."""


@dataclass(frozen=True, eq=False)
class Alternative:
    """``step`` does what the steps ``replaces`` do together, without the registers between them, ``inner``."""

    step: BackwardStep
    replaces: frozenset[BackwardStep]
    inner: frozenset[int]


@dataclass(frozen=True, eq=False)
class Program:
    """All steps of one model under one composite, made by :meth:`fastlrp.plan.builder.Builder.build`. It never changes.

    Attributes:
        inputs: slots of the model's inputs. slots: how many there are. own_slots: as many are the graph's values and
            the winners of its pools, the same ones under every composite. registers: how many there are.
        top: the register of the initial relevance.
        forward: in an order in which each finds what it reads. backward: from the output down.
        flows: how the relevance of each value that gets some is read. rows: of the plan's table.
        keyed: slots that another plan of the model has under the same key. slot_bytes: of coefficients, per sample.
        sweep: the operation that does a ReLU, the pool after it and coefficients at once, if the backend has one.
        alternatives: steps that stand for several of ``backward`` where nothing between them is asked for.
        made: how the slots of convolutions are made that Winograd's filtering may make: ``"plain"``, ``"filtered"``,
            ``"alike"``, ``"looked"`` or ``"looked, alike"``, by what the rules above read.
        up_copies: weights that the way up through a node keeps copies of, of so many ``nbytes``.
    """

    inputs: tuple[int, ...]
    slots: int
    own_slots: int
    registers: int
    top: int
    forward: tuple[ForwardStep, ...]
    backward: tuple[BackwardStep, ...]
    flows: Mapping[Value, Flow]
    rows: tuple[Row, ...]
    keyed: Mapping[tuple[Any, ...], int]
    slot_bytes: Mapping[int, int]
    sweep: Callable[..., Any] | None = None
    alternatives: tuple[Alternative, ...] = ()
    made: Mapping[int, str] = field(default_factory=dict)
    up_copies: Mapping[Node, tuple[Any, ...]] = field(default_factory=dict)

    def serves(self, other: Program) -> bool:
        """Whether the model's values have the digits that the other program reads."""
        return all(
            way == "filtered" or self.made.get(slot, "plain") in (way, "plain") for slot, way in other.made.items()
        )

    def steps_down(self, wanted: frozenset[int]) -> Sequence[BackwardStep]:
        """The backward steps, with alternatives in the place of what they replace, unless that fills ``wanted``."""
        place = {s: a for a in self.alternatives if a.inner.isdisjoint(wanted) for s in a.replaces}
        kept: dict[BackwardStep, None] = {}
        for step in self.backward:
            kept[place[step].step if step in place else step] = None
        return tuple(kept)

    @cached_property
    def takes_one_hot(self) -> bool:
        """True if the first steps are copies and then a linear layer, which selects rows for one-hot targets."""
        hot = {self.top}
        for step in self.backward:
            if hot.isdisjoint(step.ins):
                continue
            if not step.accepts_one_hot:
                return False
            if step.keeps_one_hot:
                hot.update(step.outs)
        return True

    def steps_to(
        self, wanted: frozenset[int], have: frozenset[int], always: Callable[[ForwardStep], bool] = lambda step: False
    ) -> list[ForwardStep]:
        """Forward steps that lead from the slots ``have`` to ``wanted``, and those for which ``always`` is true."""
        needed, steps = set(wanted - have), []
        for step in reversed(self.forward):
            if always(step) or needed.intersection(step.outs):
                steps.append(step)
                needed.update(slot for slot in step.ins if slot not in have)
        return steps[::-1]
