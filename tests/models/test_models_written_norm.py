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
from tests.models.checks import new_weights_are_followed
from tests.models.oracle import relative_error
from tests.transformers.oracle import relevance

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


def deviations(x: Tensor, axis: int, unbiased: bool, inside: float, beside: float) -> Tensor:
    return (x.var(axis, unbiased=unbiased, keepdim=True) + inside).sqrt() + beside


@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize(("unbiased", "inside", "beside"), [(True, 1e-5, 0), (False, 0, 1e-3), (True, 0, 0.1)])
def test_other_deviations(axis: int, unbiased: bool, inside: float, beside: float) -> None:
    """PyTorch has no such operation: passed whole under one rule, and with its own sigma held fixed under the other."""

    def form(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return (x - x.mean(axis, keepdim=True)) / deviations(x, axis, unbiased, inside, beside) * w + b

    model, x = Model(form, False, (6,) if axis == 2 else (3, 1)), numbers(2, 3, 5)
    explainer = fastlrp.Explainer(model, "epsilon")
    with explainer.forward(x) as record:
        assert "layer_norm" in operations(explainer)
        torch.testing.assert_close(record.output, model(x), rtol=1e-13, atol=1e-13)
    fixed = fastlrp.Explainer(model, "attnlrp")
    h = model.first(x)
    sigma, w, b = deviations(h, axis, unbiased, inside, beside).detach(), model.norm.weight, model.norm.bias
    held = lambda x: model.head(F.relu((h := model.first(x)).sub(h.mean(axis, True)).div(sigma) * w + b).flatten(1))  # noqa: E731
    torch.testing.assert_close(fixed(x, [0, 2]), relevance(held, x, [0, 2]), rtol=1e-10, atol=1e-12)
    for checked in (explainer, fixed):
        assert checked.verify(x, [0, 2]).ok


def read_twice(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    u = x.mean(-1, keepdim=True)
    s = (x - u).square().mean(-1, keepdim=True)
    return (x - u) / (s + 1e-6).sqrt() * w + b + u


def clamped(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    u = x.mean(-1, keepdim=True)
    return (x - u) / (x - u).square().mean(-1, keepdim=True).clamp(min=1e-3).sqrt() * w + b


def other_mean(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    c = x - x.mean(1, keepdim=True)
    return c / (c.square().mean(-1, keepdim=True) + 1e-6).sqrt() * w + b


def part_of_the_mean(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    c = x - 0.5 * x.mean(-1, keepdim=True)
    return c / (x.var(-1, keepdim=True, unbiased=False) + 1e-6).sqrt() * w + b


def weighed_before(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    c = (x - x.mean(-1, keepdim=True)) * w
    return c / (c.square().mean(-1, keepdim=True) + 1e-6).sqrt() + b


def sum_of_squares(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    c = x - x.mean(-1, keepdim=True)
    return c / (c.square().sum(-1, keepdim=True) + 1e-6).sqrt() * w + b


@pytest.mark.parametrize(
    "form", [read_twice, clamped, other_mean, part_of_the_mean, weighed_before, sum_of_squares]
)  # fmt: skip
def test_what_is_no_such_norm(form: Form) -> None:
    """One whose mean is read, one with a smallest variance, and what resembles one: read as it stands there."""
    explainer = fastlrp.Explainer(Model(form, False, (6,)), "epsilon", example_inputs=numbers(2, 3, 5))
    assert "layer_norm" not in operations(explainer)
    assert "mul" in operations(explainer) or "div" in operations(explainer)


class Part(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def standardized(x: Tensor, mean: Callable[[Tensor], Tensor]) -> Tensor:
    c = x - mean(x)
    return c / ((c * c).mean(-1, keepdim=True) + 1e-6).sqrt()


@pytest.mark.parametrize("what", ["mean", "quotient"])
def test_what_is_asked_for_stays(what: str) -> None:
    """A module that gives the mean, or what weight and bias are applied to, is a layer of which relevance is asked."""
    mean = Part(lambda x: x.mean(-1, keepdim=True))
    part = mean if what == "mean" else Part(lambda x: standardized(x, lambda x: x.mean(-1, keepdim=True)))

    def form(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return (standardized(x, part) if what == "mean" else part(x)) * w + b

    model, x = Model(form, False, (6,)), numbers(2, 3, 5)
    model.norm.part = part
    explainer = fastlrp.Explainer(model, "epsilon")
    with explainer.forward(x) as record:
        assert ("layer_norm" in operations(explainer)) is (what == "quotient")
        found = record.relevance([0], layers=["norm.part"])
    assert next(iter(found.values())).shape[-1] == (1 if what == "mean" else 6)


def test_without_a_mean_the_scale_is_a_gate() -> None:
    """An RMS norm needs no node of its own: the same relevance under every preset."""

    def spelt(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return w * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))

    def of(form: Form) -> list[Tensor]:
        with fastlrp.Explainer(Model(form, False, (6,)), "epsilon").forward(numbers(2, 3, 5)) as record:
            return [record.under(name).relevance([0, 1]) for name in PRESETS if "box" not in name]

    for found, wanted in zip(of(spelt), of(lambda x, w, b: F.rms_norm(x, (6,), w, 1e-6)), strict=True):
        assert relative_error(found, wanted) < 1e-13


def test_a_weight_that_changes_is_followed() -> None:
    model, x = Model(by_square, False, (6,)), numbers(2, 3, 5)
    changes = [(model.norm.weight.mul_, -2.0), (model.norm.bias.add_, 1.0)]
    new_weights_are_followed(fastlrp.Explainer(model, "attnlrp"), x, "attnlrp", changes)


def test_it_is_a_normalization_to_a_composite() -> None:
    """By kind and by the path of its module."""
    model, x = Model(over_channels, True, (4,)), numbers(2, 3, 5, 5)
    base = composites.epsilon_plus()
    fixed = fastlrp.Explainer(model, base.with_entries((kind("normalization"), rules.FixedSigma())))
    named = fastlrp.Explainer(model, base.with_entries(("norm", rules.FixedSigma())))
    assert relative_error(named(x, [0]), fixed(x, [0])) == 0
    assert relative_error(fastlrp.Explainer(model, base)(x, [0]), fixed(x, [0])) > 0.1
    assert fixed.verify(x, [0]).ok


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_statistics_in_float32_and_weights_in_half_precision(dtype: torch.dtype) -> None:
    """As transformers' ConvNeXt and SAM have it: 0.4 away where the weights stood behind a conversion of their own."""

    def form(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        rows = x.float()
        u = rows.mean(1, keepdim=True)
        rows = (rows - u) / torch.sqrt((rows - u).pow(2).mean(1, keepdim=True) + 1e-6)
        return channels(w) * rows.to(dtype=x.dtype) + channels(b)

    def of(form: Form) -> tuple[Tensor, fastlrp.Explainer]:
        model, x = Model(form, True, (4,)).to(dtype), numbers(2, 3, 5, 5).to(dtype)
        explainer = fastlrp.Explainer(model, "epsilon_plus")
        with explainer.forward(x) as record:
            assert torch.equal(record.output, model(x))
            return record.relevance([0, 1]), explainer

    found, explainer = of(form)
    assert "layer_norm" in operations(explainer)
    assert "add" not in operations(explainer)
    assert relative_error(found, of(CASES["channels"][0])[0]) < 0.02  # Measured: 0.005, bfloat16; 0.0006, float16.
