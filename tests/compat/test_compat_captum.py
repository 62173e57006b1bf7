"""``LRP`` under both imports: the same script, the same numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.shim_captum import additive_resnet18, attach
from tests.compat.captum_scripts import (
    Functional,
    Library,
    Perceptron,
    Skip,
    SmallCnn,
    TwoInputs,
    agree,
    images,
    prepared,
    relative_error,
    replacement,
    run,
    state,
    theirs,
    unchanged,
)
from tests.shortened import member, sizes
from tests.torchvision_models import random_model

X = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)


def test_two_linear_layers() -> None:
    """The numbers are those of Captum's own test: 18 x."""

    def script(lib: Library) -> Any:
        model = Perceptron().double().eval()
        model.linear.rule = lib.EpsilonRule()
        model.linear2.rule = lib.EpsilonRule()
        lrp = lib.LRP(model)
        assert lrp.has_convergence_delta()
        assert lrp.multiplies_by_inputs
        with pytest.raises(NotImplementedError):
            lrp.attribute_future()
        return lrp.attribute(X)

    assert torch.allclose(agree(script), 18 * X, atol=1e-6)


def test_gamma_and_alpha_beta_on_two_linear_layers() -> None:
    def script(lib: Library) -> Any:
        found = []
        for make in (lambda: lib.GammaRule(gamma=1), lib.Alpha1_Beta0_Rule, lib.IdentityRule):
            model = Perceptron(inplace=True).double().eval()
            with torch.no_grad():
                model.linear.weight[0, 0] = -2
            model.linear.rule = make()
            model.linear2.rule = make() if make is not lib.IdentityRule else lib.EpsilonRule()
            found.append(lib.LRP(model).attribute(X))
        return found

    gamma, alpha, identity = agree(script)
    assert torch.allclose(gamma, torch.tensor([[28 / 3, 104 / 3, 52]], dtype=torch.float64), atol=1e-6)
    assert torch.allclose(alpha, torch.tensor([[12, 33.6, 50.4]], dtype=torch.float64), atol=1e-6)
    assert torch.allclose(identity, torch.tensor([[24.0, 36.0, 36.0]], dtype=torch.float64), atol=1e-6)


@pytest.mark.parametrize("pool", [nn.MaxPool2d, nn.AvgPool2d])
@pytest.mark.parametrize("norm", [True, False])
def test_small_cnn_with_defaults(pool: type[nn.Module], norm: bool) -> None:
    def script(lib: Library) -> Any:
        model = prepared(SmallCnn(pool, norm))
        return lib.LRP(model).attribute(images(), target=3, return_convergence_delta=True)

    agree(script)


def test_a_new_object_for_each_image() -> None:
    def script(lib: Library) -> Any:
        model, found = prepared(SmallCnn()), []
        for label in range(3):
            model.features[0].rule = lib.Alpha1_Beta0_Rule()
            model.features[4].rule = lib.GammaRule()
            found.append(lib.LRP(model).attribute(images(1), target=label))
        return found

    agree(script)


@pytest.mark.parametrize(
    "target",
    [0, -1, 7, torch.tensor(4), torch.tensor([2]), [1, 0, 5], torch.tensor([9, 0, 2]), (3,), [(1,), (0,), (4,)]],
    ids=str,
)
def test_forms_of_targets(target: Any) -> None:
    def script(lib: Library) -> Any:
        return lib.LRP(prepared(SmallCnn())).attribute(images(3), target, return_convergence_delta=True)

    agree(script)


@pytest.mark.parametrize("target", [(1, 0, 2), [(0, 1, 1), (5, 3, 0)]], ids=str)
def test_targets_of_an_output_with_more_axes(target: Any) -> None:
    def script(lib: Library) -> Any:
        model = prepared(nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 6, 3)))
        return lib.LRP(model).attribute(images(), target=target, return_convergence_delta=True)

    agree(script)


class _Scores(nn.Module):
    """One score per sample, ``(B,)`` or ``(B, 1)``."""

    def __init__(self, flat: bool) -> None:
        super().__init__()
        self.inner, self.flat = SmallCnn(), flat

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        return y.amax(1) * 0 + y[:, 3] if self.flat else y[:, 3:4]


@pytest.mark.parametrize("flat", [True, False])
def test_one_score_per_sample_needs_no_target(flat: bool) -> None:
    def script(lib: Library) -> Any:
        return lib.LRP(prepared(_Scores(flat))).attribute(images(), return_convergence_delta=True)

    agree(script)


def test_an_integer_on_pooled_scores() -> None:
    """An output ``(B, C, 1)``: after the target one entry is left."""

    def script(lib: Library) -> Any:
        model = prepared(nn.Sequential(nn.Linear(2, 2, bias=False), nn.MaxPool1d(2)))
        return lib.LRP(model).attribute(torch.randn(2, 2, 2, dtype=torch.float64), target=1)

    agree(script)


@pytest.mark.slow
def test_several_inputs_and_further_arguments() -> None:
    def script(lib: Library) -> Any:
        model = prepared(TwoInputs())
        x, y = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
        lrp = lib.LRP(model)
        return [
            lrp.attribute(x, target=0),
            lrp.attribute((x,), target=0),
            lrp.attribute((x, y), target=2, return_convergence_delta=True),
            lrp.attribute((x, y), target=2, additional_forward_args=(3.0,)),
            lrp.attribute((x, y), target=2, additional_forward_args=torch.tensor(0.5, dtype=torch.float64)),
            lrp.attribute((x, y), 1, torch.rand(4, 1, dtype=torch.float64)),
            lrp.attribute(x, target=1, additional_forward_args=(None, 0.25)),
        ]

    agree(script)


def test_the_convergence_delta_by_its_own() -> None:
    def script(lib: Library) -> Any:
        model = prepared(TwoInputs())
        x, y = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
        lrp = lib.LRP(model)
        parts, delta = lrp.attribute((x, y), target=2, return_convergence_delta=True)
        again = lrp.compute_convergence_delta(parts, model(x, y)[:, 2])
        assert torch.allclose(again, delta)
        return again, lrp.compute_convergence_delta(parts[0], model(x, y)[:, 2:3])

    agree(script)


def test_skip_connection() -> None:
    def script(lib: Library) -> Any:
        model = prepared(Skip(lib.Addition_Module))
        first = lib.LRP(model).attribute(torch.randn(5, 4, dtype=torch.float64), target=1)
        model.add.rule = lib.EpsilonRule(0.1)
        return first, lib.LRP(model).attribute(torch.randn(5, 4, dtype=torch.float64), target=1)

    agree(script)


def test_functional_model() -> None:
    """Hooks see modules only: the rest is the plain gradient, times the tensor where it enters a layer."""

    def script(lib: Library) -> Any:
        return lib.LRP(prepared(Functional())).attribute(images(), target=1, return_convergence_delta=True)

    agree(script)


def _with_rules(lib: Library, model: nn.Module, x: Tensor) -> Any:
    attach(model, lib)
    before = state(model)
    found = lib.LRP(model).attribute(x, target=1, return_convergence_delta=True)[0]
    after = state(model)
    assert [names for _, names in after[2]] != [names for _, names in before[2]]  # The rules are gone, nothing else.
    assert unchanged((before[0], before[1], [], *before[3:]), (after[0], after[1], [], *after[3:]))
    return found, lib.LRP(model).attribute(x, target=torch.tensor([4]))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), sizes(["vgg11"]))
def test_vgg11(name: str, size: str) -> None:
    def script(lib: Library) -> Any:
        return _with_rules(lib, member(name, size, dtype=torch.float64, classes=10), images(1, 32))

    agree(script)


@pytest.mark.slow
def test_resnet18_with_additions_as_modules() -> None:
    def script(lib: Library) -> Any:
        model = additive_resnet18(lib.Addition_Module, 64)[0].double()
        return _with_rules(lib, model, images(1, 64))

    agree(script)


@pytest.mark.slow
def test_resnet18_as_it_is() -> None:
    """Captum runs, and ``out += identity`` is the gradient there: relevance grows to 1e13. The same here."""

    def script(lib: Library) -> Any:
        return _with_rules(lib, random_model("resnet18", dtype=torch.float64, classes=10), images(1, 64))

    found, _ = agree(script)
    assert float(found.abs().max()) > 1e3


FULL = [pytest.param(name, "whole", marks=pytest.mark.full) for name in ("densenet121", "googlenet", "inception_v3")]
"""GoogLeNet's layers are attributed at every run (test_compat_captum_layers.py)."""


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), [*sizes(["vgg11_bn", "squeezenet1_1"]), *FULL])
def test_torchvision(name: str, size: str) -> None:
    def script(lib: Library) -> Any:
        model: Any = member(name, size, dtype=torch.float64, classes=10)
        if name == "vgg11_bn" and size == "whole":  # vgg11 has its whole head, 120 million parameters.
            torch.manual_seed(2)
            model.classifier = nn.Sequential(nn.Linear(512 * 49, 64), nn.ReLU(True), nn.Linear(64, 10)).double().eval()
        return _with_rules(lib, model, images(1, 96 if name == "inception_v3" else 64))

    agree(script)


def test_float32() -> None:
    def script(lib: Library) -> Any:
        return lib.LRP(prepared(SmallCnn()).float()).attribute(images().float(), target=3)

    agree(script, 1e-4)  # Measured: 2e-6. Denominators near zero, with an epsilon of 1e-9.


@pytest.mark.parametrize("make", [SmallCnn, Functional])
def test_many_targets_are_captums_one_by_one(make: type[nn.Module]) -> None:
    """``targets`` gives in one call what Captum gives in a loop."""
    lib = theirs()

    def loop(_: Library) -> Any:
        model, x = prepared(make()), images(3)
        return torch.stack([lib.LRP(model).attribute(x, target=k) for k in (0, 3, 2, 1)], 1)

    def once(library: Library) -> Any:
        model, x = prepared(make()), images(3)
        return library.LRP(model).attribute(x, targets=[0, 3, 2, 1])

    assert relative_error(run(once, replacement()), run(loop, lib)) <= 1e-9
