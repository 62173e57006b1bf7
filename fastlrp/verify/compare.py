"""The kernels of a plan against the reference walk, layer by layer, on what one record answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fastlrp.capture.graph import Node, Value, substitute
from fastlrp.kinds.jacobian import ask
from fastlrp.kinds.textbook import Share, double, moderate
from fastlrp.plan.plan import Plan
from fastlrp.plan.schedule import Schedule
from fastlrp.plan.steps import BLOCK
from fastlrp.progress import Progress, Wish
from fastlrp.rules.rule import stabilizers
from fastlrp.run import runner
from fastlrp.run.record import ForwardRecord
from fastlrp.targets.initial import Initial
from fastlrp.targets.targets import Targets
from fastlrp.verify.masked import moderated
from fastlrp.verify.relative import ALONE_TOLERANCE, TOLERANCE, coarsest, floor, most, relative, sizes
from fastlrp.verify.verification import LayerCheck, Verification
from fastlrp.verify.walk import Walker

_WORKING_BYTES = 512 << 20
_TARGETS_ALONE = 8


def verify(
    record: ForwardRecord,
    targets: Any,
    initial: Initial = "output",
    tolerance: float | None = None,
    at: Any = None,
    progress: Wish = False,
) -> Verification:
    """Check what a record answers, :meth:`fastlrp.Explainer.verify` on an input.

    Every layer's relevance is compared with the textbook computation (:mod:`fastlrp.reference`, float64) from the
    relevance that arrived there, so that an error shows where it is made; the whole walk is repeated in the
    reference from the output on; and samples are explained once more without the rest of the batch.

    Args:
        targets, initial, at: as for :meth:`fastlrp.run.record.ForwardRecord.relevance`.
        tolerance: largest relative error of a layer; by default that of :data:`fastlrp.verify.relative.TOLERANCE`.
        progress: see :meth:`fastlrp.run.record.ForwardRecord.relevance`.

    Returns:
        a :class:`Verification`.
    """
    state = record.state()
    plan, asked = record.plan, record.asked(targets, initial, at)
    # The textbook differentiates, which inference mode does not let it.
    with torch.inference_mode(False), torch.no_grad():
        check = Comparison(plan, state, record.batch)
        block = check.block(asked.count)
        with Progress(asked.count, progress, "target") as bar:
            for start in range(0, asked.count, block):
                check.add(asked.block(start, min(block, asked.count - start)))
                bar.reach(min(start + block, asked.count))
        dtype = check.dtype
        verification = check.verification(TOLERANCE.get(dtype, 1e-4) if tolerance is None else tolerance)
        allowed = ALONE_TOLERANCE.get(dtype, 0.1)
        return replace(verification, alone=_alone(record, asked), alone_tolerance=allowed)


def _alone(record: ForwardRecord, asked: Targets) -> float | None:
    """Samples without the rest of the batch against their rows in it, for the first few targets."""
    reads_the_batch = any(stabilizer.relative == "tensor" for stabilizer in stabilizers(record.plan.rules.values()))
    if record.batch < 2 or record.fixed_batch is not None or reads_the_batch:
        return None
    initial = asked.block(0, min(_TARGETS_ALONE, asked.count))
    assert isinstance(initial, Tensor)
    error = 0.0
    together = _tensors(record.relevance_at_once(initial, "output", None, None, None))
    for i in sorted({0, record.batch // 2, record.batch - 1}):
        with record.of_sample(i) as single:
            alone = _tensors(single.relevance_at_once(initial[i : i + 1], "output", None, None, None))
        least = floor(record.plan.dtype) * sizes(initial[i : i + 1])
        errors = [relative(a, t[i : i + 1], least.to(t.dtype)) for a, t in zip(alone, together, strict=True)]
        error = math.nan if any(map(math.isnan, (error, *errors))) else max(error, *errors)
    return error


def _tensors(relevance: Any) -> list[Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(relevance) if isinstance(leaf, Tensor)]


class Comparison:
    """One forward pass of a plan against the reference: errors and ledgers, added up over blocks of targets."""

    def __init__(self, plan: Plan, state: list[Any], batch: int) -> None:
        self.plan, self.batch = plan, batch
        self.flowing = [v for v in plan.flows if v.has_batch_first]
        self.schedule, self.to_inputs = plan.schedule(self.flowing), plan.schedule(plan.explained_inputs())
        activations = frozenset(v.index for node in plan.graph.nodes for v in (node.output, *node.inputs))
        self.state = runner.complete(plan, state, activations | self.schedule.slots | self.to_inputs.slots)
        self.moderated = moderated(plan.graph.nodes, Doubles(self.state))
        # Times what arrives: what an error is relative to where relevance itself is smaller.
        dtypes = [*(value.dtype for value in plan.flows), *([torch.bfloat16] if plan.products.reduced else [])]
        self.dtype = coarsest(dtypes, plan.dtype)
        self.floor = floor(self.dtype)
        self.walker = Walker(plan.rules, plan.composite.max_pool, Doubles(self.state, self.moderated))
        self.rows = [row for row in plan.rows if row.node.output in plan.flows]
        self.errors: dict[Node, float | None] = {}
        self.sums: dict[Node, list[float | None]] = {}
        self.quotients: dict[Value, list[Tensor]] = {}
        self.end_to_end = self.joined = self.score = self.relevance = 0.0

    def block(self, count: int) -> int:
        """Targets per pass: all layers' relevance is held at once, in float64, and that per unit of activation."""
        each = sum(v.numel for v in self.flowing) * self.batch * 8 * 4
        return max(1, min(count, _WORKING_BYTES // max(1, each)))

    def add(self, initial: Any) -> None:
        """One block of targets: each layer is compared when its relevance arrives, and then let go."""
        block = _Block(self, initial)
        rows = iter(self.rows)  # From the output down: all that reads a value has been before what makes it.
        waiting = next(rows, None)

        def arrive(value: Value, relevance: Tensor) -> None:
            nonlocal waiting
            block.fast[value] = relevance
            while waiting is not None and waiting.node.output in block.fast:
                block.through(waiting.node)
                waiting = next(rows, None)

        self.follow(initial, arrive, self.schedule)
        if waiting is not None:
            raise RuntimeError(f"no relevance arrived at {waiting.node}: please report this as a bug of fastlrp")
        inputs: dict[Value, Tensor] = {}
        self.follow(initial, inputs.__setitem__, self.to_inputs)
        block.end(inputs)

    def fast(self, initial: Any) -> dict[Value, Tensor]:
        """The relevance of every value by the plan's own kernels, in float64."""
        found: dict[Value, Tensor] = {}
        self.follow(initial, found.__setitem__, self.schedule)
        return found

    def follow(self, initial: Any, arrive: Callable[[Value, Tensor], None], schedule: Schedule) -> None:
        """Tell the relevance of each value of a schedule by the plan's own kernels, in float64, from the top down."""
        parts: dict[Value, list[Tensor]] = {}
        self.quotients.clear()

        def sink(value: Value, first: int, register: Tensor, factors: tuple[Tensor, ...]) -> None:
            part, factored = register.double(), self.plan.flows[value].factor.value
            calm = self.moderated.get(value if factored is None else factored)
            if calm is not None:  # The value itself, or it without what is infinite.
                factors = tuple(torch.where(f != moderate(f), calm.to(f.dtype), f) for f in factors)
            if factored is value and bool((factors[0] == 0).any()):
                scales = [factor.double().unsqueeze(1) for factor in factors[1:]]
                self.quotients.setdefault(value, []).append(math.prod(scales, start=part))
            for factor in sorted(factors, key=lambda factor: bool(factor.isinf().any())):
                part = _times(part, factor.double().unsqueeze(1))
            parts.setdefault(value, []).append(part)
            if sum(t.shape[1] for t in parts[value]) == initial.shape[1]:
                arrive(value, torch.cat(parts.pop(value), 1))

        # What many targets would take, so that the kernels for many targets are what is checked.
        steps = runner.specialize(
            self.plan, schedule.steps, self.state, max(BLOCK, initial.shape[1]), initial.shape[0]
        ).steps
        runner.propagate(self.plan, self.state, initial, steps, sink, 0)

    def quotient(self, value: Value) -> Tensor | None:
        """``c`` of ``R = value * c`` for both walks, where the value has zeros, at which ``R`` does not tell it."""
        parts = self.quotients.get(value)
        return None if parts is None else torch.cat([*parts, *parts], 1)

    def unchecked(self, node: Node, both: Tensor) -> Share:
        """A user's rule has no reference: it is taken at its word, for both walks."""
        rule: Any = self.plan.rules[node]
        inputs = list(node.sources)
        values = tuple(self.walker.values[v] for v in inputs)
        forward = self.walker.alone(node, inputs[0]) if len(inputs) == 1 else self._of_inputs(node, inputs)
        parts = ask(rule, node, forward, values, self.walker.values[node.output], both)
        zero = {v: both.new_zeros(*both.shape[:2], *v.sizes) for v in inputs}
        return Share({v: zero[v] if p is None else p for v, p in zip(inputs, parts, strict=True)}, None)

    def _of_inputs(self, node: Node, inputs: list[Value]) -> Callable[..., Any]:
        """The node's forward as a function of its float inputs, the others and the constants at their values."""
        args, kwargs = double(node.args), double(node.kwargs)
        fixed = {v: self.walker.values[v] for v in node.inputs}

        def forward(*tensors: Tensor) -> Any:
            table = {**fixed, **dict(zip(inputs, tensors, strict=True))}
            return node.call(*substitute(args, table), **substitute(kwargs, table))

        return forward

    def enter(self, node: Node, arrived: Tensor, share: Share, count: int) -> None:
        sent = sum(float(r[:, :count].sum()) for r in share.relevance.values())
        entries: list[float | None] = [float(arrived.sum()), sent, None, None, None]
        if share.ledger is not None:
            kept = (share.ledger.bias, share.ledger.stabilizer, share.ledger.dead)
            entries[2:] = [float(part[:, :count].sum()) for part in kept]
        old = self.sums.get(node)
        self.sums[node] = entries if old is None else [_plus(a, b) for a, b in zip(old, entries, strict=True)]

    def worst(self, node: Node, error: float | None) -> None:
        old = self.errors.get(node)
        if error is not None:
            self.errors[node] = error if old is None or math.isnan(error) else max(old, error)
        else:
            self.errors.setdefault(node, None)

    def verification(self, tolerance: float) -> Verification:
        """All that was found so far, as users see it."""
        rows = []
        for row in self.rows:
            node = row.node
            arrived, sent, bias, stabilizer, dead = self.sums[node]
            rows.append(
                LayerCheck(
                    node.path,
                    node.operation,
                    row.rule,
                    self.errors.get(node),
                    arrived or 0.0,
                    sent or 0.0,
                    bias,
                    stabilizer,
                    dead,
                )
            )
        return Verification(tuple(rows), self.end_to_end, tolerance, self.score, self.relevance, joined=self.joined)


class _Block:
    """The comparison for a block of targets, node after node.

    Attributes:
        fast: what arrived by the plan's kernels. local: one textbook step from there. whole: the textbook from the
            output on. Each holds the values that are still read: maps of large models fill gigabytes.
    """

    def __init__(self, check: Comparison, initial: Any) -> None:
        self.check, self.count = check, initial.shape[1]
        start = initial.double()
        output = check.plan.graph.output
        self.fast: dict[Value, Tensor] = {}
        self.local: dict[Value, Tensor] = {}
        self.whole: dict[Value, Tensor] = {output: start}
        self.arrived, self.arrived_whole = {output: sizes(start)}, {output: sizes(start)}
        self.open_values: set[Value] = set()
        self.readers: dict[Value, list[Node]] = {}
        check.score += float(start.sum())

    def through(self, node: Node) -> None:
        """The same step for the arriving relevance of the fast path and for that of the reference walk."""
        check, value = self.check, node.output
        if value in self.local:
            self._compare(value)
        fast, whole = self.fast.pop(value), self.whole.pop(value)
        both = torch.cat([fast, whole], 1)
        share = check.walker.through(node, both, check.quotient(value))
        if share is None:
            share = check.unchecked(node, both)
            self.open_values.update(share.relevance)
        for source, relevance in share.relevance.items():
            mine, theirs = relevance.split(self.count, 1)
            self.local[source] = self.local[source] + mine if source in self.local else mine
            self.whole[source] = self.whole[source] + theirs if source in self.whole else theirs
            most(self.arrived, source, mine, fast)
            most(self.arrived_whole, source, theirs, whole)
            self.readers.setdefault(source, []).append(node)
        check.enter(node, fast, share, self.count)
        check.quotients.pop(value, None)

    def end(self, inputs: Mapping[Value, Tensor]) -> None:
        """What no node makes: the model's inputs, end to end too.

        ``inputs``: their relevance where nothing else is asked for, when steps are joined that layers keep apart.
        """
        check = self.check
        for value in list(self.local):
            self._compare(value)
        for value in check.plan.explained_inputs():
            check.relevance += float(self.fast[value].sum())
            least = check.floor * self.arrived_whole[value]
            error = relative(self.fast[value], self.whole[value], least)
            check.end_to_end = error if math.isnan(error) else max(check.end_to_end, error)
            error = relative(inputs[value], self.fast[value], least)
            check.joined = error if math.isnan(error) else max(check.joined, error)

    def _compare(self, value: Value) -> None:
        expected, least = self.local.pop(value), self.check.floor * self.arrived[value]
        error = None if value in self.open_values else relative(self.fast[value], expected, least)
        for reader in self.readers.pop(value):
            self.check.worst(reader, error)


class Doubles(Mapping[Value, Any]):
    """Activations of a record by their value, in float64, made when they are read: all of them are as large again."""

    def __init__(self, state: list[Any], instead: Mapping[Value, Tensor] | None = None) -> None:
        self.state, self.instead = state, instead or {}

    def __getitem__(self, value: Value) -> Any:
        return self.instead[value] if value in self.instead else double(self.state[value.index])

    def __iter__(self) -> Iterator[Value]:
        raise TypeError("values are looked up one by one")

    def __len__(self) -> int:
        return len(self.state)


def _times(part: Tensor, factor: Tensor) -> Tensor:
    """Relevance; none where nothing arrives at an infinite value, as at the scores that a mask made -inf."""
    product = part * factor
    infinite = factor.isinf()
    return torch.where(infinite & (part == 0), 0.0, product) if bool(infinite.any()) else product


def _plus(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a + b
