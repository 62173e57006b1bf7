"""Rules for layers without weights: linear maps, sums, max-pools, activations; and the gradient family.

Same conventions as :mod:`fastlrp.reference.redistribution`: ``x (B, ...)``, ``R (B, K, ...)``, computed in the dtype
given, and a :class:`~fastlrp.reference.redistribution.Ledger` of what does not arrive.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from fastlrp.reference.pool import pool_max_relevance, pool_ties_relevance, windows
from fastlrp.reference.redistribution import Ledger, Stabilize, divide, vjp

MaxPoolMode = Literal["winner", "ties", "average", "sum"]


def norm(forward: Callable[[Tensor], Tensor], x: Tensor, R: Tensor, st: Stabilize) -> tuple[Tensor, Ledger]:
    """In proportion to the contribution: ``R_in = x (dy/dx)^T (R / st(y))`` for any linear map ``y = forward(x)``.

    A constant in ``forward`` (batch norm, an affine map) takes its share as a bias does.

    Args:
        forward: linear or affine, sample by sample.
        x: ``(B, ...)``.
        R: ``(B, K, *forward(x).shape[1:])``.
        st: the stabilizer.

    Returns:
        ``(B, K, *x.shape[1:])`` and the ledger.

    Source: Bach et al. 2015, eq. 56.
    """
    constant = forward(torch.zeros_like(x))
    s, ledger = divide(R, forward(x) - constant, constant, st)
    return x.unsqueeze(1) * vjp(forward, x, s), ledger


def norm_sum(inputs: list[Tensor], R: Tensor, st: Stabilize) -> tuple[list[Tensor], Ledger]:
    """A sum of tensors that broadcast against each other, ``y = sum_n x_n``: each gets ``x_n R / st(y)``.

    Args:
        inputs: each ``(B, ...)``, or ``(1, ...)``, which broadcasts along the batch. One with fewer axes than ``y`` is
            aligned on the right, as PyTorch does, and has no batch axis.
        R: ``(B, K, *y.shape[1:])``.
        st: the stabilizer.

    Returns:
        for each input ``(B, K, *x_n.shape[1:])`` (``(B, K, *x_n.shape)`` where it has no batch axis), summed over the
        axes along which it was broadcast, never over samples; and the ledger.

    Source: Bach et al. 2015, eq. 56, with weights of one.
    """
    y = sum(inputs[1:], start=inputs[0])
    s, ledger = divide(R, y, torch.zeros_like(y), st)
    shares = []
    for x in inputs:
        aligned = x.reshape(*[1] * (y.dim() - x.dim()), *x.shape)
        share = aligned.unsqueeze(1) * s
        repeated = [axis + 1 for axis in range(1, y.dim()) if aligned.shape[axis] == 1 and y.shape[axis] != 1]
        if repeated:
            share = share.sum(dim=repeated, keepdim=True)
        shares.append(share.reshape(*R.shape[:2], *(x.shape[1:] if x.dim() == y.dim() else x.shape)))
    return shares, ledger


def max_pool(
    x: Tensor,
    R: Tensor,
    mode: MaxPoolMode,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    ceil_mode: bool,
    st: Stabilize,
) -> tuple[Tensor, Ledger]:
    """Relevance through a max-pool, in one to three dimensions.

    - ``"winner"``: all of it to the first largest entry of the window.
    - ``"ties"``: in equal shares to all entries equal to the largest.
    - ``"sum"``: in proportion to the entries, ``R_i = sum_j x_i / st(sum_i x_i) R_j``.
    - ``"average"``: the same with the average, ``(x_i / n) / st(sum_i x_i / n)`` where ``n`` is the size of the kernel
      (padding counted); they differ in what epsilon weighs.

    Args:
        x: ``(B, C, *S)``.
        R: ``(B, K, C, *S')``.
        mode: one of the four.
        kernel_size, stride, padding, dilation: one number per spatial axis.
        ceil_mode: as in ``torch.nn.functional.max_pool2d``.
        st: the stabilizer, used by ``"sum"`` and ``"average"``.

    Returns:
        ``(B, K, C, *S)`` and the ledger.

    Source: Bach et al. 2015, section "Multilayer networks" (winner); eq. 56 (sum, average).

    Raises:
        ValueError: if the mode is unknown.
    """
    pool: Callable[..., tuple[Tensor, Tensor]] = {
        1: functional.max_pool1d_with_indices,
        2: functional.max_pool2d_with_indices,
        3: functional.max_pool3d_with_indices,
    }[x.dim() - 2]
    output, index = pool(x, kernel_size, stride, padding, dilation, ceil_mode)
    nothing = torch.zeros(R.shape[:2], dtype=R.dtype, device=R.device)
    kept_nothing = Ledger(nothing, nothing.clone(), nothing.clone())
    if mode == "winner":
        return pool_max_relevance(R, index, None, list(x.shape[2:])), kept_nothing
    if mode == "ties":
        return pool_ties_relevance(R, x, output, None, kernel_size, stride, padding, dilation), kept_nothing
    if mode not in ("sum", "average"):
        raise ValueError(f"mode: expected 'winner', 'ties', 'average' or 'sum', got {mode!r}")
    divisor = prod(kernel_size) if mode == "average" else 1

    def forward(value: Tensor) -> Tensor:
        entries = windows(value, kernel_size, stride, padding, dilation, list(output.shape[2:]))
        return torch.stack([entry for _, entry in entries]).sum(dim=0) / divisor

    return norm(forward, x, R, st)


def gradient(forward: Callable[[Tensor], Tensor], x: Tensor, R: Tensor) -> Tensor:
    """The layer's own gradient, ``(dy/dx)^T R``: what flows is a derivative, not relevance.

    ``x (B, ...)``, ``R (B, K, *forward(x).shape[1:])`` to ``(B, K, *x.shape[1:])``.
    """
    return vjp(forward, x, R)


def deconvnet(R: Tensor) -> Tensor:
    """At a ReLU: ``R_in = max(R, 0)``, any shape. Source: Zeiler and Fergus 2014."""
    return R.clamp(min=0)


def guided_backprop(x: Tensor, R: Tensor) -> Tensor:
    """At a ReLU: ``R_in = [x > 0] max(R, 0)``, ``x (B, ...)``, ``R (B, K, ...)``. Source: Springenberg et al. 2015."""
    return torch.where(x.unsqueeze(1) > 0, R.clamp(min=0), 0.0)
