"""How one captured model is explained under one composite: its program, and the schedules that calls ask for."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache, cached_property
from typing import Any, get_args

import torch

from fastlrp.backends.extension import extension, extension_error, loaded
from fastlrp.capture.graph import Graph, Node, Value
from fastlrp.composites import Composite
from fastlrp.kinds.registry import RULED_KINDS
from fastlrp.pickling import StaysHere
from fastlrp.plan.assign import assign_rules
from fastlrp.plan.bounded import Bounded
from fastlrp.plan.builder import Builder
from fastlrp.plan.kept import Keep, kept_slots
from fastlrp.plan.lower import lower, lower_node
from fastlrp.plan.neck import Neck
from fastlrp.plan.passes import check as program_check
from fastlrp.plan.passes.batch_parts import BatchParts, batch_parts
from fastlrp.plan.passes.fusion import fuse_relus, fuse_sweeps
from fastlrp.plan.passes.moving import MOST_KNOWN, Known
from fastlrp.plan.passes.residuals import fuse_residuals
from fastlrp.plan.paths.choose import Chooser
from fastlrp.plan.paths.path import Path
from fastlrp.plan.rows import Row
from fastlrp.plan.schedule import Schedule, schedule_backward, schedule_forward
from fastlrp.plan.steps import BLOCK, BackwardStep, Emission, Flow, Steps
from fastlrp.plan.table import PlanTable, plan_table
from fastlrp.precision import FULL, Products
from fastlrp.rules import Custom, Pass, Rule
from fastlrp.rules.rule import all_rules, stabilizers

KEPT_APART = 8
"""Plans in which some values have registers of their own: those of the latest sets of layers asked for."""

KEPT_SCHEDULES = 64
"""Schedules of each sort that a plan remembers: those of the latest sets of values, slots and counts asked for."""

# Largest register that a block of targets may fill on a CPU. Above 32 MiB the C library gives memory back to the
# system after every use and each page is mapped anew, which costs more than the arithmetic.
CPU_REGISTER_BYTES = 24 << 20
GPU_REGISTER_BYTES = 1 << 30

GPU_SPARSE_BLOCK = 128
"""Targets from which on the choice between dense and sparse stays the same: a whole tile of the sparse product."""


@cache
def _settle_allocator() -> None:
    """Let the C library keep buffers of this size instead of returning them to the system after each use.

    glibc raises its limits for that (up to 32 MiB) when a large buffer is freed for the first time. Measured on VGG-16,
    32 targets: 13,000 page faults per target in the widest layer before, 500 after.
    """
    torch.empty((32 << 20) - (1 << 16), dtype=torch.uint8)


class Plan(StaysHere):
    """How one captured model is explained under one composite: data that :mod:`fastlrp.run.runner` executes.

    Attributes:
        graph, composite, rules, backend, device, dtype, products: what it was made from; rules by node.
        program: all steps. linear: whether relevance depends linearly on what arrives.
        chooser: which layers go the sparse way. block_bytes: largest register of a block of targets. sparse_block:
            targets from which on the choice between dense and sparse stays the same.
        coefficients: slots that the way down to the inputs reads. necks: those found so far, by schedule and targets.
        moves: groups of steps whose moves become one copy. settled: ways down that :mod:`fastlrp.run.settled` found.
        latest_paths, latest_direction: for ``print`` alone: what the record that was asked last took, which has them as
            its own ``paths`` and ``direction``.

    Raises:
        UnsupportedOperationError: if relevance would reach an operation without a rule.
    """

    instead = "pickle or copy its explainer, which captures anew"

    def __init__(
        self,
        graph: Graph,
        composite: Composite,
        backend: str,
        device: torch.device,
        dtype: torch.dtype,
        chooser: Chooser | None = None,
        shared: dict[Any, Any] | None = None,
        products: Products = FULL,
        apart: frozenset[Value] = frozenset(),
    ) -> None:
        self.products, self.backend, self._shared = products, backend, {} if shared is None else shared
        self.chooser = chooser or Chooser()
        self.latest_paths: Mapping[str, Path] = {}
        self.latest_direction: object = None
        self.graph, self.composite, self.device, self.dtype = graph, composite, device, dtype
        self.rules = assign_rules(graph, composite)
        self.chooser.check_paths([node.path for node in graph.nodes if node.kind in ("conv", "linear")])
        if device.type == "cpu" and extension_error() is None:
            weakref.finalize(self, extension().sparse_release)
        self.linear = all(rule is None or rule.linear_in_relevance for rule in self.rules.values())
        self.linear = self.linear and not self._calls_functions
        self.block_bytes = GPU_REGISTER_BYTES if device.type == "cuda" else CPU_REGISTER_BYTES
        self.sparse_block = BLOCK if device.type == "cpu" else GPU_SPARSE_BLOCK
        if device.type == "cpu":
            _settle_allocator()
        with torch.no_grad():
            builder = Builder(graph, backend, device, dtype, self._shared, composite.max_pool, products, apart)
            self.program = lower(builder, self.rules, self.lower_node, type(self).lower_node is Plan.lower_node)
        self._kept_full = len(builder.kept_full)
        if program_check.ENABLED:
            program_check.check_program(self.program)
        self._schedules: Bounded[tuple[Value | bool, ...], Schedule] = Bounded(KEPT_SCHEDULES)
        self.coefficients = self.schedule(self.explained_inputs()).slots
        self._forwards: Bounded[Keep, Schedule] = Bounded(KEPT_SCHEDULES)
        self._completions: Bounded[tuple[frozenset[int], frozenset[int]], Schedule] = Bounded(KEPT_SCHEDULES)
        self._parts: Bounded[tuple[Schedule, int], BatchParts | None] = Bounded(KEPT_SCHEDULES)
        # By the steps themselves, each of which is equal to itself alone.
        self.fusions: Bounded[tuple[BackwardStep | Emission, ...], Steps] = Bounded(KEPT_SCHEDULES)
        self.moves = Known(MOST_KNOWN)
        self.necks: Bounded[tuple[Schedule, int], Neck | None] = Bounded(KEPT_SCHEDULES)
        self.settled: Bounded[tuple[Any, ...], Any] = Bounded(KEPT_SCHEDULES)
        self._apart: Bounded[frozenset[Value], Plan] = Bounded(KEPT_APART)

    def with_apart(self, values: frozenset[Value]) -> Plan:
        """The same plan in which these values have registers of their own, see :class:`fastlrp.plan.builder.Builder`.

        For questions about every neuron of a layer: a register of this plan may be that of several values at once, and
        its factor 0 at a neuron that nobody reads.
        """
        how = (self.graph, self.composite, self.backend, self.device, self.dtype, self.chooser, self._shared)
        return self._apart.get(values, lambda: type(self)(*how, self.products, values))

    def lower_node(self, b: Builder, node: Node, rule: Rule | None, flow: Flow) -> None:
        """Append the steps of one node; see :func:`fastlrp.plan.lower.lower`."""
        lower_node(b, node, rule, flow)

    # Names

    def calls(self) -> dict[str, Value]:
        """Functional calls by name, ``path.operation``, in execution order: what a module does besides its children."""
        found: dict[str, Value] = {}
        for node in self.graph.nodes:
            if node.kind in (*RULED_KINDS, "cat") and self.graph.modules.get(node.path) is not node.output:
                name = first = ".".join(filter(None, (node.path, node.operation)))
                number = 0
                while name in found or name in self.graph.modules:
                    number += 1
                    name = f"{first}_{number}"
                found[name] = node.output
        return found

    @cached_property
    def work(self) -> int:
        """Floating-point operations of the way down, per sample and target."""
        return sum(step.work for step in self.program.backward)

    @property
    def mixes_dtypes(self) -> bool:
        """Whether registers may be of bfloat16 although the plan is of float32."""
        return self.products.reduced and self.dtype == torch.float32

    # Schedules

    @property
    def flows(self) -> Mapping[Value, Flow]:
        """How the relevance of each value that gets some is read."""
        return self.program.flows

    @property
    def rows(self) -> tuple[Row, ...]:
        """The layers from the output down, and what happens to relevance there."""
        return self.program.rows

    @property
    def takes_one_hot(self) -> bool:
        """True if a linear layer comes first, after copies at most, which selects rows for one-hot targets."""
        return self.program.takes_one_hot

    def explained_inputs(self) -> tuple[Value, ...]:
        """The inputs that relevance reaches: floats, and ids of an embedding."""
        return self._explained_inputs

    @cached_property
    def _explained_inputs(self) -> tuple[Value, ...]:
        return tuple(v for v in self.graph.inputs if v in self.flows)

    def schedule(self, values: Sequence[Value], reduce: bool = False) -> Schedule:
        """Backward steps that end in the relevance of ``values``, with an :class:`Emission` for each.

        ``reduce``: only its sum over channels is wanted, which some steps can make at once.
        """
        return self._schedules.get((*values, reduce), lambda: self._make_schedule(values, reduce))

    def _make_schedule(self, values: Sequence[Value], reduce: bool) -> Schedule:
        flows = {v: self.flows[v] for v in values}
        by_register: dict[int, list[Emission]] = {}
        for value, flow in flows.items():
            by_register.setdefault(flow.register, []).append(Emission(value, flow.register, flow.factor.slots))
        plain = schedule_backward(self.program.steps_down(frozenset(by_register)), frozenset(by_register))
        last_use = {r: i for i, (step, _) in enumerate(plain.steps) for r in step.ins}
        steps: Steps = [(e, ()) for e in by_register.get(self.program.top, [])]
        for i, (step, frees) in enumerate(plain.steps):
            emissions = [e for out in step.outs for e in by_register.get(out, [])]
            # An emitted register is kept by the scheduler; free it once emitted and read for the last time.
            done = [r for r in dict.fromkeys(step.ins) if r in by_register and last_use[r] == i]
            done += [out for out in step.outs if out in by_register and out not in last_use]
            if reduce and step.reduced is not None and step.out not in last_use:
                step = replace(step, run=step.reduced, form=None)
            steps.append((step, frees if emissions else (*frees, *done)))
            for n, emission in enumerate(emissions):
                steps.append((emission, tuple(done) if n == len(emissions) - 1 else ()))
        made = Schedule(steps, frozenset(by_register))
        if program_check.ENABLED:
            self._check_schedule(made, values)
        return made

    def _check_schedule(self, schedule: Schedule, values: Sequence[Value]) -> None:
        program_check.check_backward(self.program, schedule.steps, [self.program.top])
        program_check.check_emissions(schedule.steps, tuple(dict.fromkeys(values)))

    def forward_schedule(self, keep: Keep = "coefficients") -> Schedule:
        """The steps of one forward pass that leaves what ``keep`` names."""
        return self._forwards.get(keep, lambda: self._make_forward(keep))

    def _make_forward(self, keep: Keep) -> Schedule:
        program = self.program
        kept = kept_slots(self.graph, program, self.dtype, self.coefficients, keep)
        steps = program.steps_to(kept, frozenset(program.inputs), lambda step: not step.is_cache)
        if keep == "coefficients" and program.sweep is not None:
            steps = fuse_sweeps(steps, kept, program.sweep)
        steps = fuse_relus(steps, kept)
        known = hasattr(loaded(), "elementwise_rectified_sum")
        if known and self.device.type == "cpu" and self.backend in ("auto", "cpu"):
            steps = fuse_residuals(steps, kept)
        made = schedule_forward(steps, kept, program.inputs)
        if program_check.ENABLED:
            program_check.check_forward(made, program.inputs, program.slots)
        return made

    def batch_parts(self, schedule: Schedule, batch: int) -> BatchParts | None:
        """How forward steps take a batch in parts, where that pays; see :mod:`fastlrp.plan.passes.batch_parts`."""
        if self.device.type != "cpu" or batch < 2 or not self.treats_samples_alone:
            return None
        how = self.graph, self.program, schedule, batch, self.dtype, self.block_bytes
        return self._parts.get((schedule, batch), lambda: batch_parts(*how))

    @cached_property
    def treats_samples_alone(self) -> bool:
        """Whether no rule looks at a whole batch: a stabilizer relative to the tensor does, a user's rule may, and so
        may the backward of a user's function."""
        found = list(all_rules(self.rules.values()))
        relative = any(stabilizer.relative == "tensor" for stabilizer in stabilizers(found))
        return not (relative or self._calls_functions or any(isinstance(rule, Custom) for rule in found))

    @property
    def _calls_functions(self) -> bool:
        """Whether the backward of a ``torch.autograd.Function`` is called, which need not be linear."""
        return any(n.kind == "custom_backward" and not isinstance(r, Pass) for n, r in self.rules.items())

    def completion(self, wanted: frozenset[int], have: frozenset[int]) -> Schedule:
        """The forward steps that fill the slots ``wanted`` from the slots ``have``."""

        def make() -> Schedule:
            made = schedule_forward(self.program.steps_to(wanted, have), wanted | have, sorted(have))
            if program_check.ENABLED:
                program_check.check_forward(made, have, self.program.slots)
            return made

        return self._completions.get((wanted, have), make)

    def check(self) -> None:
        """Check that all steps fit together, as they were lowered and in the order in which they run.

        Raises:
            ProgramError: see :mod:`fastlrp.plan.passes.check`.
        """
        program_check.check_program(self.program)
        values = self.explained_inputs()
        self._check_schedule(self.schedule(values), values)
        flowing = tuple(v for v in self.flows if v.has_batch_first)
        self._check_schedule(self.schedule(flowing), flowing)
        for keep in get_args(Keep):
            schedule = self.forward_schedule(keep)
            program_check.check_forward(schedule, self.program.inputs, self.program.slots)

    def table(self, paths: Mapping[str, Path] | None = None) -> str:
        """Per layer, from the output down: rule, what flows to its input, backend, path, cached bytes.

        ``paths``: :attr:`fastlrp.run.record.ForwardRecord.paths` of the record whose latest call the column "path"
        shows; None: of the latest call of all that were made under this plan, which is what ``print`` shows.
        """
        found = str(self._table(self.latest_paths if paths is None else paths))
        return found if self.latest_direction is None else f"{found}\ngroups went {self.latest_direction}"

    def _table(self, paths: Mapping[str, Path]) -> PlanTable:
        where, products = f"{self.dtype}, {self.device}", "" if self.dtype == torch.bfloat16 else self.products.why
        if products and self._kept_full:
            products += f"; {self._kept_full} convolutions stay float32, where errors would add up: linear bottlenecks"
        return plan_table(self.program, self.composite.name, where, self.coefficients, paths, products)

    def _repr_html_(self) -> str:
        return self._table(self.latest_paths).html()

    def __str__(self) -> str:
        return self.table()
