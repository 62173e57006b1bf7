"""The windows of a pool, and rules for weights there: it has a weight of one for every entry of a window."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastlrp import rules
from fastlrp.capture.arguments import dims, listed
from fastlrp.capture.graph import Node
from fastlrp.kinds.textbook import Share, Walk
from fastlrp.plan.builder import Builder
from fastlrp.plan.steps import Factor, Flow
from fastlrp.plan.total import multiply
from fastlrp.reference.pool import windows
from fastlrp.reference.redistribution import Affine
from fastlrp.rules.rule import PoolShares
from fastlrp.stabilizer import Stabilizer

_AVG_POOL: list[Any] = [None, None, F.avg_pool2d, F.avg_pool3d]


class Windows:
    """The windows of a pool: their sums (times ``1 / divisor``), and the transpose of that.

    Adaptive pools, whose windows differ in size, have means in the place of sums.

    Raises:
        TypeError: for a pool whose windows no average pool has (dilated; adaptive max-pools; padded by more than half).
    """

    def __init__(self, b: Builder, node: Node, divisor: int = 1) -> None:
        a, self.node = node.attributes, node
        self.spatial = list(node.inputs[0].sizes[1:])
        self.adaptive = node.kind == "adaptive_avg_pool"
        if self.adaptive:
            self._transpose = b.operation("pool_adaptive_avg_relevance")
            return
        if node.kind == "max_pool":
            _check_window(node)
        self.kernel, self.stride, self.padding = a["kernel_size"], a["stride"], a["padding"]
        self.ceil, self.divisor = a["ceil_mode"], divisor
        self._transpose = b.operation("pool_avg_relevance")

    def sums(self, x: Tensor) -> Tensor:
        """``(B, C, *S)`` to ``(B, C, *S')``."""
        if self.adaptive:
            means: Tensor = self.node.call(x, *self.node.args[1:], **self.node.kwargs)
            return means
        kernel, stride, padding = self.kernel, self.stride, self.padding
        if len(kernel) == 1:  # avg_pool1d knows no divisor.
            flat = F.avg_pool2d(
                x.unsqueeze(2), (1, *kernel), (1, *stride), (0, *padding), self.ceil, divisor_override=self.divisor
            )
            return flat.squeeze(2)
        sums: Tensor = _AVG_POOL[len(kernel)](x, kernel, stride, padding, self.ceil, True, self.divisor)
        return sums

    def transpose(self, flow: Tensor, scale: Tensor | None) -> Tensor:
        """``(B, K, C, *S')``, times ``scale (B, C, *S')``, to ``(B, K, C, *S)``."""
        if self.adaptive:
            geometry: tuple[Any, ...] = (self.spatial,)
        else:
            geometry = (self.spatial, self.kernel, self.stride, self.padding, self.ceil, True, self.divisor)
        down: Tensor = self._transpose(flow, scale, *geometry)
        return down

    def up(self, t: Tensor, scale: Tensor | None) -> Tensor:
        """The transpose of :meth:`transpose`: the sums, times ``scale``."""
        sums = self.sums(t.flatten(0, 1)).unflatten(0, t.shape[:2])
        return sums if scale is None else multiply(sums, scale)


def _check_window(node: Node) -> None:
    a = node.attributes
    if a["adaptive"] or any(d != 1 for d in a["dilation"]):
        raise TypeError(f"{node} is adaptive or dilated and has no average pool of its shape: use max_pool='winner'")
    if any(p > k // 2 for p, k in zip(a["padding"], a["kernel_size"], strict=True)):
        raise TypeError(f"{node} pads more than half its kernel: use max_pool='winner'")


def window_size(node: Node) -> int:
    """Entries of a window, padding counted.

    Raises:
        TypeError: for a max-pool whose windows no average pool has.
    """
    if node.kind == "max_pool":
        _check_window(node)
    return math.prod(node.attributes["kernel_size"])


def shares_at_pools(rule: rules.Rule | None) -> PoolShares | None:
    """What a rule for weights is at pools; None if it is another sort of rule, or not defined there."""
    return rule.at_pools() if isinstance(rule, rules.WeightRule) else None


def lower_pool_rule(b: Builder, node: Node, rule: Any, flow: Flow) -> None:
    """A rule for weights that is defined at pools, at an average or max-pool."""
    shares = shares_at_pools(rule)
    if isinstance(shares, tuple):
        _alpha_beta(b, node, *shares, rule, flow)
    else:
        _equal_shares(b, node, rule, flow)


def _equal_shares(b: Builder, node: Node, rule: Any, flow: Flow) -> None:
    """``R_i = sum_j R_j / st(n_j)``, ``n_j`` the entries of window j that are no padding."""
    x, y = node.inputs[0], node.output
    pool = Windows(b, node)
    counts = pool.sums(torch.ones((1, *x.sizes), dtype=x.dtype, device=b.device))
    inverse = Stabilizer.ensure(rule.stabilizer).reciprocal(counts)
    factor = b.slot_of(flow.factor)
    if factor is None:
        scale = b.cache(lambda y: inverse.expand_as(y), [y.index], y.numel)
    else:
        scale = b.cache(lambda f: f * inverse, [factor], y.numel)
    b.send(x, Flow(b.step(pool.transpose, [flow.register], [scale], x.numel, up=pool.up)))


def _alpha_beta(b: Builder, node: Node, alpha: float, beta: float, rule: Any, flow: Flow) -> None:
    """``c_i = alpha sum_j R_j / st(P_j)`` where ``x_i > 0``, ``-beta sum_j R_j / st(N_j)`` where ``x_i < 0``."""
    x, y = node.inputs[0], node.output
    pool, stabilizer = Windows(b, node), Stabilizer.ensure(rule.stabilizer)

    def part(share: float, low: float | None, high: float | None) -> int | None:
        if not share:
            return None

        def sums_of_part(x: Tensor) -> Tensor:
            return pool.sums(x.clamp(low, high))

        total = b.cache(sums_of_part, [x.index], y.numel, key=("part", node, low is None))
        scale = b.share(flow, total, y.numel, stabilizer)
        assert scale is not None, "sums of parts are no factor of what arrives"
        return scale if share == 1 else b.cache(lambda s: s * share, [scale], y.numel)

    above = part(alpha, 0.0, None)
    if b.is_nonnegative(x) and above is not None:
        b.send(x, Flow(b.step(pool.transpose, [flow.register], [above], x.numel, up=pool.up), Factor(x)))
        return
    below = part(-beta, None, 0.0)

    def by_sign(f: Tensor, x: Tensor, above: Tensor | None, below: Tensor | None) -> Tensor:
        sign = x.unsqueeze(1)
        parts = [0.0 if s is None else pool.transpose(f, s) for s in (above, below)]
        return torch.where(sign > 0, parts[0], torch.where(sign < 0, parts[1], 0.0)).to(f.dtype)

    register = b.step(by_sign, [flow.register], [x.index, above, below], x.numel)
    b.send(x, Flow(register, Factor(x)))


def window_sums(node: Node) -> Callable[[Tensor], Tensor]:
    """A pool as the sum of each window."""
    a, size = node.attributes, list(node.output.sizes[1:])
    dilation = a.get("dilation") or [1] * len(size)

    def forward(x: Tensor) -> Tensor:
        entries = windows(x, a["kernel_size"], a["stride"], a["padding"], dilation, size)
        return torch.stack([entry for _, entry in entries]).sum(0)

    return forward


def window_layer(walk: Walk, node: Node) -> Affine:
    """A weight of one for all entries of a window; the means of an adaptive pool, whose windows differ in size."""
    sums = walk.alone(node, node.sources[0]) if node.kind == "adaptive_avg_pool" else window_sums(node)
    return Affine(lambda x, w, b: w * sums(x), torch.ones((), dtype=torch.float64), None)


def through_windows(walk: Walk, node: Node, rule: Any, R: Tensor) -> Share:
    """The textbook step of a rule for weights that is defined at pools."""
    x = node.sources[0]
    relevance, ledger = rule.textbook(window_layer(walk, node), walk.values[x], R)
    return Share({x: relevance}, ledger)


def read_pool(node: Node, bound: dict[str, Any]) -> str | None:
    """Kernel, stride, padding and the other sizes of a pool."""
    n = dims(node)
    if len(node.inputs[0].shape) != n + 2:
        return "unknown"  # PyTorch takes (C, *S) too, where the batch stands in the place of the channels.
    node.attributes["dims"] = n
    if node.operation.startswith("adaptive"):
        node.attributes["adaptive"] = True
        return None
    kernel = listed(bound["kernel_size"], n)
    node.attributes.update(
        adaptive=False,
        kernel_size=kernel,
        stride=listed(bound["stride"], n) if bound.get("stride") not in (None, []) else kernel,
        padding=listed(bound["padding"], n),
        dilation=listed(bound.get("dilation"), n, 1),
        ceil_mode=bool(bound["ceil_mode"]),
        count_include_pad=bool(bound.get("count_include_pad", True)),
        divisor_override=bound.get("divisor_override"),
    )
    return None
