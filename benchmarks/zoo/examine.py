"""What is found out about one model: is it captured, explained, finite, verified, equal to autograd, apart."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

import fastlrp
from benchmarks.zoo.case import Case, Maker
from fastlrp.capture.graph import Graph
from fastlrp.verify.compare import verify
from fastlrp.verify.verification import Verification

TARGETS = (0, 1)
_LARGE = 10_000_000
"""Entries of a sample's activations from which on one sample is verified: several would fill gigabytes."""
_ATTENTION = {"attention", "attention_weights", "segment_softmax"}


def examine(make: Maker, tell: Callable[[dict[str, Any]], None]) -> None:
    """Tells what it finds as soon as it is known, so that a process that is ended has told the rest."""
    torch.manual_seed(0)
    tell({"step": "making the model"})
    case = make()
    with torch.no_grad():
        whole = case.run(case.inputs)
    classes = [t for t in TARGETS if whole.dim() < 2 or t < whole.shape[1]] if whole.dim() > 1 else [0]
    tell({"dtype": str(whole.dtype)})
    tell({"step": "capture", "parameters": sum(p.numel() for p in case.model.parameters()), **_shape(case)})
    started = time.process_time()
    try:
        explainer = case.explainer("gradient")
    except fastlrp.CaptureError as error:
        tell({"captured": isinstance(error, fastlrp.UnsupportedOperationError), "refused": str(error)})
        return
    kinds = [node.kind for node in explainer.plan.graph.nodes]
    composite = _composite(explainer.plan.graph)
    tell({"captured": True, "capture_seconds": time.process_time() - started, "nodes": len(kinds)})
    parts = {node.output.dtype for node in explainer.plan.graph.nodes if node.output.is_differentiable}
    tell({"mixed": whole.dtype == torch.float64 and torch.float32 in parts})
    tell({"step": "gradient", "composite": composite})
    with explainer.forward(case.inputs) as record:
        tell({"output_error": _difference(record.scores.detach(), whole)})
        try:
            found = record.relevance(classes, initial="one")
            tell({"step": "explanation"})
            started = time.process_time()
            under = record.under(composite)
            relevance = under.relevance(classes)
        except fastlrp.CaptureError as error:
            tell({"refused": str(error)})
            return
        finite = all(bool(t.isfinite().all()) for t in _tensors(relevance))
        silent = not any(bool(t.any()) for t in _tensors(relevance))
        tell({"explain_seconds": time.process_time() - started, "explained": True, "finite": finite, "silent": silent})
        large = sum(v.numel for v in under.plan.flows) > _LARGE
        if not large:
            tell({"step": "verify"})
            _tell_verified(under, classes, tell)
    del record, under  # What it holds of both samples is not read again, and of a large model is gigabytes.
    tell({"step": "alone"})
    second, same = case.alone()
    with explainer.forward(second) as single:
        of_second = single.under(composite)
        pairs = zip(_tensors(of_second.relevance(classes)), _tensors(relevance), strict=True)
        tell({"alone_error": max(_difference(a, same(b)) for a, b in pairs)})
        if large:
            tell({"step": "verify"})
            _tell_verified(of_second, classes, tell)
    del single, of_second
    # Last, since it runs the model itself, which may count its passes.
    tell({"step": "autograd", "gradient_error": None})
    tell({"gradient_error": _gradient_error(case, found, classes)})
    tell({"step": "done"})


def _tell_verified(record: fastlrp.ForwardRecord, classes: list[int], tell: Callable[[dict[str, Any]], None]) -> None:
    report = verify(record, classes)
    tell({"verified": bool(report.ok)})
    if not report.ok:
        tell({"report": _worst(report)})


def _composite(graph: Graph) -> str:
    """The preset for such a model: with a selection of a state-space layer, with attention, or with neither."""
    if any("selection" in node.attributes for node in graph.nodes):
        return "mamba_lrp"
    return "attnlrp" if _ATTENTION & {node.kind for node in graph.nodes} else "epsilon_plus"


def _worst(report: Verification) -> str:
    """The layers that are not as the textbook says, and the samples alone."""
    rows = sorted(report.rows, key=lambda row: -(row.error or 0.0))
    layers = ", ".join(f"{row.path} {row.operation} {row.error:.1e}" for row in rows[:3] if row.error)
    return f"end to end {report.end_to_end}, alone {report.alone}, layers: {layers}"


def _shape(case: Case) -> dict[str, Any]:
    given = case.inputs.values() if isinstance(case.inputs, dict) else [case.inputs]
    return {"input": [list(t.shape) for t in given]}


def _tensors(found: Any) -> list[Tensor]:
    return [t for t in (found.values() if isinstance(found, dict) else [found]) if isinstance(t, Tensor)]


def _difference(a: Tensor, b: Tensor) -> float:
    size = float(b.double().norm())
    return float((a.double() - b.double()).norm()) / (size or 1.0)


def _gradient_error(case: Case, found: Any, classes: list[int]) -> float:
    """Of the gradient preset, or of gradient times rows where the input is ids."""
    named = isinstance(case.inputs, dict)
    inputs = dict(case.inputs) if named else {"": case.inputs}
    floats = {k: v.clone().requires_grad_() for k, v in inputs.items() if v.is_floating_point() and k != "mask"}
    given = {**inputs, **floats}
    with _rows(case) as rows:
        output = _run(case, given if named else given[""])
    worst = 0.0
    for position, target in enumerate(classes):
        score = output.sum() if output.dim() < 2 else output[:, target].sum()
        points = [*floats.values(), *(row for _, row, _ in rows)]
        gradients = torch.autograd.grad(score, points, retain_graph=True, allow_unused=True)
        expected = {k: g for k, g in zip(floats, gradients, strict=False) if g is not None}
        for (name, row, turned), gradient in zip(rows, gradients[len(floats) :], strict=True):
            if gradient is not None:
                of_ids = (row * gradient).sum(-1).detach()
                expected[name] = expected.get(name, 0) + (of_ids.t() if turned else of_ids)
        for name, gradient in expected.items():
            of_input = found[name] if isinstance(found, dict) else found
            if of_input is not None:
                worst = max(worst, _difference(of_input[:, position], gradient))
    return worst


def _run(case: Case, given: Any) -> Tensor:
    """The output under autograd, which refuses what some models write in place: written without, for these."""
    try:
        return case.run(given)
    except RuntimeError as error:
        if "modified inplace" not in str(error):
            raise
        output: Tensor = torch.func.functionalize(case.run)(given)
        return output


Row = tuple[str, Tensor, bool]


@contextmanager
def _rows(case: Case) -> Iterator[list[Row]]:
    """The input's name and the rows that its ids look up, each time the model looks them up while this holds.

    The last entry says that it did so with the sequence in front of the batch (XLNet). The model gets a copy of the
    rows, into which it may write (BLIP adds positions in place).
    """
    kept: list[Row] = []
    given = case.inputs if isinstance(case.inputs, dict) else {"": case.inputs}
    ids = {name: t for name, t in given.items() if not t.is_floating_point() and "mask" not in name}

    plain = nn.functional.embedding

    def embedding(looked_up: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        rows: Tensor = plain(looked_up, *args, **kwargs)
        for name, t in ids.items():
            straight = torch.equal(looked_up, t)
            turned = not straight and t.dim() == 2 and torch.equal(looked_up, t.t())
            if straight or turned:
                kept.append((name, rows, turned))
                return rows.clone()
        return rows

    with mock.patch.object(nn.functional, "embedding", embedding):
        yield kept
