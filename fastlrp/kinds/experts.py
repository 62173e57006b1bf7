"""A mixture of experts: each row of a sample times the matrix of the expert that it was routed to.

Rows are sorted by expert, and ``ends`` says how many rows belong to the experts up to each. Which expert a row has is
a condition of the sample; given that, the operation is linear, and relevance goes down in proportion, ``c_x = c_y W^T``
with the expert's own ``W``. Rows behind the last end belong to no expert and give 0.

Source: Achtibat et al. 2024 (AttnLRP), eq. 8, for the one expert that computed the row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastlrp import rules
from fastlrp.capture.graph import Constant, Node, Value
from fastlrp.errors import UnsupportedOperationError
from fastlrp.kinds import textbook
from fastlrp.kinds.kind import Kind
from fastlrp.looking import may_wait
from fastlrp.plan.builder import Builder
from fastlrp.plan.steps import Factor, Flow
from fastlrp.plan.total import multiply
from fastlrp.stabilizer import Stabilizer


def expert_of_row(ends: Tensor, rows: int) -> Tensor:
    """``(B, rows)``: the number of the expert of each row, the count of experts for rows of none.

    Args:
        ends: ``(B, E)``, how many rows belong to the experts up to each.
    """
    numbers = torch.arange(rows, device=ends.device).view(1, rows, 1)
    return (numbers >= ends.unsqueeze(1)).sum(2)


def rows_by_expert(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """``(B, S, D)`` times ``(E, D, O)``: ``(B, S, O)``."""
    return _each_by_its_own(x, weight, expert_of_row(ends, x.shape[1]))


def _each_by_its_own(rows: Tensor, matrices: Tensor, expert: Tensor) -> Tensor:
    """``(B, S, *, I)`` times the matrix ``(I, O)`` of each row's expert; 0 for rows of none."""
    y = rows.new_zeros(*rows.shape[:-1], matrices.shape[2])
    if not may_wait(expert):  # Which experts have rows is not known: all rows go through each of them.
        for e, matrix in enumerate(matrices):
            chosen = (expert == e).view(*expert.shape, *[1] * (rows.dim() - 2))
            y = torch.where(chosen, rows @ matrix, y)
        return y
    known = [e for e in expert.unique().tolist() if e < len(matrices)]
    if not known:
        return y
    places = [(expert == e).nonzero(as_tuple=True) for e in known]
    products = [rows[at] @ matrices[e] for at, e in zip(places, known, strict=True)]
    sample, row = (torch.cat(axis) for axis in zip(*places, strict=True))
    return y.index_put_((sample, row), torch.cat(products))


def lower(b: Builder, node: Node, rule: rules.Rule, flow: Flow) -> None:
    """In proportion, or the gradient."""
    weight, (x, ends) = _operands(node)
    y = node.output
    scale: int | None
    if isinstance(rule, rules.Gradient):
        scale, left = b.slot_of(flow.factor), Factor()
    elif isinstance(rule, (rules.Norm, rules.Epsilon)):
        scale, left = b.share(flow, y.index, y.numel, Stabilizer.ensure(rule.stabilizer)), Factor(x)
    else:
        raise TypeError(f"{rule} is not defined for {node}: use Norm, Epsilon or Gradient")

    def transposed(f: Tensor, s: Tensor | None, ends: Tensor) -> Tensor:
        rows = (f if s is None else multiply(f, s)).reshape(*f.shape[:2], *y.sizes).transpose(1, 2)
        matrices = weight.tensor().to(rows.dtype)
        return _each_by_its_own(rows, matrices.mT, expert_of_row(ends, rows.shape[1])).transpose(1, 2)

    b.send(x, Flow(b.step(transposed, [flow.register], [scale, ends.index], x.numel), left))


def _operands(node: Node) -> tuple[Constant, tuple[Value, Value]]:
    """The experts' matrices, the rows and the ends; a refusal of every other form."""
    if node.call is not rows_by_expert:
        raise UnsupportedOperationError(
            f"{node}: the rows of all samples are sorted by expert together, and could not be told apart. Capture the "
            "model with a batch of two samples or more, so that each sample is routed alone"
        )
    x, weight, ends = node.args
    if not isinstance(weight, Constant) or not isinstance(x, Value) or not isinstance(ends, Value):
        raise UnsupportedOperationError(
            f"{node}: experts whose matrices are computed from the input have no rule: keep the matrices as parameters "
            "or buffers of the model"
        )
    return weight, (x, ends)


KIND = Kind(
    name="experts",
    operations="transformers::grouped_mm_fallback _grouped_mm",
    lower=lower,
    textbook=textbook.in_proportion,
    preset=lambda sums: sums,
)
