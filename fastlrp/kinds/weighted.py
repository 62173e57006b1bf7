"""Layers with a weight: convolution, linear, batch norm. What happens to relevance is the rule's own."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from fastlrp import rules
from fastlrp.aten import _product
from fastlrp.capture.arguments import dims, listed
from fastlrp.capture.canonizers import merged_parameters, norm_scale_shift, plain_call
from fastlrp.capture.graph import Constant, Node, Value
from fastlrp.kinds import textbook
from fastlrp.kinds.kind import Kind
from fastlrp.kinds.textbook import Share, Walk
from fastlrp.kinds.unknown import send_unchanged
from fastlrp.plan.builder import Builder
from fastlrp.plan.layer import AffineLayer
from fastlrp.plan.products import winograd
from fastlrp.plan.products.looked_sums import is_looked, looked
from fastlrp.plan.steps import Flow
from fastlrp.plan.two_coefficients import send_gradient
from fastlrp.reference import weightless
from fastlrp.reference.redistribution import Affine


def read_conv(node: Node, bound: dict[str, Any]) -> str | None:
    """Weight, bias and geometry. With a kernel that is computed from the input it is a product of two activations, or
    a linear map of the kernel where what it moves over is a constant.
    """
    n = dims(node)
    x, weight, bias = bound["input"], bound["weight"], bound.get("bias")
    if not isinstance(weight, Constant) or isinstance(bias, Value):
        factors = [v for v in (x, weight) if isinstance(v, Value) and v.is_differentiable]
        if bias is not None or weight not in factors:
            return "unknown"
        return "product" if len(factors) == 2 else "linear_map"
    stride, dilation = listed(bound["stride"], n, 1), listed(bound["dilation"], n, 1)
    padding = bound["padding"]
    if isinstance(padding, str):
        kernel = weight.tensor().shape[2:]
        reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        if padding == "same" and any(r % 2 for r in reach):
            # One more on the right than on the left; canonizers.split_same_padding makes that a pad of its own.
            node.attributes["extra_padding"] = [r % 2 for r in reach]
        padding = [r // 2 for r in reach] if padding == "same" else 0
    transposed = "transpose" in node.operation
    node.attributes.update(
        weight=weight,
        bias=bias,
        stride=stride,
        padding=listed(padding, n),
        dilation=dilation,
        groups=bound["groups"],
        transposed=transposed,
        output_padding=listed(bound.get("output_padding", 0), n) if transposed else [0] * n,
    )
    return None


def read_linear(node: Node, bound: dict[str, Any]) -> str | None:
    """``linear(x, W, b)``, or ``x @ M`` with a constant matrix ``M`` as ``linear(x, M^T)``."""
    if node.operation == "linear":
        weight, bias, x = bound["weight"], bound.get("bias"), bound["input"]
        transposed = False
    elif node.operation == "addmm":
        weight, bias, x = bound["mat2"], bound["self"], bound["mat1"]
        plain = bound.get("alpha", 1) == 1 and bound.get("beta", 1) == 1
        transposed = True
        if not plain:
            weight = None
    else:
        first, *rest = node.args
        x, weight, bias, transposed = first, rest[0], None, True
    usable = (
        isinstance(weight, Constant)
        and isinstance(x, Value)
        and not isinstance(bias, Value)
        and weight.tensor().dim() == 2
    )
    if not usable:
        several = sum(isinstance(operand, Value) and operand.is_differentiable for operand in node.args[:3]) > 1
        if several and node.operation in ("matmul", "mm", "bmm"):
            return "product"
        return "unknown" if several or bias is not None else "linear_map"
    assert isinstance(weight, Constant)
    if transposed:
        matrix = weight
        weight = Constant(f"{matrix.name}.T", lambda: matrix.tensor().t())
    node.attributes.update(weight=weight, bias=bias)
    return None


def read_batch_norm(node: Node, bound: dict[str, Any]) -> str | None:
    """Weight, bias, statistics and eps."""
    if not isinstance(bound.get("running_mean"), Constant):
        return "unknown"  # Computed from the input.
    node.attributes.update({k: bound[k] for k in ("weight", "bias", "running_mean", "running_var", "eps")})
    return None


def lower(b: Builder, node: Node, rule: rules.Rule, flow: Flow) -> None:
    """A rule for weights, the gradient, or pass."""
    if isinstance(rule, rules.Pass):
        send_unchanged(b, node, flow)
    elif isinstance(rule, rules.Gradient):
        send_gradient(b, AffineLayer.of(b, node), flow)
    elif isinstance(rule, rules.WeightRule):
        send = rule.lower_batch_norm if node.kind == "batch_norm" else rule.lower
        send(b, AffineLayer.of(b, node), flow)
    else:
        raise TypeError(f"{rule} is not defined for {node}: use one of the rules for layers with a weight")


def forward_conv(b: Builder, node: Node) -> None:
    """The operation itself; on a CPU by a weight that is laid out beforehand, with batch norms merged in."""
    # Of a result that nobody explains, frames may still stand in the batch: it has no layer.
    alone = all(v.has_batch_first for v in (*node.inputs, node.output))
    layer = AffineLayer.of(b, node) if alone and isinstance(plain_call(node), torch._ops.OpOverload) else None
    if layer is None or not layer.choice.packs or node.inputs != node.args[:1]:
        b.add_forward(node)
        return
    made = partial(layer.of_input, layer.weight, layer.bias)
    if not layer.choice.filters:
        b.add_forward(node, call=made(), with_relu=made(rectified=True))
        return
    b.filtered[layer.y] = way = _way_of(b, layer)

    @cache
    def product(rectified: bool) -> Callable[[Tensor], Tensor]:
        if way().startswith("looked"):
            return _after_look(layer, rectified, alike=way() == "looked, alike")
        return made(filtered=way() != "plain", alike=way() == "alike", rectified=rectified)

    b.add_forward(node, call=lambda x: product(False)(x), with_relu=lambda x: product(True)(x))


def _way_of(b: Builder, layer: AffineLayer) -> Callable[[], str]:
    """Whether and how Winograd's filtering makes a layer's output, once the rules above, which decide, are lowered."""
    y, uneven, compared, divided, pooled = layer.y, b.uneven, b.compared, b.divided, b.pooled

    @cache
    def way() -> str:
        if y in compared or y in divided:
            return "plain"
        if y in pooled and not winograd.tells_apart(layer.weight, of_given=_is_given(layer.x)):
            return "plain"
        if y not in uneven:
            return "alike" if y in pooled else "filtered"
        if not (layer.choice.looks_ahead and is_looked(layer, layer.weight)):
            return "plain"
        return "looked, alike" if y in pooled else "looked"

    return way


def _is_given(value: Value) -> bool:
    """Whether no layer with a weight stands on some way from the model's inputs to a value."""
    known, left = {value}, [value]
    while left:
        node = left.pop().producer
        if node is None:
            return True
        if node.kind not in ("conv", "linear"):
            left += [x for x in node.inputs if x not in known]
            known.update(node.inputs)
    return False


def _after_look(layer: AffineLayer, rectified: bool, alike: bool) -> Callable[[Tensor], Tensor]:
    product = looked(layer, layer.weight, layer.bias, alike)
    return (lambda x: torch.relu_(product(x))) if rectified else product


def forward_linear(b: Builder, node: Node) -> None:
    """The operation itself, on a CPU by the faster library."""
    a, x = node.attributes, node.args[1 if node.operation == "addmm" else 0]
    bias = a["bias"]
    plain = isinstance(node.call, torch._ops.OpOverload) and isinstance(bias, (Constant, type(None)))
    if not plain or b.device.type != "cpu" or node.inputs != (x,):
        b.add_forward(node)
        return
    weight, shift = a["weight"].tensor(), None if bias is None else bias.tensor()
    if shift is not None and shift.shape != (len(weight),):
        b.add_forward(node)
        return
    b.add_forward(node, call=lambda x: _product.linear(x, weight, shift))


def merged_layer(node: Node) -> Affine:
    """The layer with the batch norms folded into it, float64."""
    a = node.attributes
    if node.kind == "batch_norm":
        tail = (1,) * (len(node.output.shape) - 2)
        scale, shift = (t.view(-1, *tail) for t in textbook.double(norm_scale_shift(node)))
        return Affine(lambda x, w, b: x * w if b is None else x * w + b, scale, shift)
    weight, bias = textbook.double(merged_parameters(node))
    assert weight is not None
    if node.kind == "linear":
        return Affine(torch.nn.functional.linear, weight, bias)
    geometry = (a["stride"], a["padding"], a["dilation"], a["transposed"], a["output_padding"], a["groups"])
    return Affine(lambda x, w, b: torch.convolution(x, w, b, *geometry), weight, bias)


def through(walk: Walk, node: Node, rule: rules.Rule, R: Tensor) -> Share:
    """The textbook step."""
    if isinstance(rule, rules.Pass):
        return textbook.unchanged(node, R)
    layer, x = merged_layer(node), node.sources[0]
    if isinstance(rule, rules.Gradient):
        forward = lambda value: layer.apply(value, layer.weight, layer.bias)  # noqa: E731
        return Share({x: weightless.gradient(forward, walk.values[x], R)}, None)
    assert isinstance(rule, rules.WeightRule)
    own = node.attributes.get("own_padding")
    if own is None:
        relevance, ledger = rule.textbook(layer, walk.values[x], R)
        return Share({x: relevance}, ledger)
    padded = Affine(lambda t, w, b: layer.apply(pad(t, own), w, b), layer.weight, layer.bias)
    relevance, ledger = rule.textbook(padded, pad(walk.values[x], [-amount for amount in own]), R)
    return Share({x: pad(relevance, own)}, ledger)


CONV = Kind(
    name="conv",
    operations="conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d",
    lower=lower,
    textbook=through,
    read=read_conv,
    forward=forward_conv,
    weighted=True,
    modules={
        "conv1d": nn.Conv1d,
        "conv2d": nn.Conv2d,
        "conv3d": nn.Conv3d,
        "conv_transpose1d": nn.ConvTranspose1d,
        "conv_transpose2d": nn.ConvTranspose2d,
        "conv_transpose3d": nn.ConvTranspose3d,
    },
)


LINEAR = Kind(
    name="linear",
    operations="linear matmul mm addmm bmm",
    lower=lower,
    textbook=through,
    read=read_linear,
    forward=forward_linear,
    weighted=True,
    modules={"linear": nn.Linear},
)

BATCH_NORM = Kind(
    name="batch_norm",
    operations="batch_norm",
    lower=lower,
    textbook=through,
    read=read_batch_norm,
    preset=lambda sums: rules.Pass(),
    weighted=True,
)
