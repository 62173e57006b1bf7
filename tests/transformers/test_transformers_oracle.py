"""The oracle of whole transformers at what detectors and grouping add: cuts, sampling at a computed grid, positions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastlrp import Explainer
from tests.models.oracle import relative_error
from tests.transformers import aten_oracle


class Sampling(nn.Module):
    """Queries that are cut off sample an image where they point to, as deformable attention does, beside sinusoids."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.image, self.queries = nn.Conv2d(2, 4, 1), nn.Linear(6, 4)
        self.offsets, self.weights, self.classes = nn.Linear(4, 6), nn.Linear(4, 3), nn.Linear(4, 3)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        image = self.image(x)
        q = self.queries(x.mean(1)).detach()  # (B, 5, 4)
        grid = (self.offsets(q).unflatten(-1, (3, 2)).sigmoid() * 2 - 1).contiguous()
        samples = F.grid_sample(image, grid, align_corners=False)  # (B, 4, 5, 3)
        found = (samples * self.weights(q).softmax(-1).unsqueeze(1)).sum(-1).transpose(1, 2)
        return self.classes(found + q + q.sin() + q.cos()).mean(1)


class Hard(nn.Module):
    """Tokens go to the one group that they are most like, with the gradient of a soft assignment."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.keys, self.classes = nn.Linear(6, 4), nn.Linear(6, 3)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        soft = self.keys(x).softmax(-1)
        hard = torch.zeros_like(soft).scatter_(-1, soft.max(-1, keepdim=True)[1], 1.0)
        return self.classes((hard - soft.detach() + soft).transpose(1, 2) @ x).square().mean(1)


class Streams(nn.Module):
    """Streams are mixed by a matrix whose rows and columns are made one in total, as hyper-connections do."""

    def __init__(self, floor: float | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.floor, self.mixes, self.classes = floor, nn.Linear(6, 5), nn.Linear(6, 3)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        w = self.mixes(x).softmax(-1) + 1e-3
        for axis in (-2, -1, -2):
            total = w.sum(axis, keepdim=True)
            w = w / (total + 1e-3 if self.floor is None else total.clamp(min=self.floor))
        return self.classes(w.mT @ x).square().mean(1)


class Expanded(nn.Module):
    """Streams that begin as copies of the tokens, each with a norm and a weight."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weights, self.classes = nn.Linear(12, 2), nn.Linear(6, 3)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        streams = x.unsqueeze(2).expand(-1, -1, 2, -1).contiguous()
        flat = streams.flatten(2)
        flat = flat * torch.rsqrt(flat.square().mean(-1, keepdim=True) + 1e-6)
        return self.classes((self.weights(flat).unsqueeze(-1) * streams).sum(2)).square().mean(1)


class Bounded(nn.Module):
    """A gated layer whose factors are both kept within bounds."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gate, self.up, self.classes = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 3)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        gate, up = F.silu(self.gate(x).clamp(max=9.0)), self.up(x).clamp(min=-9.0, max=9.0)
        return self.classes(gate * up).mean(1)


@pytest.mark.parametrize(
    ("model", "shape", "mode"),
    [
        (Bounded(), (2, 5, 6), "cp_lrp"),
        (Expanded(), (2, 5, 6), "attnlrp"),
        (Expanded(), (2, 5, 6), "cp_lrp"),
        (Streams(None), (2, 5, 6), "attnlrp"),
        (Streams(None), (2, 5, 6), "cp_lrp"),
        (Streams(0.1), (2, 5, 6), "attnlrp"),
        (Streams(0.1), (2, 5, 6), "cp_lrp"),
        (Sampling(), (2, 2, 5, 6), "attnlrp"),
        (Sampling(), (2, 2, 5, 6), "cp_lrp"),
        (Hard(), (2, 5, 6), "attnlrp"),
        (Hard(), (2, 5, 6), "cp_lrp"),
    ],
)
def test_equals_autograd(model: nn.Module, shape: tuple[int, ...], mode: str) -> None:
    """Measured: at most 5e-16."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    explainer = Explainer(model, mode)
    y, (expected,) = aten_oracle.relevance(model, x, lambda out: out, [0, 2], mode)
    torch.testing.assert_close(y, model(x), rtol=1e-12, atol=1e-12)
    assert relative_error(explainer(x, [0, 2]), expected) < 1e-12
    assert explainer.verify(x, [0, 2]).ok


class Grouped(nn.Module):
    """Tokens share themselves out among queries, and each query takes the mean of its share, as in slot attention."""

    def forward(self, x: Tensor) -> Tensor:
        weights = (x[:, :2] @ x.transpose(1, 2)).softmax(1)
        return ((weights / (weights.sum(-1, keepdim=True) + 0.5)) @ x).flatten(1)


def test_weights_made_nearly_one_in_total_are_weights() -> None:
    """Under CP-LRP what is weighted takes all. Measured: 2e-16."""
    x = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    w = (x[:, :2] @ x.transpose(1, 2)).softmax(1)
    w = w / (w.sum(-1, keepdim=True) + 0.5)
    found = Explainer(Grouped(), "cp_lrp")(x, "all")
    expected = torch.einsum("bqt,btc,cd->bqctd", w, x, torch.eye(3, dtype=torch.float64)).flatten(1, 2)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
