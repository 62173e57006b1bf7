"""Which modules are layers to Captum, and what each of them does with relevance when nobody says."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from fastlrp.compat.captum.rules import Asked, check_rule, is_addition, read_rule

_PROPORTIONAL: tuple[type[nn.Module], ...] = (
    nn.modules.conv._ConvNd,
    nn.Linear,
    nn.modules.batchnorm._BatchNorm,
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
    nn.Upsample,
)
HOOKED = (nn.ReLU, nn.Dropout, nn.Tanh)
"""Activations that Captum has a hook for: it passes relevance through these whatever rule is attached to them."""

_PASSES: tuple[type[nn.Module], ...] = (
    *HOOKED, nn.modules.dropout._DropoutNd,
    nn.CELU, nn.ELU, nn.GELU, nn.Hardshrink, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.LeakyReLU, nn.LogSigmoid,
    nn.LogSoftmax, nn.Mish, nn.PReLU, nn.ReLU6, nn.RReLU, nn.SELU, nn.SiLU, nn.Sigmoid, nn.Softmax, nn.Softmax2d,
    nn.Softmin, nn.Softplus, nn.Softshrink, nn.Softsign, nn.Tanhshrink, nn.Threshold,
    nn.LayerNorm, nn.GroupNorm, nn.modules.instancenorm._InstanceNorm, nn.RMSNorm,
)  # fmt: skip
_CARRIES: tuple[type[nn.Module], ...] = (
    nn.Identity, nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle,
    nn.modules.padding._ConstantPadNd, nn.modules.padding._ReflectionPadNd, nn.modules.padding._ReplicationPadNd,
    nn.modules.padding._CircularPadNd,
)  # fmt: skip


def _is_layer(module: nn.Module) -> bool:
    # A layer whose weight is parametrised has sub-modules and is a layer all the same.
    parametrised = hasattr(module, "parametrizations") and isinstance(module, _PROPORTIONAL)
    return parametrised or next(module.children(), None) is None


def named_layers(model: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """``(path, module)`` of every module without sub-modules, under each of its names. Never the model itself."""
    for name, child in model._modules.items():
        if child is None:
            continue
        if _is_layer(child):
            yield prefix + name, child
        else:
            yield from named_layers(child, f"{prefix}{name}.")


def check_rules(model: nn.Module) -> None:
    """Raise TypeError if any module's attribute ``rule`` is neither a rule nor None."""
    for path, module in model.named_modules():
        if getattr(module, "rule", None) is not None:
            check_rule(module.rule, path)


def asked_of(module: nn.Module, path: str) -> Asked:
    """The module's rule, or the default of its type."""
    rule = getattr(module, "rule", None)
    if type(module) in HOOKED:
        return Asked("pass", given_again=rule is not None)
    if rule is not None:
        return read_rule(rule, path)
    if isinstance(module, _PROPORTIONAL) or is_addition(module):
        return Asked("epsilon")
    if isinstance(module, _PASSES):
        return Asked("pass")
    return Asked("carry" if isinstance(module, _CARRIES) else "none")


def assignment(model: nn.Module) -> dict[str, Asked]:
    """What is asked of each layer, by path.

    Raises:
        TypeError, ValueError: for a rule that cannot be read, with the layer's path.
    """
    return {path: asked_of(module, path) for path, module in named_layers(model)}


def forget_rules(model: nn.Module) -> None:
    """Delete the attribute ``rule`` of every layer, as Captum does after each attribution."""
    for _, module in named_layers(model):
        vars(module).pop("rule", None)
