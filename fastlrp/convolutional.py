"""Dense layers as convolutions: a classifier of images of one size becomes one for images of any size above it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

_ELEMENTWISE: tuple[type[nn.Module], ...] = (
    nn.Identity, nn.Dropout, nn.Dropout1d, nn.AlphaDropout, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU,
    nn.GELU, nn.SiLU, nn.Mish, nn.Tanh, nn.Sigmoid, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Softplus,
    nn.Softsign, nn.PReLU,
)  # fmt: skip


def as_convolutions(layers: nn.Module | Iterable[nn.Module], input_size: int | tuple[int, int]) -> nn.Sequential:
    """The same network, its linear layers written as convolutions.

    The first linear layer behind the flattening becomes a convolution with a kernel of the feature map's size, the
    others 1x1 convolutions. On images of ``input_size`` the result computes the network's scores, as ``(B, C, 1, 1)``;
    on larger ones a map of them, ``(B, C, H', W')``, one for each position of the kernel.

    Args:
        layers: an ``nn.Sequential`` (nested ones too), a list of layers in order, or a model made as torchvision's
            VGG and AlexNet are: ``features``, ``avgpool`` (may be absent), flattened, ``classifier``. An adaptive
            average pool is dropped where it is the identity at this size, and an ordinary average pool where it is
            one of equal windows.
        input_size: height and width (one number for both) of the images that the network was made for.

    Returns:
        one flat ``nn.Sequential``. Convolutions, pools and activations are the model's own modules; the weights of the
        new convolutions share memory with those of the linear layers, and their mode is theirs.

    Raises:
        TypeError: for anything else, or a layer behind the flattening that is neither linear nor element-wise.
        ValueError: if sizes do not fit, an adaptive pool has windows of different sizes, or the model computes
            something other than its layers in a row.
    """
    model = layers if isinstance(layers, nn.Module) else nn.Sequential(*layers)
    size = (input_size, input_size) if isinstance(input_size, int) else tuple(input_size)
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"input_size must be a height and a width, at least 1, got {input_size!r}")
    chain = _in_a_row(model)
    probe = _probe(chain, size)
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with torch.no_grad():
            pairs = list(_converted(chain, probe))
            converted = nn.Sequential(*(new for _, new in pairs)).eval()
            _check(model, converted, probe)
    finally:
        for module, training in modes.items():
            module.training = training
    for layer, new in pairs:
        if new is not layer:
            new.train(layer.training)
    converted.training = any(layer.training for layer in converted)
    return converted


def _in_a_row(model: nn.Module) -> list[nn.Module]:
    """The model's layers in the order that it calls them in."""
    if isinstance(model, nn.Sequential):
        return list(_flat(model))
    features, classifier = (getattr(model, name, None) for name in ("features", "classifier"))
    if not isinstance(features, nn.Module) or not isinstance(classifier, nn.Module):
        raise TypeError(
            f"as_convolutions takes an nn.Sequential, a list of layers, or a model with 'features' and 'classifier', "
            f"got {type(model).__name__}: pass its layers in order"
        )
    pool = getattr(model, "avgpool", None)
    parts = [features, *([pool] if isinstance(pool, nn.Module) else []), nn.Flatten(), classifier]
    return [layer for part in parts for layer in _flat(part)]


def _flat(module: nn.Module) -> Iterator[nn.Module]:
    if isinstance(module, nn.Sequential):
        for child in module:
            yield from _flat(child)
    else:
        yield module


def _probe(chain: list[nn.Module], size: tuple[int, ...]) -> Tensor:
    """Two images of noise: what is checked on them holds for others."""
    first = next((layer for layer in chain if isinstance(layer, (nn.Conv2d, nn.Linear))), None)
    if not isinstance(first, nn.Conv2d):
        raise ValueError(
            f"as_convolutions needs a convolution below the linear layers, the first layer with a weight is {first}"
        )
    weight = first.weight
    noise = torch.randn(2, first.in_channels, *size, generator=torch.Generator().manual_seed(0))
    return noise.to(weight.device, weight.dtype)


def _converted(chain: list[nn.Module], x: Tensor) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Old and new layers; ``x`` becomes the input of each in turn, so that sizes are known."""
    flattened = False
    for layer in chain:
        if isinstance(layer, nn.Flatten):
            if layer.start_dim != 1 or layer.end_dim not in (-1, x.dim() - 1):
                raise ValueError(f"{layer} must flatten all axes but the first to become convolutions: nn.Flatten()")
            flattened = True
            continue
        new = _dense(layer, x) if flattened else _spatial(layer, x)
        if new is not None:
            x = new(x)
            yield layer, new
        if not flattened and x.dim() != 4:
            raise TypeError(f"{layer} returns {tuple(x.shape)}: layers before the flattening must keep (B, C, H, W)")


def _spatial(layer: nn.Module, x: Tensor) -> nn.Module | None:
    """A layer on feature maps: as it is, but for adaptive pools, which would undo a larger input."""
    if isinstance(layer, nn.Linear):
        raise TypeError(
            f"{layer} comes before any flattening: it would act on the width of {tuple(x.shape)}. Put nn.Flatten() "
            "before it"
        )
    if not isinstance(layer, nn.AdaptiveAvgPool2d):
        return layer
    size, wanted = tuple(x.shape[2:]), tuple(layer(x).shape[2:])
    if size == wanted:
        return None
    if any(s % w for s, w in zip(size, wanted, strict=True)):
        raise ValueError(
            f"{layer} turns feature maps of {size} into {wanted} in windows of different sizes: give input_size the "
            f"size of image whose feature maps are {wanted}"
        )
    height, width = (s // w for s, w in zip(size, wanted, strict=True))
    return nn.AvgPool2d((height, width))


def _dense(layer: nn.Module, x: Tensor) -> nn.Module:
    """A layer behind the flattening, on ``(B, C, H, W)``."""
    if isinstance(layer, nn.Linear):
        return _linear(layer, x)
    if isinstance(layer, nn.BatchNorm1d):
        return _batch_norm(layer)
    if isinstance(layer, (nn.Softmax, nn.LogSoftmax)):
        return type(layer)(dim=1)
    if isinstance(layer, _ELEMENTWISE) or getattr(layer, "elementwise", False):
        return layer
    raise TypeError(
        f"{layer} comes behind the flattening and is neither linear nor element-wise: as_convolutions does not know "
        "what it is on a map (set its attribute elementwise=True if it treats each entry alone)"
    )


def _linear(layer: nn.Linear, x: Tensor) -> nn.Conv2d:
    channels, *size = x.shape[1:]
    if layer.in_features != x[0].numel():
        raise ValueError(
            f"{layer} takes {layer.in_features} features, at this input_size it would get {tuple(x.shape[1:])}, "
            f"{x[0].numel()}: pass the size of image that the network was made for"
        )
    new = nn.Conv2d(channels, layer.out_features, (size[0], size[1]), bias=layer.bias is not None, device="meta")
    weight = layer.weight.detach().view(layer.out_features, *x.shape[1:])
    new.weight = nn.Parameter(weight, layer.weight.requires_grad)
    if layer.bias is not None:
        new.bias = nn.Parameter(layer.bias.detach(), layer.bias.requires_grad)
    return new


def _batch_norm(layer: nn.BatchNorm1d) -> nn.BatchNorm2d:
    new = nn.BatchNorm2d(layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats)
    for name, tensor in (*layer.named_parameters(), *layer.named_buffers()):
        setattr(new, name, tensor)
    return new.eval()


def _check(model: nn.Module, converted: nn.Module, x: Tensor) -> None:
    """What was taken for a row of layers is one.

    Raises:
        ValueError: if the model computes something else.
    """
    expected, found = model(x), converted(x)
    if not isinstance(expected, Tensor) or expected.numel() != found.numel():
        got = tuple(expected.shape) if isinstance(expected, Tensor) else type(expected).__name__
        raise ValueError(f"the model returns {got}, its layers in a row {tuple(found.shape)}: pass them in order")
    difference = float((found.reshape(expected.shape) - expected).abs().max())
    allowed = 1e3 * torch.finfo(x.dtype).eps * max(1.0, float(expected.abs().max()))
    if not difference <= allowed:
        raise ValueError(
            f"the model computes something other than its layers in a row (scores differ by up to {difference:.3g}): "
            "its forward method does more; pass the layers in the order that it calls them in"
        )
