"""The calls that a plan makes on a device, what each must compute and move at least, and how right its results are."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as tree

import fastlrp
from benchmarks import shapes
from benchmarks.models import build
from benchmarks.providers import HIGH, LOW
from benchmarks.shapes import Call
from fastlrp import composites
from fastlrp.backends import dispatch
from fastlrp.composites import Composite

ONE_HOT = "linear_one_hot_relevance"

KEPT = ("log_sum", "inverse_sigma")
"""Arguments that stay float32 in 16-bit calls."""

AT_ONCE = 8
"""Targets whose difference is computed at once, in float64."""


def heard(model: str, device: torch.device, size: int = 224, backends: Sequence[str] = ("torch", "auto")) -> list[Call]:
    """Every distinct call of an operation that explaining ``model`` makes on ``device``, by operation.

    Composed operations and fused ones need not be the same calls, so the plans of several backends are listened to.
    """
    network, x = build(model, size=size, device=device)
    found: shapes.Heard = {}
    first, *others = _composites(model)
    for backend in backends:
        with shapes._listening(model, found):
            explainer = fastlrp.Explainer(network, first, example_inputs=x, backend=backend, paths="dense")
        with explainer.forward(x) as record:
            # Two classes, which select rows of the last layer, and two targets that are none and need all of it.
            targets = torch.rand(2, record.scores.shape[1], device=device)
            record.relevance([0, 1])
            record.relevance(targets)
            # Groups that reach every entry, on their way up.
            record.relevance(targets, groups=torch.rand(2, *x.shape[1:], device=device), direction="up")
            for rules in others:
                with shapes._listening(model, found):
                    record.under(rules).relevance(targets)
    distinct = {(call.op, str(call)): call for call in reversed(found.values())}
    return sorted(distinct.values(), key=lambda call: (dispatch.OPS.index(call.op), -call.size))


def _composites(model: str) -> list[Composite]:
    """Enough of them that every operation is called: alpha-beta's calls are those of z+; other pools of VGGs alone."""
    usual = [composites.epsilon_plus(), composites.epsilon_gamma_box(LOW, HIGH), composites.epsilon_plus_flat()]
    pools = [composites.epsilon_plus(max_pool=mode) for mode in ("ties", "average")]
    return [*usual, *(pools if model.startswith("vgg") else [])]


def arguments(call: Call, targets: int, device: torch.device, dtype: torch.dtype, last: bool = True) -> tuple[Any, ...]:
    """All arguments for a block of targets, in this dtype. ``last``: maps with their channels innermost in memory."""
    with torch.device(device):
        given = call.arguments(targets)
        if call.op == ONE_HOT:
            shape, classes = (given[0].shape[0], targets), given[2].shape[0]
            given = (torch.randn(shape), torch.randint(classes, shape), *given[2:])

    def change(item: Any) -> Any:
        if not isinstance(item, Tensor):
            return item
        return item.to(device, dtype) if item.is_floating_point() else item.to(device)

    names = shapes.argument_names(call.op)
    kept = [n for n, name in enumerate(names) if name in KEPT]
    made = tuple(item.to(device) if n in kept else tree.tree_map(change, item) for n, item in enumerate(given))
    if (
        last
        and not call.op.startswith(("attention", "norm", "recurrence"))
        and call.relevance is not None
        and given[0].dim() > 3
    ):
        made = (made[0].movedim(2, -1).contiguous().movedim(-1, 2), *made[1:])
    return tuple(made)


def exact(call: Call, given: tuple[Any, ...]) -> Any:
    """What the definition makes of these very numbers, in float64."""
    upcast = tree.tree_map(lambda a: a.double() if isinstance(a, Tensor) and a.is_floating_point() else a, given)
    definition = getattr(importlib.import_module(f"fastlrp.reference.{dispatch.STEMS[call.op]}"), call.op)
    return definition(*upcast)


def difference(found: Any, expected: Any) -> float:
    """Relative, in the 2-norm; the largest of several results. Infinite where one has what the other has not.

    Whole numbers (indices) must be equal. Blocks of targets are compared in parts, so that little memory is needed.
    """
    if isinstance(expected, (tuple, list)):
        if len(found) != len(expected):
            return math.inf
        return max((difference(f, e) for f, e in zip(found, expected, strict=True)), default=0.0)
    if found is None or expected is None:
        return 0.0 if found is expected else math.inf
    if found.shape != expected.shape:
        return math.inf
    if not expected.is_floating_point():
        return 0.0 if torch.equal(found, expected) else math.inf
    axis = 1 if expected.dim() > 1 else 0
    off = size = torch.zeros((), dtype=torch.float64, device=expected.device)
    for f, e in zip(found.split(AT_ONCE, axis), expected.split(AT_ONCE, axis), strict=True):
        e = e.double()
        off, size = off + (f.double() - e).square().sum(), size + e.square().sum()
    error = float((off / size.clamp(min=1e-300)).sqrt())
    return math.inf if math.isnan(error) else error


# Work


def flops(call: Call, targets: int) -> int:
    """Floating-point operations of the dense products; none for an operation that only moves and scales."""
    if call.op.startswith("attention"):
        return _attention_flops(call, targets)
    if call.relevance is None:
        return 0
    named = dict(zip(shapes.argument_names(call.op)[1:], call.rest, strict=False))
    shape = call.relevance[0]
    maps = shape[0] * targets
    if call.op == "input_relevance":
        return 2 * maps * math.prod(shape[3:]) * sum(w.numel() for w in named["weights"])
    weight = named.get("weight")
    if weight is None:
        return 0
    if call.op == "recurrence_relevance":
        return 2 * maps * shape[2] * (weight.numel() + named["input_weight"].numel())
    places = shape[2:-1] if call.op == "linear_relevance" else shape[3:]
    if call.op == "conv_unpooled_relevance":
        places = tuple(named["unpooled_size"])
    elif named.get("transposed"):
        places = tuple(named["input_size"])
    return 2 * maps * math.prod(places) * weight.numel() * terms(named)


def _attention_flops(call: Call, targets: int) -> int:
    """Scores once, then one product with the values forward, one for each target to the values, four to everything, and
    four for each group on its way up."""
    names = shapes.argument_names(call.op)
    named = dict(zip(names if call.relevance is None else names[1:], call.rest, strict=False))
    (B, H, S, D), T = named["query"].shape, named["key"].shape[2]
    E = named["value"].shape[3] if call.relevance is None else call.relevance[0][4]
    pairs = B * H * (sum(min(i + 1, T) for i in range(S)) if named["causal"] else S * T)
    if call.op == "attention_up":
        targets = named["up_query"].shape[1]
    each = {"attention_forward": E, "attention_value_relevance": targets * E}
    return 2 * pairs * (D + each.get(call.op, 2 * targets * (D + E)))


def terms(named: dict[str, Any]) -> int:
    """Products of a call: one per coefficient, two for one that goes by the sign of the input; one without any."""
    both = 2 if named.get("signed") else 1
    return max(1, (named.get("u") is not None) + both * (named.get("v") is not None))


def moved(call: Call, given: Iterable[Any], result: Any) -> int:
    """Bytes that must be moved at least: every tensor once, whatever its strides say of repetitions.

    Classes read their own rows of a weight alone.
    """
    if call.op == ONE_HOT:
        value, index, weight, *rest = given
        given = (value, index, weight[: min(index.numel(), len(weight))], *rest)
    seen: dict[int, int] = {}
    for item in tree.tree_leaves((tuple(given), result)):
        if isinstance(item, Tensor):
            each = min(item.numel() * item.element_size(), item.untyped_storage().nbytes())
            seen[item.data_ptr()] = max(each, seen.get(item.data_ptr(), 0))
    return sum(seen.values())
