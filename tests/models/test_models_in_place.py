"""In-place operations on memory that several entries share: what depends on the order of writing is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastlrp


class Between(nn.Module):
    """Changes what a layer gives in place, then reads it."""

    def __init__(self, change: Callable[[Tensor], object]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.change, self.a, self.b = change, nn.Linear(4, 6), nn.Linear(6, 3)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        self.change(h)
        return self.b(h)


X = torch.linspace(-1, 1, 12, dtype=torch.float64).view(3, 4)
ITSELF, OTHER = "several entries are one place in memory", "another part that overlaps with it"
REFUSED: dict[str, tuple[str, Callable[[Tensor], object]]] = {
    "windows": (ITSELF, lambda h: h.unfold(1, 4, 1).mul_(2)),
    "entry_of_windows": (ITSELF, lambda h: h.unfold(1, 4, 1)[:, :, 0].relu_()),
    "expanded": (ITSELF, lambda h: h[:, None].expand(-1, 2, -1).zero_()),
    "first_column": (OTHER, lambda h: h.sub_(h[:, :1])),
    "running": (OTHER, lambda h: h[:, 1:].add_(h[:, :-1])),
    "shifted": (OTHER, lambda h: h.__setitem__((slice(None), slice(1, None)), h[:, :-1])),
    "transposed": (OTHER, lambda h: h[:, :4].view(-1, 2, 2).add_(h[:, :4].view(-1, 2, 2).mT)),
}
FOLLOWED: dict[str, Callable[[Tensor], object]] = {
    "itself": lambda h: h.mul_(h),
    "halves": lambda h: h[:, :3].add_(h[:, 3:]),
    "every_other": lambda h: h[:, ::2].mul_(h[:, 1::2]),
    "windows_apart": lambda h: h.unfold(1, 2, 2)[..., 0].tanh_(),
    "copied_column": lambda h: h.sub_(h[:, :1].clone()),
    "largest": lambda h: h.sub_(h.amax(1, keepdim=True)),
    "swapped": lambda h: h.copy_(h.flip(1)),
    "by_index": lambda h: h.__setitem__((slice(None), [3, 4]), h[:, :2].relu()),
    "under_another_name": lambda h: [v.__setitem__((slice(None), 0), v[:, 1] * 2) for v in [h.view_as(h)] * 2],
    "dropout": lambda h: F.dropout(h[:, None].expand(-1, 2, -1), 0.5, False, inplace=True),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_depends_on_the_order_of_writing(name: str) -> None:
    message, change = REFUSED[name]
    with pytest.raises(fastlrp.CaptureError, match=message):
        fastlrp.explain(Between(change), X, 0)


@pytest.mark.parametrize("name", FOLLOWED)
def test_what_does_not(name: str) -> None:
    """Output and gradient are the model's own, by differences."""
    model = Between(FOLLOWED[name])
    with fastlrp.Explainer(model, "gradient").forward(X) as record:
        found = record.relevance("all", initial="one")
        torch.testing.assert_close(record.output, model(X).detach())
    for i in range(4):
        step = torch.zeros_like(X)
        step[:, i] = 1e-6
        with torch.no_grad():
            slope = (model(X + step) - model(X - step)) / 2e-6
        torch.testing.assert_close(found[:, :, i], slope, rtol=1e-6, atol=1e-7)
    assert fastlrp.Explainer(model, "epsilon").verify(X, [0]).ok
