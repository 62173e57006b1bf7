"""A plain layer-by-layer walk through an ``nn.Sequential``, in the definitions of fastlrp.reference alone."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastlrp import Stabilizer, rules
from fastlrp.reference import weightless
from fastlrp.reference.redistribution import Affine
from tests.reference import textbook


def affine(layer: nn.Module) -> Affine:
    """A convolution or linear layer as a function of its parameters."""
    bias = None if layer.bias is None else layer.bias.detach()
    if isinstance(layer, nn.Linear):
        return Affine(F.linear, layer.weight.detach(), bias)
    assert isinstance(layer, nn.Conv2d)
    geometry = (layer.stride, layer.padding, layer.dilation, layer.groups)
    return Affine(lambda x, w, b: F.conv2d(x, w, b, *geometry), layer.weight.detach(), bias)


def through(layer: nn.Module, x: Tensor, R: Tensor, rule: rules.Rule) -> Tensor:
    """One affine layer under one rule."""
    a, st = affine(layer), Stabilizer.ensure(getattr(rule, "stabilizer", 0.0))
    zero_bias = getattr(rule, "zero_bias", False)
    if isinstance(rule, rules.Epsilon):
        return textbook.epsilon(a, x, R, st, zero_bias)[0]
    if isinstance(rule, rules.ZPlus):
        return textbook.zplus(a, x, R, st, zero_bias)[0]
    if isinstance(rule, rules.AlphaBeta):
        return textbook.alpha_beta(a, x, R, st, rule.alpha, rule.beta, zero_bias)[0]
    if isinstance(rule, rules.Gamma):
        return textbook.gamma(a, x, R, st, rule.gamma, zero_bias)[0]
    if isinstance(rule, rules.PlainGamma):
        return textbook.modified_weights(a, x, R, st, lambda w: w + rule.gamma * w.clamp(min=0), zero_bias)[0]
    if isinstance(rule, rules.ModifiedWeights):
        return textbook.modified_weights(a, x, R, st, rule.modify, zero_bias)[0]
    if isinstance(rule, rules.ZBox):
        return textbook.zbox(a, x, R, st, rule.low, rule.high)[0]
    if isinstance(rule, rules.WSquare):
        return textbook.wsquare(a, x, R, st, zero_bias)[0]
    if isinstance(rule, rules.Flat):
        return textbook.flat(a, x, R, st)[0]
    assert isinstance(rule, rules.Gradient), rule
    return weightless.gradient(layer, x, R)


def walk(
    model: nn.Sequential,
    x: Tensor,
    R: Tensor,
    rule_of: Callable[[int, int], rules.Rule],
    max_pool: str = "winner",
    at_relu: str = "pass",
    average: Stabilizer | None = None,
) -> dict[str, Tensor]:
    """Relevance of every layer's output and of the input.

    Args:
        R: initial relevance ``(B, K, C)``.
        rule_of: ``(position among the affine layers, how many there are) -> rule``.
        at_relu: ``"pass"``, ``"gradient"``, ``"deconvnet"``, ``"guided"``.
        average: stabilizer of average pools.
    """
    activations = [x]
    with torch.no_grad():
        for layer in model:
            activations.append(layer(activations[-1]))
    weighted = [layer for layer in model if isinstance(layer, (nn.Conv2d, nn.Linear))]
    found = {"output": R}
    for position in reversed(range(len(model))):
        layer, x = model[position], activations[position]
        found[str(position)] = R
        if layer in weighted:
            R = through(layer, x, R, rule_of(weighted.index(layer), len(weighted)))
        elif isinstance(layer, nn.ReLU):
            if at_relu == "gradient":
                R = R * (x > 0).unsqueeze(1)
            elif at_relu == "deconvnet":
                R = weightless.deconvnet(R)
            elif at_relu == "guided":
                R = weightless.guided_backprop(x, R)
        elif isinstance(layer, nn.Flatten):
            R = R.reshape(*R.shape[:2], *x.shape[1:])
        elif isinstance(layer, nn.MaxPool2d):
            pair = [[v, v] if isinstance(v, int) else list(v) for v in (
                layer.kernel_size, layer.stride, layer.padding, layer.dilation)]  # fmt: skip
            R = weightless.max_pool(x, R, max_pool, *pair, layer.ceil_mode, Stabilizer())[0]
        else:
            assert isinstance(layer, nn.AvgPool2d), layer
            R = weightless.norm(layer, x, R, average or Stabilizer())[0]
    found["input"] = R
    return found


def one_hot_scores(y: Tensor) -> Tensor:
    """Initial relevance of all classes: ``(B, C, C)``, each class its own score."""
    return torch.diag_embed(y.detach())
