"""Kernels against the reference, layer by layer, and a ledger of where relevance stays."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fastlrp import markup
from fastlrp.capture.graph import Node, Value, substitute
from fastlrp.kinds.jacobian import ask
from fastlrp.kinds.textbook import Share, double
from fastlrp.plan.plan import Plan
from fastlrp.plan.step_names import NO_RULE
from fastlrp.plan.steps import BLOCK
from fastlrp.plan.table import align
from fastlrp.progress import Progress, Wish
from fastlrp.rules.rule import stabilizers
from fastlrp.run import runner
from fastlrp.run.record import ForwardRecord
from fastlrp.targets import Initial, Targets
from fastlrp.verify.relative import ALONE_TOLERANCE, TOLERANCE, coarsest, floor, most, relative, sizes
from fastlrp.verify.walk import Walker

_WORKING_BYTES = 512 << 20
_TARGETS_ALONE = 8


@dataclass(frozen=True)
class LayerCheck:
    """One layer of a :class:`Verification`. Sums are over all samples and targets, in units of the explained output.

    Attributes:
        path, operation, rule: which layer.
        error: relative difference (2-norm over targets, worst sample) at the layer's input between the fast path and
            the reference applied to the same arriving relevance, where that cancels relative to its terms (times
            :func:`fastlrp.verify.relative.floor`); None where there is no reference (a user's rule).
        arrived: relevance of the output. sent: relevance that the inputs got.
        bias, stabilizer, dead: what the layer kept: the bias's share, epsilon's, and that of neurons that nothing
            contributes to. None for the gradient family, where what flows is no relevance.
    """

    path: str
    operation: str
    rule: str
    error: float | None
    arrived: float
    sent: float
    bias: float | None
    stabilizer: float | None
    dead: float | None

    @property
    def unexplained(self) -> float | None:
        """What is missing between arrived and sent after the ledger."""
        if self.bias is None or self.stabilizer is None or self.dead is None:
            return None
        return self.arrived - self.sent - self.bias - self.stabilizer - self.dead


_HEADER = ("layer", "operation", "rule", "error", "arrived", "sent", "bias", "stabilizer", "dead")


@dataclass(frozen=True)
class Verification:
    """What :meth:`fastlrp.Explainer.verify` found; ``str(verification)`` is a table.

    Attributes:
        rows: one :class:`LayerCheck` per layer, from the output down.
        end_to_end: relative error of the input's relevance against a reference walk through the whole model.
        tolerance: largest error of a layer for which ``ok`` holds.
        score: total initial relevance. relevance: total relevance of the inputs.
        alone: largest relative difference between a sample's relevance in the batch and without the other samples
            (first, middle and last sample); None for one sample, a model that takes one batch size only, or rules that
            read the whole batch by their definition (``Stabilizer(relative="tensor")``).
        alone_tolerance: largest such difference for which ``ok`` holds.
    """

    rows: tuple[LayerCheck, ...]
    end_to_end: float
    tolerance: float
    score: float
    relevance: float
    alone: float | None = None
    alone_tolerance: float = math.inf

    @property
    def max_error(self) -> float:
        """Largest error of any layer."""
        errors = [row.error for row in self.rows if row.error is not None]
        return math.nan if any(math.isnan(e) for e in errors) else max(errors, default=0.0)

    @property
    def ok(self) -> bool:
        """True if every layer is within the tolerance (and nothing is NaN), and no sample depends on the others."""
        return self.max_error <= self.tolerance and (self.alone is None or self.alone <= self.alone_tolerance)

    @property
    def kept(self) -> dict[str, float]:
        """The ledger of the whole model: what bias, stabilizer and dead neurons kept, what is unexplained."""
        names = ("bias", "stabilizer", "dead", "unexplained")
        return {name: sum(getattr(row, name) or 0.0 for row in self.rows) for name in names}

    def _cells(self) -> list[tuple[str, ...]]:
        return [
            (r.path or "(model)", r.operation, r.rule, _number(r.error, "{:.1e}"), _number(r.arrived),
             _number(r.sent), _number(r.bias), _number(r.stabilizer), _number(r.dead))
            for r in self.rows
        ]  # fmt: skip

    def _summary(self) -> str:
        kept = ", ".join(f"{name} {value:+.4g}" for name, value in self.kept.items())
        alone = "" if self.alone is None else f", a sample alone {self.alone:.1e}"
        missing = [f"{r.operation} ({r.path or 'model'})" for r in self.rows if r.rule == NO_RULE]
        note = f"\nwithout a rule, by input times gradient: {', '.join(missing)}" if missing else ""
        absorbed = abs(self.kept["stabilizer"])
        if absorbed > 0.5 * abs(self.score) > 0:
            note += (
                f"\nthe stabilizers kept {absorbed:.3g} of a score of {self.score:+.3g}, more than half: the score is "
                "too near to their epsilon. Take a smaller epsilon, float64, or a target with a larger score"
            )
        return (
            f"{'ok' if self.ok else 'NOT OK'}: largest error of a layer {self.max_error:.1e} "
            f"(tolerance {self.tolerance:.0e}), end to end {self.end_to_end:.1e}{alone}\n"
            f"score {self.score:+.6g} = relevance of the input {self.relevance:+.6g} + kept: {kept}{note}"
        )

    def __str__(self) -> str:
        return f"{align(_HEADER, self._cells(), numbers=range(3, 9))}\n{self._summary()}"

    def _repr_html_(self) -> str:
        good = [row.error is None or row.error <= self.tolerance for row in self.rows]
        table = markup.table(_HEADER, self._cells(), numbers=range(3, 9), rules=2, good=good)
        verdict = markup.verdict(self.ok, "every layer agrees with the reference", "NOT OK")
        title = f"Verification of {len(self.rows)} layers"
        return markup.card(title, verdict + markup.folded(table, len(self.rows), "layers"), self._summary())


def _number(value: float | None, form: str = "{:+.4g}") -> str:
    return "-" if value is None else form.format(value)


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
    with torch.no_grad():
        check = _Check(plan, state, record.batch)
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


class _Check:
    """Collects errors and ledgers over blocks of targets."""

    def __init__(self, plan: Plan, state: list[Any], batch: int) -> None:
        self.plan, self.batch = plan, batch
        self.flowing = [v for v in plan.flows if v.has_batch_first]
        self.schedule = plan.schedule(self.flowing)
        activations = frozenset(v.index for node in plan.graph.nodes for v in (node.output, *node.inputs))
        self.state = runner.complete(plan, state, activations | self.schedule.slots)
        doubles = {
            v: t.double() if isinstance(t, Tensor) and t.is_floating_point() else t
            for node in plan.graph.nodes
            for v in (node.output, *node.inputs)
            for t in (self.state[v.index],)
        }
        # Times what arrives: what an error is relative to where relevance itself is smaller.
        dtypes = [*(value.dtype for value in plan.flows), *([torch.bfloat16] if plan.products.reduced else [])]
        self.dtype = coarsest(dtypes, plan.dtype)
        self.floor = floor(self.dtype)
        self.walker = Walker(plan.rules, plan.composite.max_pool, doubles)
        self.rows = [row for row in plan.rows if row.node.output in plan.flows]
        self.errors: dict[Node, float | None] = {}
        self.sums: dict[Node, list[float | None]] = {}
        self.quotients: dict[Value, list[Tensor]] = {}
        self.end_to_end = self.score = self.relevance = 0.0

    def block(self, count: int) -> int:
        """Targets per pass: all layers' relevance is held at once, in float64, twice."""
        each = sum(v.numel for v in self.flowing) * self.batch * 8 * 4
        return max(1, min(count, _WORKING_BYTES // max(1, each)))

    def add(self, initial: Any) -> None:
        """One block of targets."""
        fast = self._fast(initial)
        count = initial.shape[1]
        output = self.plan.graph.output
        whole: dict[Value, Tensor] = {output: initial.double()}
        local: dict[Value, Tensor] = {}
        arrived, arrived_whole = {output: sizes(initial.double())}, {output: sizes(initial.double())}
        open_values: set[Value] = set()
        readers: dict[Value, list[Node]] = {}
        for row in self.rows:
            node = row.node
            # The same step for the arriving relevance of the fast path and for that of the reference walk.
            both = torch.cat([fast[node.output], whole[node.output]], 1)
            share = self.walker.through(node, both, self._quotient(node.output))
            if share is None:
                share = self._unchecked(node, fast, both, count)
                open_values.update(share.relevance)
            for value, relevance in share.relevance.items():
                mine, theirs = relevance.split(count, 1)
                local[value] = local[value] + mine if value in local else mine
                whole[value] = whole[value] + theirs if value in whole else theirs
                most(arrived, value, mine, fast[node.output])
                most(arrived_whole, value, theirs, whole[node.output])
                readers.setdefault(value, []).append(node)
            self._enter(node, fast[node.output], share, count)
        for value, expected in local.items():
            error = None if value in open_values else relative(fast[value], expected, self.floor * arrived[value])
            for node in readers[value]:
                self._worst(node, error)
        self.score += float(initial.double().sum())
        for value in self.plan.explained_inputs():
            self.relevance += float(fast[value].sum())
            error = relative(fast[value], whole[value], self.floor * arrived_whole[value])
            self.end_to_end = error if math.isnan(error) else max(self.end_to_end, error)

    def _fast(self, initial: Any) -> dict[Value, Tensor]:
        found: dict[Value, list[Tensor]] = {}
        self.quotients.clear()

        def sink(value: Value, first: int, register: Tensor, factors: tuple[Tensor, ...]) -> None:
            part = register.double()
            if self.plan.flows[value].factor.value is value and bool((factors[0] == 0).any()):
                scales = [factor.double().unsqueeze(1) for factor in factors[1:]]
                self.quotients.setdefault(value, []).append(math.prod(scales, start=part))
            for factor in sorted(factors, key=lambda factor: bool(factor.isinf().any())):
                part = _times(part, factor.double().unsqueeze(1))
            found.setdefault(value, []).append(part)

        # What many targets would take, so that the kernels for many targets are what is checked.
        steps = runner.specialize(
            self.plan, self.schedule.steps, self.state, max(BLOCK, initial.shape[1]), initial.shape[0]
        ).steps
        runner.propagate(self.plan, self.state, initial, steps, sink, 0)
        return {value: torch.cat(parts, 1) for value, parts in found.items()}

    def _quotient(self, value: Value) -> Tensor | None:
        """``c`` of ``R = value * c`` for both walks, where the value has zeros, at which ``R`` does not tell it."""
        parts = self.quotients.get(value)
        return None if parts is None else torch.cat([*parts, *parts], 1)

    def _unchecked(self, node: Node, fast: dict[Value, Tensor], both: Tensor, count: int) -> Share:
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

    def _enter(self, node: Node, arrived: Tensor, share: Share, count: int) -> None:
        sent = sum(float(r[:, :count].sum()) for r in share.relevance.values())
        entries: list[float | None] = [float(arrived.sum()), sent, None, None, None]
        if share.ledger is not None:
            kept = (share.ledger.bias, share.ledger.stabilizer, share.ledger.dead)
            entries[2:] = [float(part[:, :count].sum()) for part in kept]
        old = self.sums.get(node)
        self.sums[node] = entries if old is None else [_plus(a, b) for a, b in zip(old, entries, strict=True)]

    def _worst(self, node: Node, error: float | None) -> None:
        old = self.errors.get(node)
        if error is not None:
            self.errors[node] = error if old is None or math.isnan(error) else max(old, error)
        else:
            self.errors.setdefault(node, None)

    def verification(self, tolerance: float) -> Verification:
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
        return Verification(tuple(rows), self.end_to_end, tolerance, self.score, self.relevance)


def _times(part: Tensor, factor: Tensor) -> Tensor:
    """Relevance; none where nothing arrives at an infinite value, as at the scores that a mask made -inf."""
    product = part * factor
    infinite = factor.isinf()
    return torch.where(infinite & (part == 0), 0.0, product) if bool(infinite.any()) else product


def _plus(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a + b
