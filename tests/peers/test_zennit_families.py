"""More of torchvision's families against Zennit, where a canonizer of a few lines makes it see what the model does.

Zennit hooks modules. What these models do with operators and functions is given modules here: residual sums, the last
mean or pool. Squeeze-and-excitation, SiLU, hard-swish and layer norm have no counterpart in Zennit's composites.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastlrp
from fastlrp import composites
from tests.peers.zennit_oracle import relative_error, relevance
from tests.shortened import member, sizes
from tests.torchvision_models import import_models

models = import_models()
theirs = pytest.importorskip("zennit.composites", reason="zennit is not installed", exc_type=ImportError)
from zennit import canonizers, layer  # noqa: E402
from zennit.torchvision import ResNetCanonizer  # noqa: E402

pytestmark = pytest.mark.slow


def _forwards(replaced: dict[type, Callable[..., Tensor]], **modules: Callable[[], nn.Module]) -> Any:
    """A canonizer that gives modules of these types another forward, and modules of their own for it."""

    def attributes(name: str, module: nn.Module) -> dict[str, Any] | None:
        forward = replaced.get(type(module))
        if forward is None:
            return None
        return {"forward": forward.__get__(module), **{key: make() for key, make in modules.items()}}

    return canonizers.AttributeCanonizer(attributes)


def _merge(*pairs: tuple[str, str]) -> Any:
    return canonizers.NamedMergeBatchNorm([([layer], norm) for layer, norm in pairs])


SEQUENTIAL = canonizers.SequentialMergeBatchNorm


def _add(self: Any, *terms: Tensor) -> Tensor:
    return self.sum(torch.stack(terms, -1))


def _mobilenet(model: nn.Module) -> list[Any]:
    block = models.mobilenetv2.InvertedResidual

    def forward(self: Any, x: Tensor) -> Tensor:
        return _add(self, x, self.conv(x)) if self.use_res_connect else self.conv(x)

    def last(self: Any, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.pool(self.features(x)), 1))

    sums = _forwards({block: forward}, sum=layer.Sum)
    return [SEQUENTIAL(), sums, _forwards({type(model): last}, pool=lambda: nn.AdaptiveAvgPool2d(1))]


def _mnasnet(model: nn.Module) -> list[Any]:
    block = models.mnasnet._InvertedResidual

    def forward(self: Any, x: Tensor) -> Tensor:
        return _add(self, self.layers(x), x) if self.apply_residual else self.layers(x)

    def last(self: Any, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.pool(self.layers(x)), 1))

    sums = _forwards({block: forward}, sum=layer.Sum)
    return [SEQUENTIAL(), sums, _forwards({type(model): last}, pool=lambda: nn.AdaptiveAvgPool2d(1))]


def _regnet(model: nn.Module) -> list[Any]:
    block = models.regnet.ResBottleneckBlock

    def forward(self: Any, x: Tensor) -> Tensor:
        return self.activation(_add(self, x if self.proj is None else self.proj(x), self.f(x)))

    return [SEQUENTIAL(), _forwards({block: forward}, sum=layer.Sum)]


def _shufflenet(model: nn.Module) -> list[Any]:
    def last(self: Any, x: Tensor) -> Tensor:
        x = self.maxpool(self.conv1(x))
        x = self.conv5(self.stage4(self.stage3(self.stage2(x))))
        return self.fc(torch.flatten(self.pool(x), 1))

    return [SEQUENTIAL(), _forwards({type(model): last}, pool=lambda: nn.AdaptiveAvgPool2d(1))]


def _densenet(model: nn.Module) -> list[Any]:
    """Not the sequential merger: a dense layer's last convolution stands before the next layer's batch norm."""
    paths = [name for name, module in model.named_modules() if isinstance(module, models.densenet._DenseLayer)]
    pairs = [("features.conv0", "features.norm0"), *((f"{path}.conv1", f"{path}.norm2") for path in paths)]

    def last(self: Any, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.pool(self.relu(self.features(x))), 1))

    return [_merge(*pairs), _forwards({type(model): last}, pool=lambda: nn.AdaptiveAvgPool2d(1), relu=nn.ReLU)]


def _googlenet(model: nn.Module) -> list[Any]:
    """A functional ReLU is left to its gradient: after a convolution it stops nothing that carries relevance."""
    return [SEQUENTIAL()]


FAMILIES: dict[str, tuple[Callable[[nn.Module], list[Any]], int]] = {
    "resnext50_32x4d": (lambda model: [ResNetCanonizer()], 32),
    "squeezenet1_1": (lambda model: [], 48),
    "googlenet": (_googlenet, 48),
    "densenet121": (_densenet, 32),
    "mobilenet_v2": (_mobilenet, 32),
    "mnasnet0_5": (_mnasnet, 32),
    "regnet_x_400mf": (_regnet, 32),
    "shufflenet_v2_x0_5": (_shufflenet, 32),
}
COMPOSITES = {
    "epsilon_plus": (composites.epsilon_plus, theirs.EpsilonPlus),
    "epsilon_alpha2_beta1_flat": (composites.epsilon_alpha2_beta1_flat, theirs.EpsilonAlpha2Beta1Flat),
    "epsilon_gamma_box": (
        lambda: composites.epsilon_gamma_box(-4.0, 4.0),
        lambda canonizers: theirs.EpsilonGammaBox(low=-4.0, high=4.0, canonizers=canonizers),
    ),
}


@pytest.mark.parametrize(("name", "size"), sizes(FAMILIES))
def test_families_equal_zennit(name: str, size: str) -> None:
    """In float64. Measured: 2.1e-13 (DenseNet, MobileNet v2), 5e-15 elsewhere."""
    canonize, side = FAMILIES[name]
    model = member(name, size, dtype=torch.float64, classes=20)
    x = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    targets = model(x).amin(0).topk(2).indices.tolist()
    with fastlrp.Explainer(model, "epsilon").forward(x) as record:
        found = {key: record.under(ours()).relevance(targets) for key, (ours, _) in COMPOSITES.items()}
    for key, (_, make) in COMPOSITES.items():
        expected = relevance(model, x, targets, make(canonizers=canonize(model)))
        assert relative_error(found[key], expected) <= 1e-9, key
