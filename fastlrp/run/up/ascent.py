"""The way up: the transposed backward steps in reverse order, from the input's registers to those that are asked for.

Down, a target's relevance goes from the register at the output to those at the inputs; that is a linear map of one
sample. Its transpose takes a group of input entries, as weights of their relevance, to the output: the relevance of the
group per unit of initial relevance at every entry. What stands at a register in between is the same for that register.

A cotangent has the shape of its register with groups in the place of targets, ``(B, G, …)``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fastlrp.capture.graph import Value
from fastlrp.errors import UnsupportedOperationError
from fastlrp.plan.compact import Compact
from fastlrp.plan.plan import Plan
from fastlrp.plan.products.reduced import widened
from fastlrp.plan.step_names import note_up, profiling, record_function
from fastlrp.plan.steps import BackwardStep
from fastlrp.plan.transpose import Shape, results, transposed
from fastlrp.run.sparse.upward import SparseUp
from fastlrp.run.up.boxed_ups import UPS
from fastlrp.run.up.boxes import Boxed, Boxes, form_of
from fastlrp.run.up.tails import Tail, Tails

Cotangent = Tensor | Boxed | Tail | Compact
"""``(B, G, …)``, whole, in boxes, from a position on, or of alive neurons."""

Take = Callable[[int, int, Cotangent], None]
"""``take(register, first group, cotangent)``."""


@dataclass(frozen=True, eq=False)
class Route:
    """The steps between inputs and the registers that are asked for.

    Attributes:
        steps: in the order of the way up. starts: inputs with their registers, where it begins. ends: registers that
            are asked for.
    """

    steps: tuple[BackwardStep, ...]
    starts: tuple[Value, ...]
    ends: frozenset[int]

    @property
    def slots(self) -> frozenset[int]:
        """What its steps read."""
        return frozenset(slot for step in self.steps for slot in step.slots)


def route(plan: Plan, ends: frozenset[int], without: Sequence[BackwardStep] = ()) -> Route:
    """The way up from the inputs to the registers ``ends``.

    Args:
        without: steps above the ends.

    Raises:
        UnsupportedOperationError: if a step on the way is not linear in relevance.
    """
    program, starts = plan.program, plan.explained_inputs()
    below, above = set(ends), {plan.flows[value].register for value in starts}
    leading = []
    for step in program.steps_down(ends | above):
        if below.intersection(step.ins) and step not in without:
            below.update(step.outs)
            leading.append(step)
    steps = []
    for step in reversed(leading):
        if above.intersection(step.outs):
            above.update(step.ins)
            steps.append(step)
    for step in steps:
        if not step.is_linear:
            raise UnsupportedOperationError(
                f"the way up needs rules that are linear in relevance, and {step.name} is not: use direction='down'"
            )
    return Route(tuple(steps), starts, ends)


def not_linear(plan: Plan) -> str | None:
    """The first step that has no transpose; None if all have."""
    return next((step.name for step in plan.program.backward if not step.is_linear), None)


@dataclass(eq=False)
class Ascent:
    """One way up.

    Attributes:
        plan, route: which. state: slots ``(B, …)``. shapes: of the plan's registers, for steps that need them.
        boxes: of the registers in which groups reach a part of the map alone. made_bytes: of slots that the record did
            not hold, and of weights that steps keep copies of. alive: steps that are computed for alive neurons only.
        tails: cuts what lies before a group's first position; None where it is not looked at.
    """

    plan: Plan
    route: Route
    state: list[Any]
    shapes: Callable[[], dict[int, Shape]]
    boxes: Boxes = field(default_factory=dict)
    made_bytes: int = 0
    tails: Tails | None = None
    alive: Mapping[BackwardStep, SparseUp] = field(default_factory=dict)

    @staticmethod
    def bytes_of_copies(plan: Plan, path: Route, alive: Mapping[BackwardStep, SparseUp]) -> int:
        """Of the weights that a route's steps keep copies of, and of those that are there while one is made."""
        dense = dict.fromkeys(step.node for step in path.steps if step not in alive and step.node is not None)
        kept = [copy.nbytes for node in dense for copy in plan.program.up_copies.get(node, ())]
        kept += [sparse.copied_bytes for sparse in alive.values()]
        return sum(kept) + 2 * max(kept, default=0)

    def without_alive(self) -> int:
        """Compute all steps for all neurons; how many bytes of copies that saves."""
        saved = self.bytes_of_copies(self.plan, self.route, self.alive)
        self.alive = {}
        saved -= self.bytes_of_copies(self.plan, self.route, self.alive)
        self.made_bytes -= saved
        return saved

    @cached_property
    def last(self) -> dict[int, int]:
        """The position of the last step that adds to a register."""
        return {register: i for i, step in enumerate(self.route.steps) for register in step.ins}

    def ascend(self, positions: range, cotangents: dict[int, Cotangent], first: int, take: Take) -> None:
        """Go through the steps at ``positions``; what arrives at the route's ends goes to ``take``.

        Args:
            cotangents: of groups from ``first`` on, by register; left are those that later steps read.
        """
        steps, ends = self.route.steps, self.route.ends
        name = ""
        try:
            for position in positions:
                step = steps[position]
                name = step.name
                arriving = [cotangents.pop(out, None) for out in step.outs]
                if all(t is None for t in arriving):
                    continue
                for register, t in zip(step.ins, self.through(step, arriving), strict=True):
                    cotangents[register] = _added(cotangents[register], t) if register in cotangents else t
                del arriving
                for register in dict.fromkeys(step.ins):  # A sum of one register twice has it twice.
                    if register in ends and self.last[register] == position:
                        # An end that nothing on the route reads is not needed any more.
                        done = cotangents[register] if register in self.read else cotangents.pop(register)
                        take(register, first, done)
        except Exception as error:
            note_up(error, name)
            raise

    @cached_property
    def read(self) -> frozenset[int]:
        """Registers that steps read."""
        return frozenset(out for step in self.route.steps for out in step.outs)

    def through(self, step: BackwardStep, arriving: Sequence[Cotangent | None]) -> Sequence[Cotangent]:
        """One step up, in boxes where that is planned."""
        if profiling():
            with record_function(f"up: {step.name}"):
                return self._through(step, arriving)
        return self._through(step, arriving)

    def _through(self, step: BackwardStep, arriving: Sequence[Cotangent | None]) -> Sequence[Cotangent]:
        first = arriving[0]
        if isinstance(first, Boxed) and all(register in self.boxes for register in step.ins):
            form = form_of(step)
            return UPS[type(form)](form, first, [self.boxes[register] for register in step.ins], self.state)
        if self.tails is not None:
            tails = self.tails.through(step, arriving, self.state)
            if tails is not None:
                return tails
        sparse = self.alive.get(step)
        if sparse is not None and first is not None:
            compact = sparse(first if isinstance(first, Compact) else on_whole_map(first))
            if compact is not None:
                return (compact,)
        up = transposed(step, self.shapes)
        found = up(
            *(None if t is None else on_whole_map(t) for t in arriving), *(self.state[slot] for slot in step.slots)
        )
        return found if isinstance(found, tuple) else (found,)


def on_whole_map(t: Cotangent) -> Tensor:
    """The cotangent as a tensor of the whole map, with zeros where its form holds nothing."""
    return t if isinstance(t, Tensor) else t.dense()


def _added(one: Cotangent, other: Cotangent) -> Cotangent:
    # Not in place: what a step gives may be a view of another register.
    if isinstance(one, Boxed) and isinstance(other, Boxed) and one.box is other.box:
        return Boxed(one.rows + other.rows, one.box, one.first)
    if isinstance(one, Tail) and isinstance(other, Tail):
        both = one.plus(other)
        if both is not None:
            return both
    return on_whole_map(one) + on_whole_map(other)


def register_shapes(plan: Plan, state: list[Any], batch: int) -> dict[int, Shape]:
    """Shapes of all registers, by one target that brings nothing."""
    registers: dict[int, Any] = {}
    output = plan.graph.output
    registers[plan.program.top] = torch.zeros((batch, 1, *output.sizes), dtype=plan.dtype, device=plan.device)
    found = {plan.program.top: Shape(output.sizes, plan.dtype)}
    last = {register: i for i, step in enumerate(plan.program.backward) for register in (*step.ins, *step.outs)}
    for position, step in enumerate(plan.program.backward):
        if plan.mixes_dtypes and not step.takes_bf16:
            registers = {r: widened(held) for r, held in registers.items()}
        made = step.run(*[registers[r] for r in step.ins], *[state[slot] for slot in step.slots])
        for out, result in zip(step.outs, results(made), strict=True):
            registers[out], found[out] = result, Shape(tuple(result.shape[2:]), _flowing(plan, result))
        for register in (*step.ins, *step.outs):
            if last[register] == position:
                registers.pop(register, None)
    return found


def _flowing(plan: Plan, result: Tensor) -> torch.dtype:
    """The dtype of cotangents, which stay in float32 where registers may be of bfloat16."""
    return plan.dtype if plan.mixes_dtypes and result.dtype == torch.bfloat16 else result.dtype
