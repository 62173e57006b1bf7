"""A default device of the caller's means tensors of the caller's and of the model's own code, not fastlrp's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastlrp
from fastlrp import groups

SEEN: list[torch.device] = []


class Network(nn.Module):
    """Convolution, pool, attention; notes the default device that its own code has."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.attention = nn.Conv2d(2, 4, 3), nn.MultiheadAttention(4, 2, batch_first=True)
        self.last = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        SEEN.append(torch.get_default_device())
        h = nn.functional.max_pool2d(self.conv(x).relu(), 2, padding=1).flatten(2).mT
        return self.last(self.attention(h, h, h, need_weights=False)[0].mean(1))  # type: ignore[no-any-return]


@pytest.fixture
def anywhere() -> Iterator[None]:
    torch.set_default_device("meta")  # In the place of "cuda": what is made there by mistake cannot be used here.
    try:
        yield
    finally:
        torch.set_default_device(None)


PATCHES = groups.patches(3)
ASKED: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "explain": lambda m, x: fastlrp.explain(m, x, "all", "epsilon_plus"),
    "box": lambda m, x: fastlrp.explain(m, x, [0, 2], fastlrp.composites.epsilon_gamma_box(-3.0, 3.0)),
    "layers": lambda m, x: fastlrp.explain(m, x, "top2", "attnlrp", layers="all")["input"],
    "up": lambda m, x: fastlrp.explain(m, x, "all", "epsilon", groups=PATCHES, direction="up"),
    "stream": lambda m, x: torch.cat([r for _, r in fastlrp.Explainer(m).forward(x).stream("all", block=2)], 1),
    "contributions": lambda m, x: fastlrp.Explainer(m).forward(x).contributions(PATCHES, ["conv"])["conv"],
    "example": lambda m, x: fastlrp.Explainer(m, "gamma", example_inputs=x)(x, 1),
    "verify": lambda m, x: torch.as_tensor(fastlrp.Explainer(m).verify(x, [1]).ok, device="cpu"),
}


@pytest.fixture(scope="module")
def given() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Network().double().eval(), torch.randn(2, 2, 9, 9, dtype=torch.float64)


@pytest.mark.parametrize("name", ASKED)
def test_the_same_numbers(given: tuple[nn.Module, Tensor], name: str, request: pytest.FixtureRequest) -> None:
    expected = ASKED[name](*given)
    request.getfixturevalue("anywhere")
    SEEN.clear()
    assert torch.equal(ASKED[name](*given), expected)
    assert {device.type for device in SEEN} == {"meta"}, "the model's own code keeps the caller's"
    assert torch.get_default_device().type == "meta"


def test_within_a_context(given: tuple[nn.Module, Tensor]) -> None:
    expected = ASKED["explain"](*given)
    with torch.device("meta"):
        stream = fastlrp.Explainer(given[0]).forward(given[1]).stream("all", block=1)
        first = next(stream)[1]
        assert torch.empty(1).device.type == "meta"
    torch.testing.assert_close(torch.cat([first, *(r for _, r in stream)], 1), expected)
