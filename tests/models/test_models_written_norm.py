"""Layer, group and instance norms that a model writes out are those of PyTorch, in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastlrp
from fastlrp import composites, rules
from fastlrp.composites import kind
from tests.models.oracle import relative_error

F64 = torch.float64
PRESETS = ("epsilon_plus", "epsilon_gamma_box", "alpha_beta", "attnlrp", "gradient")
Form = Callable[[Tensor, Tensor, Tensor], Tensor]


class Norm(nn.Module):
    """A norm that a function has, with weight and bias of its own."""

    def __init__(self, form: Form, sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.form, self.weight, self.bias = form, nn.Parameter(torch.randn(sizes)), nn.Parameter(torch.randn(sizes))

    def forward(self, x: Tensor) -> Tensor:
        return self.form(x, self.weight, self.bias)


class Model(nn.Module):
    """Two layers with the norm between."""

    def __init__(self, form: Form, conv: bool, sizes: tuple[int, ...]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 4, 3) if conv else nn.Linear(5, 6)
        self.norm, self.head = Norm(form, sizes), nn.Linear(4 * 9 if conv else 18, 3)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.norm(self.first(x))).flatten(1))


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=F64)


def operations(explainer: fastlrp.Explainer) -> list[str]:
    return [node.operation for node in explainer.plan.graph.nodes]


def explained(form: Form, conv: bool, sizes: tuple[int, ...]) -> list[Tensor]:
    model, x = Model(form, conv, sizes), numbers(2, 3, 5, 5) if conv else numbers(2, 3, 5)
    box = composites.epsilon_gamma_box(low=-3.0, high=3.0)
    names = [box if name == "epsilon_gamma_box" else name for name in PRESETS]
    explainer = fastlrp.Explainer(model, "epsilon_plus")
    with explainer.forward(x) as record:
        assert {"layer_norm", "group_norm", "instance_norm"} & {*operations(explainer)}
        torch.testing.assert_close(record.output, model(x), rtol=1e-13, atol=1e-13)
        return [record.under(name).relevance([0, 1]) for name in names]


def channels(t: Tensor) -> Tensor:
    return t[:, None, None]


def by_square(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """As older BERT and ConvNeXt have it."""
    u = x.mean(-1, keepdim=True)
    s = (x - u).pow(2).mean(-1, keepdim=True)
    return w * ((x - u) / torch.sqrt(s + 1e-6)) + b


def by_variance(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) * torch.rsqrt(x.var(-1, keepdim=True, unbiased=False) + 1e-6) * w + b


def scale_first(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """As Flax has it."""
    scale = torch.rsqrt(x.square().mean(-1, keepdim=True) - x.mean(-1, keepdim=True) ** 2 + 1e-6) * w
    return (x - x.mean(-1, keepdim=True)) * scale + b


def without_axis(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    c = x - x.mean(-1)[..., None]
    return b + w * c * (((c * c).sum(-1) / 6 + 1e-6) ** -0.5).unsqueeze(-1)


def over_channels(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    u = x.mean(1, keepdim=True)
    s = (x - u).pow(2).mean(1, keepdim=True)
    return channels(w) * ((x - u) / torch.sqrt(s + 1e-6)) + channels(b)


def var_mean(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    variance, mean = torch.var_mean(x, dim=1, unbiased=False, keepdim=True)
    return (x - mean) / (variance + 1e-6).sqrt() * channels(w) + channels(b)


def in_groups(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    rows = x.view(len(x), 2, -1)
    rows = (rows - rows.mean(-1, keepdim=True)) / (rows.var(-1, keepdim=True, unbiased=False) + 1e-6).sqrt()
    return rows.view(x.shape) * channels(w) + channels(b)


def of_map(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    variance, mean = torch.var_mean(x, dim=(2, 3), unbiased=False, keepdim=True)
    return torch.addcmul(channels(b), channels(w), (x - mean) * (variance + 1e-6).rsqrt())


def of_sample(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return (x - x.mean((1, 2, 3), True)) / (x.var((1, 2, 3), unbiased=False, keepdim=True) + 1e-6).sqrt() * w + b


CASES: dict[str, tuple[Form, list[Form], tuple[int, ...], bool]] = {
    "layer": (lambda x, w, b: F.layer_norm(x, (6,), w, b, 1e-6), [by_square, by_variance, scale_first, without_axis],
              (6,), False),
    "channels": (lambda x, w, b: F.layer_norm(x.permute(0, 2, 3, 1), (4,), w, b, 1e-6).permute(0, 3, 1, 2),
                 [over_channels, var_mean], (4,), True),
    "group": (lambda x, w, b: F.group_norm(x, 2, w, b, 1e-6), [in_groups], (4,), True),
    "instance": (lambda x, w, b: F.instance_norm(x, None, None, w, b, eps=1e-6), [of_map], (4,), True),
    "sample": (lambda x, w, b: F.layer_norm(x, (4, 3, 3), w, b, 1e-6), [of_sample], (4, 3, 3), True),
    "group of all": (lambda x, w, b: F.group_norm(x, 1, w, b, 1e-6),
                     [lambda x, w, b: of_sample(x, channels(w), channels(b))], (4,), True),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_norm_that_is_written_out(name: str) -> None:
    """As differences, quotients and sums they were 0.3 to 0.9 away under the presets for convolutions."""
    named, spelt, sizes, conv = CASES[name]
    expected = explained(named, conv, sizes)
    for form in spelt:
        for found, wanted in zip(explained(form, conv, sizes), expected, strict=True):
            assert relative_error(found, wanted) < 1e-12
