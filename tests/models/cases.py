"""Small models, and the one test that all of them must pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tests.models import oracle
from tests.models.checks import check_model
from tests.torchvision_models import randomise_batch_norm

TARGETS = (0, 2)
CONVOLUTIONS = tuple(name for name in oracle.AFFINE if name != "linear")
EPSILON_PLUS = dict.fromkeys(CONVOLUTIONS, "zplus")


Body = Callable[..., Any]
"""Of a module and its input: the forward pass."""


class Written(nn.Module):
    """A forward pass written out as a function of the module and its input."""

    def __init__(self, body: Body, **members: Any) -> None:
        super().__init__()
        self.body = body
        for name, member in members.items():
            setattr(self, name, member)

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Any:
        return self.body(self, *args, **kwargs)


def linear(inputs: int) -> nn.Linear:
    return nn.Linear(inputs, 4)


def conv(inputs: int, outputs: int, kernel: int = 3, padding: int = 1, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=padding, **options)


def chain(*layers: nn.Module) -> nn.Sequential:
    """The layers and a linear one with four outputs."""
    return nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(4))


def constant(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape))


def volume(dims: int) -> Tensor:
    """``(2, 3, 7, 8)``, with more or fewer axes."""
    return torch.randn(2, 3, *{1: (12,), 2: (7, 8), 3: (5, 6, 7)}[dims])


def vector() -> Tensor:
    return torch.randn(3, 10)


def prepared(model: nn.Module, x: Tensor) -> nn.Module:
    """In float64 and evaluation mode, lazy layers made, batch norms with statistics."""
    with torch.no_grad():
        model.eval()(x)
    return randomise_batch_norm(model).double()


def check_case(model: nn.Module, x: Tensor, merged: Sequence[tuple[str, str]] = (), tolerance: float = 1e-12) -> None:
    """Everything of :func:`check_model`, and equal to the oracle under LRP-0 and EpsilonPlus, in float64.

    Args:
        merged: which batch norms belong to which layers before them, ``("0", "1")``.
        tolerance: largest measured error of any case: 3e-15 under LRP-0, 5e-14 under EpsilonPlus.
    """
    model, x = prepared(model, x), x.double()
    explainer, relevance = check_model(model, x, TARGETS, "epsilon_plus", tolerance)
    alone = oracle.merged(model, merged)
    expected = oracle.relevance(alone, x, TARGETS, EPSILON_PLUS, epsilon=1e-6)
    assert oracle.relative_error(relevance, expected) <= tolerance
    with explainer.forward(x) as record:
        relevance = record.under("lrp0").relevance(list(TARGETS))
    assert oracle.relative_error(relevance, oracle.relevance(alone, x, TARGETS)) <= tolerance
