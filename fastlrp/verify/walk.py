"""The reference walk: one node at a time, relevance in textbook steps, float64.

Shares with the fast path what a layer *is* (graph, merged batch norm, which operand of a product is the signal) and
nothing of how its relevance is computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastlrp import rules
from fastlrp.capture.canonizers import merged_parameters, norm_scale_shift
from fastlrp.capture.graph import Constant, Node, Value, substitute
from fastlrp.composites import MaxPoolMode
from fastlrp.kinds.lowering.elementwise import signal_and_gates
from fastlrp.kinds.lowering.pool import max_pool_stabilizer
from fastlrp.kinds.lowering.pool_rules import POOL_RULES
from fastlrp.reference import structure
from fastlrp.reference.pool import windows
from fastlrp.reference.redistribution import Affine, Ledger, vjp
from fastlrp.stabilizer import Stabilizer


@dataclass(eq=False)
class Share:
    """What one node sends down: relevance per input, and what it keeps."""

    relevance: dict[Value, Tensor]
    ledger: Ledger | None


def double(tree: Any) -> Any:
    """Constants as tensors; every floating-point tensor in float64."""

    def convert(leaf: Any) -> Any:
        if isinstance(leaf, Constant):
            leaf = leaf.tensor()
        return leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf

    return torch.utils._pytree.tree_map(convert, tree)


class Walker:
    """Relevance through single nodes, given float64 activations."""

    def __init__(
        self, assigned: dict[Node, rules.Rule | None], max_pool: MaxPoolMode, values: dict[Value, Any]
    ) -> None:
        self.rules, self.max_pool, self.values = assigned, max_pool, values

    def through(self, node: Node, R: Tensor) -> Share | None:
        """Relevance ``(B, K, …)`` of the node's output to its inputs; None without a reference (a user's rule)."""
        rule = self.rules.get(node)
        x = (*node.sources, *node.inputs)[0]
        if isinstance(rule, rules.Custom):
            return None
        if isinstance(rule, rules.Deconvnet):
            return Share({x: structure.deconvnet(R)}, None)
        if isinstance(rule, rules.GuidedBackprop):
            return Share({x: structure.guided_backprop(self.values[x], R)}, None)
        if isinstance(rule, rules.Gradient) or node.kind in ("move", "cat", "write"):
            found = {v: structure.gradient(self._alone(node, v), self.values[v], R) for v in _float_inputs(node)}
            return Share(found, _nothing(R) if rule is None else None)
        if isinstance(rule, rules.Pass):
            return self._pass(node, R)
        if node.kind in ("conv", "linear", "batch_norm"):
            relevance, ledger = self._affine(node, rule, R)
            return Share({x: relevance}, ledger)
        if node.kind == "add":
            return self._add(node, rule, R)
        if node.kind == "max_pool":
            return self._max_pool(node, rule, R)
        assert isinstance(rule, (rules.Norm, rules.Epsilon, *POOL_RULES))
        if isinstance(rule, POOL_RULES):
            relevance, ledger = self._affine(node, rule, R)
        else:
            sums = node.kind == "avg_pool" and isinstance(rule, rules.Norm) and rule.of_sum
            forward = self._window_sums(node) if sums else self._alone(node, x)
            relevance, ledger = structure.norm(forward, self.values[x], R, Stabilizer.ensure(rule.stabilizer))
        return Share({x: relevance}, ledger)

    def _alone(self, node: Node, free: Value) -> Any:
        """The node's forward as a function of one input, the others at their values."""
        args, kwargs = double(node.args), double(node.kwargs)
        fixed = {v: self.values[v] for v in node.inputs if v is not free}
        call = node.call
        if node.kind in ("conv", "linear", "batch_norm"):
            layer = self._layer(node)
            return lambda x: layer.apply(x, layer.weight, layer.bias)

        def forward(x: Tensor) -> Tensor:
            table = {**fixed, free: x}
            result: Tensor = call(*substitute(args, table), **substitute(kwargs, table))
            return result

        return forward

    def _window_sums(self, node: Node) -> Any:
        """A pool as the sum of each window."""
        a, size = node.attributes, list(node.output.sizes[1:])
        dilation = a.get("dilation") or [1] * len(size)

        def forward(x: Tensor) -> Tensor:
            entries = windows(x, a["kernel_size"], a["stride"], a["padding"], dilation, size)
            return torch.stack([entry for _, entry in entries]).sum(0)

        return forward

    def _layer(self, node: Node) -> Affine:
        a = node.attributes
        if node.kind in ("avg_pool", "adaptive_avg_pool", "max_pool"):
            # A weight of one for all entries of a window; the means of an adaptive pool, whose windows differ in size.
            sums = self._alone(node, node.inputs[0]) if node.kind == "adaptive_avg_pool" else self._window_sums(node)
            return Affine(lambda x, w, b: w * sums(x), torch.ones((), dtype=torch.float64), None)
        if node.kind == "batch_norm":
            tail = (1,) * (len(node.output.shape) - 2)
            scale, shift = (t.double().view(-1, *tail) for t in norm_scale_shift(node))
            return Affine(lambda x, w, b: x * w if b is None else x * w + b, scale, shift)
        weight, bias = (None if t is None else t.double() for t in merged_parameters(node))
        assert weight is not None
        if node.kind == "linear":
            return Affine(torch.nn.functional.linear, weight, bias)
        geometry = (a["stride"], a["padding"], a["dilation"], a["transposed"], a["output_padding"], a["groups"])
        return Affine(lambda x, w, b: torch.convolution(x, w, b, *geometry), weight, bias)

    def _affine(self, node: Node, rule: Any, R: Tensor) -> tuple[Tensor, Ledger]:
        relevance, ledger = rule.textbook(self._layer(node), self.values[node.inputs[0]], R)
        return relevance, ledger

    def _pass(self, node: Node, R: Tensor) -> Share:
        if node.kind != "mul":
            return Share({next(iter(_float_inputs(node))): R}, _nothing(R))
        signals = signal_and_gates(node)
        broadcast = partial(torch.broadcast_to, size=self.values[node.output].shape)
        shares = {}
        for v in signals:
            # Summing R over the axes along which the operand was broadcast is the transpose of the broadcast.
            shares[v] = vjp(broadcast, self.values[v], R / len(signals))
        return Share(shares, _nothing(R))

    def _add(self, node: Node, rule: Any, R: Tensor) -> Share:
        terms, sources = [], []
        for operand, coefficient in node.attributes["terms"]:
            term = self.values[operand] if isinstance(operand, Value) else double(operand)
            if not isinstance(term, Tensor):
                term = torch.full((1,) * R[:, 0].dim(), float(term), dtype=torch.float64, device=R.device)
            terms.append(term * coefficient)
            sources.append(operand)
        parts, ledger = structure.norm_sum(terms, R, Stabilizer.ensure(rule.stabilizer))
        found: dict[Value, Tensor] = {}
        for operand, part in zip(sources, parts, strict=True):
            if isinstance(operand, Value) and operand.is_differentiable:
                found[operand] = found[operand] + part if operand in found else part
            else:
                # A constant summand keeps its share as a bias does.
                ledger.bias = ledger.bias + part.reshape(*part.shape[:2], -1).sum(2)
        return Share(found, ledger)

    def _max_pool(self, node: Node, rule: Any, R: Tensor) -> Share:
        x, a = node.inputs[0], node.attributes
        if isinstance(rule, (rules.Flat, rules.WSquare)):
            relevance, ledger = self._affine(node, rule, R)
            return Share({x: relevance}, ledger)
        if a["adaptive"]:
            return Share({x: structure.gradient(self._alone(node, x), self.values[x], R)}, _nothing(R))
        geometry = (a["kernel_size"], a["stride"], a["padding"], a["dilation"], a["ceil_mode"])
        relevance, ledger = structure.max_pool(self.values[x], R, self.max_pool, *geometry, max_pool_stabilizer(rule))
        return Share({x: relevance}, ledger)


def _float_inputs(node: Node) -> tuple[Value, ...]:
    return node.sources


def _nothing(R: Tensor) -> Ledger:
    zero = R.new_zeros(R.shape[:2])
    return Ledger(bias=zero, stabilizer=zero.clone(), dead=zero.clone())
