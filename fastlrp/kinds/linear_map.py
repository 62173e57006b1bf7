"""Linear operations without a kernel of their own, mean, sum, interpolation: in proportion, or the gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastlrp import rules
from fastlrp.capture.bind import bind_forward
from fastlrp.capture.graph import Constant, Node, Value, leaves
from fastlrp.errors import UnsupportedOperationError
from fastlrp.kinds import textbook
from fastlrp.kinds.jacobian import transpose_beside, vjp
from fastlrp.kinds.kind import Kind
from fastlrp.kinds.textbook import Share, Walk
from fastlrp.plan.builder import Builder
from fastlrp.plan.steps import Factor, Flow
from fastlrp.plan.total import multiply
from fastlrp.reference import weightless
from fastlrp.stabilizer import Stabilizer


def read(node: Node, bound: dict[str, Any]) -> str | None:
    """No attributes; a product of activations is no linear map."""
    factors = [leaf for leaf in leaves((node.args, node.kwargs)) if isinstance(leaf, Value) and leaf.is_differentiable]
    if len(factors) > 1 and node.operation == "einsum":
        return "product" if len(factors) == 2 else "homogeneous"
    if node.operation == "linalg_solve" and node.args[0] in factors:
        return "unknown"  # It is linear in the right side alone.
    return "unknown" if len(factors) > 1 else None


def lower(b: Builder, node: Node, rule: rules.Rule, flow: Flow) -> None:
    """Mean, sum, interpolation, …: in proportion, ``c = J^T (F factor / st(y))``, or the gradient ``J^T``."""
    x, y = node.sources[0], node.output
    _refuse_left_product(node)
    forward = bind_forward(node)
    scale: int | None
    entries = _entries(node, rule)
    z = y.index if entries == 1 else b.cache(lambda y: y * entries, [y.index], y.numel)
    if isinstance(rule, rules.Gradient):
        scale, left = b.slot_of(flow.factor), Factor()
    elif isinstance(rule, (rules.Norm, rules.Epsilon)):
        scale, left = b.share(flow, z, y.numel, Stabilizer.ensure(rule.stabilizer)), Factor(x)
        if entries != 1 and scale is not None:
            scale = b.cache(lambda s: s * entries, [scale], y.numel)
    else:
        raise TypeError(f"{rule} is not defined for {node}: use Norm, Epsilon or Gradient")
    if len(node.inputs) != 1 or b.graph.batch is not None:
        transpose_beside(b, node, flow, scale, left)
        return
    zero = torch.zeros((1, *x.sizes), dtype=x.dtype, device=b.device)
    alone = not any(isinstance(leaf, Constant) for leaf in leaves((node.args, node.kwargs)))
    if b.dtype == torch.float16 and alone and not isinstance(rule, rules.Gradient):

        def transpose(f: Tensor, s: Tensor | None) -> Tensor:
            return vjp(forward, (zero.to(f.dtype),), f if s is None else multiply(f, s * entries))[0]

        b.send_shares(x, z, y.numel, flow, Stabilizer.ensure(rule.stabilizer), transpose)
        return

    axes = _averaged_axes(node)

    def transposed(f: Tensor, s: Tensor | None) -> Tensor:
        given = f if s is None else multiply(f, s)
        return vjp(forward, (zero,), given)[0] if axes is None else _spread_evenly(given, axes, x.sizes)

    b.send(x, Flow(b.step(transposed, [flow.register], [scale], x.numel), left))


def _entries(node: Node, rule: rules.Rule) -> int:
    """How many entries a mean is of, where its rule divides by their sum; 1 otherwise."""
    x, y = node.sources[0], node.output
    of_sum = node.operation == "mean" and isinstance(rule, rules.Norm) and rule.of_sum
    return x.numel // max(y.numel, 1) if of_sum else 1


def through(walk: Walk, node: Node, rule: rules.Rule, R: Tensor) -> Share:
    """The textbook step."""
    entries = _entries(node, rule)
    if entries == 1 or not isinstance(rule, rules.Norm):
        return textbook.in_proportion(walk, node, rule, R)
    x, mean = node.sources[0], walk.alone(node, node.sources[0])
    st = Stabilizer.ensure(rule.stabilizer)
    relevance, ledger = weightless.norm(lambda x: entries * mean(x), walk.values[x], R, st)
    return Share({x: relevance}, ledger)


def _averaged_axes(node: Node) -> tuple[int, ...] | None:
    """The axes of a mean over some, the batch not among them; None for anything else."""
    x, y, args = node.sources[0], node.output, node.args
    plain = node.operation == "mean" and len(args) > 1 and not node.kwargs.get("dtype") and x.dtype == y.dtype
    if not plain or len(args) > 3 or not isinstance(args[1], (list, tuple)) or not args[1]:
        return None
    if not all(type(axis) is int for axis in args[1]):
        return None
    axes = tuple(sorted(axis % len(x.shape) for axis in args[1]))
    keeps = len(x.shape) == len(y.shape)
    left = [1 if axis in axes else size for axis, size in enumerate(x.sizes, 1) if keeps or axis not in axes]
    fits = axes[0] > 0 and y.sizes == tuple(left)
    return axes if fits else None


def _spread_evenly(f: Tensor, axes: tuple[int, ...], sizes: Sequence[int]) -> Tensor:
    """A mean's derivative, ``(B, K, *y) -> (B, K, *x)``: in a small network a call of autograd costs ten products."""
    if f.dim() < len(sizes) + 2:
        for axis in axes:
            f = f.unsqueeze(axis + 1)
    return f.expand(*f.shape[:2], *sizes) / math.prod(sizes[axis - 1] for axis in axes)


def _refuse_left_product(node: Node) -> None:
    """``A @ x`` with ``x (B, F)`` sums over axis 0, which is the batch."""
    second = node.args[1] if len(node.args) > 1 else None
    if node.operation in ("matmul", "mm", "bmm") and isinstance(second, Value) and len(second.shape) < 3:
        raise UnsupportedOperationError(
            f"{node} multiplies from the left, which sums over axis 0: that is the batch, and relevance of one sample "
            "cannot be told from that of the others. For a graph with its nodes along axis 0 use "
            "fastlrp.GraphExplainer, or give the model the input (1, nodes, features)"
        )


KIND = Kind(
    name="linear_map",
    operations=(
        "mean sum upsample_bilinear2d upsample_linear1d upsample_trilinear3d upsample_bicubic2d cumsum col2im "
        "einsum tensordot inner linalg_solve affine_grid_generator _upsample_bilinear2d_aa _upsample_bicubic2d_aa "
        "fft_fft fft_ifft fft_rfft fft_irfft fft_hfft fft_ihfft fft_fft2 fft_ifft2 fft_rfft2 fft_irfft2 fft_hfft2 "
        "fft_ihfft2 fft_fftn fft_ifftn fft_rfftn fft_irfftn fft_hfftn fft_ihfftn stft istft"
    ),
    lower=lower,
    textbook=through,
    read=read,
    preset=lambda sums: sums,
)
