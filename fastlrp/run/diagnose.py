"""Where numbers that are not finite come from."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from fastlrp.capture.bind import bind_forward
from fastlrp.capture.graph import Node, Value
from fastlrp.plan.plan import Plan
from fastlrp.run import runner
from fastlrp.run.finite import all_finite
from fastlrp.targets.one_hot import OneHot


def not_finite(plan: Plan, state: list[Any], initial: Tensor | OneHot) -> str | None:
    """Why relevance is not finite: the first layer whose output is not, or the first that makes relevance so.

    Returns:
        a sentence, or None where everything is finite.

    Args:
        state: slots of the forward pass. initial: what targets started with, ``(B, K, …)``.
    """
    read = frozenset(v.index for node in plan.graph.nodes for v in (node.output, *node.inputs))
    state = runner.complete(plan, state, read)
    output = plan.graph.output
    if not _finite(state[output.index]):
        found = next(
            node for node in plan.graph.nodes if not _finite(state[node.output.index]) and _reaches(node, plan)
        )
        samples = _samples(state[output.index])
        if _is_filtered(plan, found) and _finite(bind_forward(found)(*(state[v.index] for v in found.inputs))):
            return (
                f"numbers became too large for {samples} in {found}, whose plain sums would hold them: its input "
                f"({_range(state, found.inputs)}) overflows in the parts of Winograd's filtering, by which 3x3 "
                "convolutions are made here. Take plain sums, fastlrp.Explainer(model, …, precision='float32'), or "
                "scale the input as the model was trained with"
            )
        return (
            f"the model's output is NaN or infinite for {samples}, so there is nothing to explain. The first layer "
            f"whose output is not finite is {found}: look at its weights and its input "
            f"({_range(state, found.inputs)}), or give the model a wider dtype"
        )
    found_at = _first_on_the_way_down(plan, state, initial)
    if found_at is None:
        return None
    where, grows = found_at
    return f"relevance became NaN or infinite {where}, although the model's output is finite. " + (
        grows
        or "A denominator is zero or the numbers are too large for the dtype: use a larger epsilon there, another "
        "rule, or a float64 copy of the model (copy.deepcopy(model).double(), x.double())"
    )


def _is_filtered(plan: Plan, node: Node) -> bool:
    """Whether Winograd's filtering may have made the node's output."""
    return any(row.node is node and "forward" in row.filtered | row.looked for row in plan.rows)


def _reaches(node: Node, plan: Plan) -> bool:
    """Whether the explained output depends on the node."""
    needed: set[Value] = {plan.graph.output}
    for other in reversed(plan.graph.nodes):
        if other.output in needed:
            needed.update(other.inputs)
    return node.output in needed


def _first_on_the_way_down(plan: Plan, state: list[Any], initial: Tensor | OneHot) -> tuple[str, str] | None:
    """Where, and why the rule there lets it."""
    values = [v for v in plan.flows if v.has_batch_first]
    schedule = plan.schedule(values)
    state = runner.complete(plan, state, schedule.slots)
    bad: set[Value] = set()

    def sink(value: Value, first: int, register: Tensor, factors: tuple[Tensor, ...]) -> None:
        for factor in factors:
            register = register * factor.unsqueeze(1)
        if not all_finite(register):
            bad.add(value)

    runner.propagate(plan, state, initial, schedule.steps, sink, 0)
    if plan.graph.output in bad:
        return "at the start", ""
    for row in plan.rows:  # From the output down.
        if any(value in bad for value in row.node.inputs):
            rule = plan.rules.get(row.node)
            grows = "" if rule is None else rule.grows
            return f"at {row.node}" + (f" under {row.rule}" if row.rule else ""), grows
    return None


def _finite(item: Any) -> bool:
    return not isinstance(item, Tensor) or not item.is_floating_point() or all_finite(item)


def _samples(x: Tensor) -> str:
    bad = (~torch.isfinite(x.reshape(x.shape[0], -1)).all(1)).nonzero()[:, 0].tolist()
    if len(bad) == x.shape[0]:
        return "every sample" if len(bad) > 1 else "this sample"
    shown = ", ".join(map(str, bad[:8])) + (", …" if len(bad) > 8 else "")
    return f"sample{'s' if len(bad) > 1 else ''} {shown} of the batch"


def _range(state: list[Any], inputs: Iterable[Value]) -> str:
    found = [state[v.index] for v in inputs if isinstance(state[v.index], Tensor) and state[v.index].numel()]
    spans = [f"{float(t.min()):.3g} to {float(t.max()):.3g}" for t in found if t.is_floating_point()]
    return "values " + "; ".join(spans) if spans else "no values"
