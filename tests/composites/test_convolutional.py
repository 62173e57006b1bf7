"""Dense layers as convolutions: the same scores and the same relevance at the network's own size, maps above it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastlrp import Explainer, composites, rules
from fastlrp.convolutional import as_convolutions
from tests.torchvision_models import import_models, random_model, randomise_batch_norm


def chain() -> nn.Sequential:
    """For images of 16x20; feature maps of 4x5."""
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2)),
        nn.Sequential(nn.Conv2d(6, 4, 3, padding=1), nn.ReLU(inplace=True), nn.AvgPool2d(2)),
        nn.Flatten(),
        nn.Sequential(nn.Linear(80, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(), nn.Linear(12, 7, bias=False)),
        nn.PReLU(),
        nn.Linear(7, 5),
        nn.Softmax(dim=-1),
    )


def made() -> nn.Sequential:
    return randomise_batch_norm(chain()).double().eval()


SIZE = (16, 20)


class Shaped(nn.Module):
    """As torchvision's VGG is written."""

    def __init__(self, pool: nn.Module | None = None, scale: float = 1.0) -> None:
        super().__init__()
        parts = made()
        self.features = nn.Sequential(parts[0], parts[1])
        if pool is not None:
            self.avgpool = pool
        self.classifier = nn.Sequential(*parts[3:])
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        if hasattr(self, "avgpool"):
            x = self.avgpool(x)
        return self.scale * self.classifier(torch.flatten(x, 1))


MODELS: dict[str, Any] = {
    "sequential": made,
    "list": lambda: list(made()),
    "features and classifier": Shaped,
    "with a pool that does nothing": lambda: Shaped(nn.AdaptiveAvgPool2d((4, 5))),
}


@pytest.mark.parametrize("kind", list(MODELS))
def test_the_same_scores(kind: str) -> None:
    model = MODELS[kind]()
    found = as_convolutions(model, SIZE)
    x = torch.randn(3, 3, *SIZE, dtype=torch.float64)
    dense = nn.Sequential(*model) if isinstance(model, list) else model
    scores = found(x)
    assert scores.shape == (3, 5, 1, 1)
    torch.testing.assert_close(scores.flatten(1), dense(x), rtol=1e-12, atol=1e-14)
    assert not any(isinstance(m, (nn.Linear, nn.Flatten, nn.Sequential, nn.AdaptiveAvgPool2d)) for m in found)


def test_larger_images_give_a_map_of_scores() -> None:
    """Each position's scores are those of the network on the part of the image below it, where nothing is padded."""
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(54, 8), nn.ReLU(), nn.Linear(8, 4)
    )
    model = model.double().eval()
    found = as_convolutions(model, 8)
    x = torch.randn(2, 3, 14, 12, dtype=torch.float64)
    scores = found(x)
    assert scores.shape == (2, 4, 4, 3)
    for row in range(4):
        for column in range(3):
            part = x[:, :, 2 * row : 2 * row + 8, 2 * column : 2 * column + 8]
            torch.testing.assert_close(scores[:, :, row, column], model(part), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("composite", ["epsilon", "zplus", "gamma", "epsilon_alpha2_beta1_flat", "gradient"])
def test_the_same_relevance(composite: str) -> None:
    model = made()[:-1]  # without the softmax: scores, not probabilities
    x = torch.randn(2, 3, *SIZE, dtype=torch.float64)
    rule = convolutions = composites.resolve(composite)
    if composite == "epsilon_alpha2_beta1_flat":  # Which goes by kind of layer.
        convolutions = rule.with_entries((composites.span(2), rules.Epsilon()))
    dense = Explainer(model, rule)(x, "all")
    found = Explainer(as_convolutions(model, SIZE), convolutions)(x, "all")
    torch.testing.assert_close(found, dense, rtol=1e-10, atol=1e-12)


def test_weights_are_shared() -> None:
    """No copy of a weight is made, and the explainer of one notices when the other's weights change."""
    model = made()
    found = as_convolutions(model, SIZE)
    storages = {p.untyped_storage().data_ptr() for p in model.parameters()}
    assert {p.untyped_storage().data_ptr() for p in found.parameters()} == storages
    x = torch.randn(1, 3, *SIZE, dtype=torch.float64)
    explainer = Explainer(found, "epsilon")
    before = explainer(x, 0)
    with torch.no_grad():
        model[3][0].weight.mul_(-1)
    torch.testing.assert_close(found(x).flatten(1), model(x))
    after = explainer(x, 0)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, Explainer(model, "epsilon")(x, 0))


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_is(training: bool) -> None:
    model = made().train(training)
    model[0][1].eval()
    before = [(m, m.training) for m in model.modules()]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    found = as_convolutions(model, SIZE)
    assert [(m, m.training) for m in model.modules()] == before
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert not found[1].training, "a module that is the model's own keeps its mode"
    assert all(m.training is training for m in (found, *found) if m is not found[1])
    grads = [p.requires_grad for p in as_convolutions(model.requires_grad_(False), SIZE).parameters()]
    assert not any(grads)


def test_batch_norm_in_training_updates_the_models_own_statistics() -> None:
    model = made()
    found = as_convolutions(model, SIZE).train()
    before = model[3][1].running_mean.clone()
    found(torch.randn(8, 3, *SIZE, dtype=torch.float64))
    assert not torch.equal(model[3][1].running_mean, before)


@pytest.mark.slow
def test_torchvisions_vgg_and_alexnet() -> None:
    """At their own 224 pixels, and above: 288 / 32 = 9, three positions of the 7x7 kernel in each direction."""
    for name in ("alexnet", "vgg11"):
        model = random_model(name, classes=10)
        found = as_convolutions(model, 224)
        x = torch.randn(1, 3, 224, 224)
        torch.testing.assert_close(found(x).flatten(1), model(x), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        assert found(torch.randn(1, 3, 288, 256)).shape == (1, 10, 3, 2)


def test_numbers_are_those_of_torchvisions_features() -> None:
    """So that the tutorial's numbers hold: 31 is the first dense layer of VGG-16."""
    model = import_models().vgg16(weights=None, num_classes=10, init_weights=False).eval()
    model.avgpool = nn.AdaptiveAvgPool2d(2)
    model.classifier[0] = nn.Linear(512 * 4, 64)
    model.classifier[3] = nn.Linear(64, 64)
    model.classifier[6] = nn.Linear(64, 10)
    found = as_convolutions(model, 64)
    assert [found[i] for i in range(31)] == [model.features[i] for i in range(31)]
    assert [tuple(found[i].kernel_size) for i in (31, 34, 37)] == [(2, 2), (1, 1), (1, 1)]
    assert len(found) == 38


def test_an_adaptive_pool_of_equal_windows_becomes_an_ordinary_one() -> None:
    model = Shaped(nn.AdaptiveAvgPool2d((4, 5)))
    found = as_convolutions(model, (32, 60))
    assert [m.kernel_size for m in found if isinstance(m, nn.AvgPool2d)] == [2, (2, 3)]
    x = torch.randn(1, 3, 32, 60, dtype=torch.float64)
    torch.testing.assert_close(found(x).flatten(1), model(x), rtol=1e-12, atol=1e-14)


class Branch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


@pytest.mark.parametrize(
    ("make", "size", "error", "match"),
    [
        (made, (16, 24), ValueError, r"takes 80 features, at this input_size it would get \(4, 4, 6\)"),
        (made, 0, ValueError, r"input_size must be a height and a width, at least 1, got 0"),
        (made, (16, 20, 3), ValueError, r"input_size must be a height and a width"),
        (lambda: Shaped(nn.AdaptiveAvgPool2d((4, 5))), (28, 20), ValueError, r"\(7, 5\) into \(4, 5\) in windows"),
        (lambda: Shaped(scale=2.0), SIZE, ValueError, r"computes something other than its layers in a row \(scores"),
        (lambda: nn.Linear(3, 4), SIZE, TypeError, r"takes an nn.Sequential, .* got Linear: pass its layers in order"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), 2, ValueError, r"needs a convolution below the linear"),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.Linear(5, 2)), 5, TypeError, r"comes before any flattening"),
        (lambda: [nn.Conv2d(3, 4, 1), nn.Flatten(2), nn.Linear(25, 2)], 5, ValueError, r"must flatten all"),
        (lambda: [nn.Conv2d(3, 4, 1), nn.Flatten(), nn.LayerNorm(100)], 5, TypeError, r"LayerNorm.* is neither linear"),
        (lambda: [nn.Conv2d(3, 4, 1), Branch(), nn.Linear(4, 2)], 5, TypeError, r"returns \(2, 4\): layers before"),
    ],
)  # fmt: skip
def test_errors(make: Any, size: Any, error: type[Exception], match: str) -> None:
    model = make()
    modes = [m.training for m in model.modules()] if isinstance(model, nn.Module) else []
    with pytest.raises(error, match=match):
        as_convolutions(model, size)
    assert not modes or [m.training for m in model.modules()] == modes


def test_an_activation_of_ones_own() -> None:
    class Square(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.relu(x) ** 2

    layers = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 6), Square(), nn.Linear(6, 2)]
    with pytest.raises(TypeError, match=r"set its attribute elementwise=True if it treats each entry alone"):
        as_convolutions(layers, 5)
    layers[4].elementwise = True  # type: ignore[assignment]
    x = torch.randn(2, 3, 5, 5)
    torch.testing.assert_close(as_convolutions(layers, 5)(x).flatten(1), nn.Sequential(*layers)(x))
