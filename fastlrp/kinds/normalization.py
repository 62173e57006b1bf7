"""Layer, group, instance and RMS norm: pass, with their scale held fixed, or the gradient."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastlrp import rules
from fastlrp.capture.graph import Constant, Node, Value
from fastlrp.errors import UnsupportedOperationError
from fastlrp.kinds import textbook
from fastlrp.kinds.jacobian import transpose_at
from fastlrp.kinds.kind import Kind
from fastlrp.kinds.textbook import Share, Walk
from fastlrp.plan.builder import Builder
from fastlrp.plan.narrow import wide
from fastlrp.plan.steps import Factor, Flow
from fastlrp.plan.total import multiply
from fastlrp.reference import weightless
from fastlrp.stabilizer import Stabilizer


def read(node: Node, bound: dict[str, Any]) -> str | None:
    """All arguments by name."""
    node.attributes.update(bound)
    return None


@dataclass(frozen=True)
class Rows:
    """A norm as one over rows: what is normalised together is one row.

    Attributes:
        groups: sizes of the axes over which statistics differ; the first one after the batch on.
        length: entries of a row. centre: whether the mean is taken away. eps: beside the variance.
        ratio: of the variance to the mean square, another than 1 if it is the unbiased one. beside: what is added to
            the deviation.
        weight, bias: as one tensor that broadcasts to ``(B, *groups, length)``; None where there is none.
    """

    groups: tuple[int, ...]
    length: int
    centre: bool
    eps: float
    weight: Tensor | None
    bias: Tensor | None
    ratio: float = 1.0
    beside: float = 0.0

    @staticmethod
    def of(node: Node) -> Rows:
        """The rows of a norm.

        Raises:
            UnsupportedOperationError: where weight or bias are activations.
        """
        a, sizes = node.attributes, node.inputs[0].sizes
        if any(isinstance(a.get(key), Value) for key in ("weight", "bias")):
            raise UnsupportedOperationError(
                f"{node}: its weight or bias is computed from the input: use Pass() or Gradient() for it"
            )
        weight, bias = (_tensor(a.get(key)) for key in ("weight", "bias"))
        if node.operation in ("layer_norm", "rms_norm"):
            count = len(a["normalized_shape"])
            groups, row = sizes[: len(sizes) - count], sizes[len(sizes) - count :]
            parameters = [None if t is None else t.reshape(-1) for t in (weight, bias)]
        else:
            number = a["num_groups"] if node.operation == "group_norm" else sizes[0]
            groups, row = (number,), (sizes[0] // number, *sizes[1:])
            area = math.prod(sizes[1:])
            parameters = [None if t is None else t.repeat_interleave(area).view(number, -1) for t in (weight, bias)]
        eps = a.get("eps")
        if eps is None:
            eps = torch.finfo(node.output.dtype or torch.float32).eps
        centre, (w, b) = node.operation != "rms_norm", parameters
        of_written = a.get("ratio", 1.0), a.get("beside", 0.0)
        return Rows(tuple(groups), math.prod(row), centre, float(eps), w, b, *of_written)

    def inverse_sigma(self, x: Tensor) -> Tensor:
        """``1 / (sqrt(ratio var(x) + eps) + beside)``, ``(B, *groups, 1)``; an RMS norm's with the mean left in."""
        rows = wide(x).reshape(len(x), *self.groups, self.length)
        squares = (rows - rows.mean(-1, keepdim=True)).square_() if self.centre else rows.square()
        square = squares.mean(-1, keepdim=True).mul_(self.ratio).add_(self.eps)
        return (square.sqrt_().add_(self.beside).reciprocal_() if self.beside else square.rsqrt_()).to(x.dtype)


def _tensor(parameter: Any) -> Tensor | None:
    return parameter.tensor() if isinstance(parameter, Constant) else parameter


def lower(b: Builder, node: Node, rule: rules.Rule, flow: Flow) -> None:
    """Pass (AttnLRP's identity rule, Achtibat et al. 2024, prop. 3.4), with sigma held fixed, or the gradient."""
    if isinstance(rule, rules.Pass):
        b.send(node.inputs[0], flow)
    elif isinstance(rule, rules.FixedSigma):
        _send_with_fixed_sigma(b, node, Stabilizer.ensure(rule.stabilizer), flow)
    elif isinstance(rule, rules.Gradient):
        transpose_at(b, node, flow)
    else:
        raise TypeError(f"{rule} is not defined for {node}: use FixedSigma, Pass or Gradient")


def _send_with_fixed_sigma(b: Builder, node: Node, stabilizer: Stabilizer, flow: Flow) -> None:
    """``c_x = centre(c_y w / sigma)``."""
    x, y, rows = node.inputs[0], node.output, Rows.of(node)
    whole = (*rows.groups, rows.length)
    share = b.share(flow, y.index, y.numel, stabilizer)
    norm_relevance = b.operation("norm_relevance")
    sigma = b.cache(rows.inverse_sigma, [x.index], math.prod(rows.groups), key=("inverse sigma", node))

    last = node.operation in ("layer_norm", "rms_norm") and len(rows.groups) == len(x.sizes) - 1

    def transposed(f: Tensor, s: Tensor | None, sigma: Tensor) -> Tensor:
        gain, shape = rows.weight, f.shape[2:] if last else whole
        if s is not None:
            s = s.reshape(len(s), *shape)
            gain = s if gain is None else s * gain
        elif gain is not None and gain.dim() > 1:
            gain = gain.expand(len(f), *gain.shape)
        arriving = f.reshape(*f.shape[:2], *shape)
        relevance: Tensor = norm_relevance(arriving, gain, sigma, rows.centre)
        return relevance.reshape(f.shape)

    def normalized(t: Tensor, s: Tensor | None, sigma: Tensor) -> Tensor:
        """The norm itself with sigma held fixed."""
        given, shape = t.shape, t.shape[2:] if last else whole
        t = t.reshape(*given[:2], *shape)
        t = t - t.mean(-1, keepdim=True) if rows.centre else t
        factor = sigma if rows.weight is None else sigma * rows.weight
        factor = factor if s is None else factor * s.reshape(len(s), *shape)
        return multiply(t, factor).reshape(given)

    register = b.step(
        transposed, [flow.register], [share, sigma], x.numel, fresh=True, by_position=last and len(x.sizes) > 1,
        up=normalized,
    )  # fmt: skip
    b.send(x, Flow(register, Factor(x)))


def through(walk: Walk, node: Node, rule: rules.Rule, R: Tensor) -> Share:
    """The textbook step."""
    if isinstance(rule, rules.Pass):
        return textbook.unchanged(node, R)
    if isinstance(rule, rules.FixedSigma):
        x = node.sources[0]
        forward = _with_fixed_sigma(node, walk.values[x])
        relevance, ledger = weightless.norm(forward, walk.values[x], R, Stabilizer.ensure(rule.stabilizer))
        return Share({x: relevance}, ledger)
    return textbook.gradient(walk, node, R)


def _with_fixed_sigma(node: Node, at: Tensor) -> Callable[[Tensor], Tensor]:
    """The norm as an affine map: its sigma is that of ``at``, ``(B, …)``."""
    a, centre = node.attributes, node.operation != "rms_norm"
    weight, bias = (None if (t := _tensor(a.get(key))) is None else textbook.double(t) for key in ("weight", "bias"))
    if node.operation in ("layer_norm", "rms_norm"):
        kept, per_channel = at.dim() - len(a["normalized_shape"]), False
        shape = at.shape
    else:
        number = a["num_groups"] if node.operation == "group_norm" else at.shape[1]
        shape, kept, per_channel = torch.Size((at.shape[0], number, -1)), 2, True
    axes = list(range(kept, len(shape)))

    def centred(value: Tensor) -> Tensor:
        grouped = value.reshape(shape)
        return grouped - grouped.mean(axes, keepdim=True) if centre else grouped

    eps = torch.finfo(node.output.dtype or torch.float32).eps if a.get("eps") is None else a["eps"]
    square = centred(at).square().mean(axes, keepdim=True) * a.get("ratio", 1.0)
    sigma = (square + eps).sqrt() + a.get("beside", 0.0)

    def affine(value: Tensor) -> Tensor:
        result = (centred(value) / sigma).reshape(value.shape)
        tail = (-1, *[1] * (at.dim() - 2)) if per_channel else None
        for parameter, combine in ((weight, torch.mul), (bias, torch.add)):
            if parameter is not None:
                result = combine(result, parameter if tail is None else parameter.view(tail))
        return result

    return affine


KIND = Kind(
    name="normalization",
    operations="layer_norm group_norm instance_norm rms_norm",
    lower=lower,
    textbook=through,
    read=read,
    preset=lambda sums: rules.Pass(),
    modules={"layer_norm": nn.LayerNorm, "group_norm": nn.GroupNorm},
)
