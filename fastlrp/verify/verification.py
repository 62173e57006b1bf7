"""What a verification found: one line for each layer, the ledger, and whether all of it is right."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fastlrp import markup
from fastlrp.plan.step_names import NO_RULE
from fastlrp.plan.table import align


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
        joined: largest relative difference between the input's relevance asked for alone, when the plan joins steps,
            and together with that of every layer, when it keeps them apart.
        alone_tolerance: largest such difference, of ``alone`` and of ``joined``, for which ``ok`` holds.
    """

    rows: tuple[LayerCheck, ...]
    end_to_end: float
    tolerance: float
    score: float
    relevance: float
    alone: float | None = None
    alone_tolerance: float = math.inf
    joined: float = 0.0

    @property
    def max_error(self) -> float:
        """Largest error of any layer."""
        errors = [row.error for row in self.rows if row.error is not None]
        return math.nan if any(math.isnan(e) for e in errors) else max(errors, default=0.0)

    @property
    def ok(self) -> bool:
        """True if every layer is within the tolerance (and nothing is NaN), no sample depends on the others, and the
        input's relevance does not depend on what else is asked for."""
        same = self.joined <= self.alone_tolerance and (self.alone is None or self.alone <= self.alone_tolerance)
        return same and self.max_error <= self.tolerance

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
        alone += "" if self.joined <= self.alone_tolerance else f", the input asked for alone {self.joined:.1e}"
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
