"""The batch axis may leave axis 0: relevance is that of each sample alone, the gradient autograd's."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import fastlrp
from fastlrp import composites, rules
from tests.models.cases import prepared
from tests.models.oracle import relative_error
from tests.models.random_travels import random_travel
from tests.models.travelling import MODELS

EXACT = 1e-12
"""Measured: at most 3e-14."""

GRADIENTS = (composites.kind("unknown"), rules.Gradient())


def made(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model, x = MODELS[name]()
    return prepared(model, x), x.double()


def gradients(model: nn.Module, x: Tensor, targets: list[int]) -> Tensor:
    point = x.clone().requires_grad_()
    output = copy.deepcopy(model)(point)
    return torch.stack([torch.autograd.grad(output[:, t].sum(), point, retain_graph=True)[0] for t in targets], 1)


def lrp() -> composites.Composite:
    return composites.resolve("epsilon_plus").with_entries(
        (composites.kind("product"), rules.Uniform()),
        (composites.operation("softmax"), rules.Gradient()),
        GRADIENTS,
    )


@pytest.mark.parametrize("name", MODELS)
def test_the_gradient_is_autograds(name: str) -> None:
    model, x = made(name)
    composite = composites.resolve("gradient").with_entries(GRADIENTS)
    explainer = fastlrp.Explainer(model, composite)
    assert relative_error(explainer(x, [0, 2], initial="one"), gradients(model, x, [0, 2])) <= EXACT


@pytest.mark.parametrize("name", MODELS)
def test_each_sample_has_what_it_has_alone(name: str) -> None:
    model, x = made(name)
    explainer = fastlrp.Explainer(model, lrp())
    together = explainer(x, [0, 2])
    with torch.no_grad():
        assert torch.allclose(explainer.forward(x).scores, model(x), rtol=1e-12, atol=1e-12)
    assert relative_error(torch.cat([explainer(x[i : i + 1], [0, 2]) for i in range(3)]), together) <= EXACT
    assert relative_error(explainer(x[:2], [0, 2]), together[:2]) <= EXACT
    order = torch.tensor([2, 0, 1])
    assert relative_error(explainer(x[order], [0, 2]), together[order]) <= EXACT
    if name != "signals":  # PyTorch's instance norm takes no empty batch.
        assert explainer(x[:0], [0, 2]).shape == (0, 2, *x.shape[1:])
    report = explainer.verify(x, [0, 2])
    assert report.ok, str(report)


@pytest.mark.parametrize("seed", range(24))
def test_random_models(seed: int) -> None:
    model, x = random_travel(seed)
    composite = composites.resolve("gradient").with_entries(GRADIENTS)
    explainer = fastlrp.Explainer(model, composite)
    together = explainer(x, [0, 2], initial="one")
    expected = gradients(model, x, [0, 2])
    size = expected.abs().max()
    assert float((together - expected).abs().max()) <= EXACT * float(size)
    alone = torch.cat([explainer(x[i : i + 1], [0, 2], initial="one") for i in range(3)])
    assert float((alone - together).abs().max()) <= EXACT * float(size)
    assert explainer.verify(x, [0, 2]).ok
