"""``detach`` and ``torch.no_grad`` in a forward pass: a gradient ends there, relevance is that of the function."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastlrp
from fastlrp import composites, groups, rules
from tests.models.custom_functions import derivative

F64 = torch.float64


class Cut(nn.Module):
    """A gate, a residual, a block and a copy that are cut off, or the same function with nothing cut off."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.below, self.above, self.cut = nn.Linear(4, 5), nn.Linear(5, 3), True
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        h = self.below(x)
        stop: Any = torch.Tensor.detach if self.cut else lambda t: t
        with torch.set_grad_enabled(not self.cut):
            scale, twice = h.relu() * 2, h.tanh()
        copied = h.clone()
        copied = copied.detach_() if self.cut else copied
        return self.above(h * stop(h.sigmoid()) + stop(h) + scale * h + twice + 0.3 * copied + h)


def test_a_gradient_ends_there() -> None:
    model, x = Cut(), torch.randn(2, 4, dtype=F64)
    with fastlrp.Explainer(model, "gradient").forward(x) as record:
        down = record.relevance("all", initial="one")
        up = record.relevance("all", initial="one", groups=groups.features(range(4)), direction="up")
    torch.testing.assert_close(down, derivative(model, x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(up, down, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("composite", ["epsilon", "attnlrp", "cp_lrp", "gamma"])
def test_relevance_is_that_of_the_function(composite: str) -> None:
    model, x = Cut(), torch.randn(2, 4, dtype=F64)
    whole = copy.deepcopy(model)
    whole.cut = False
    explainer = fastlrp.Explainer(model, composite)
    expected = fastlrp.Explainer(whole, composite)(x, "all")
    torch.testing.assert_close(explainer(x, "all"), expected, rtol=1e-12, atol=1e-12)
    assert explainer.verify(x, "all").ok


def test_a_composite_may_end_relevance_there() -> None:
    model, x = Cut(), torch.randn(2, 4, dtype=F64)
    composite = composites.attnlrp().with_entries((composites.kind("detached"), rules.Gradient()))
    explainer = fastlrp.Explainer(model, composite)
    h = model.below(x)
    h_times = h.sigmoid() + h.relu() + 1  # Of the product with the block under no_grad half stays there.
    upper = model.above.weight @ torch.diag_embed(h_times)
    expected = x.unsqueeze(1) * (upper @ model.below.weight)
    torch.testing.assert_close(explainer(x, "all"), expected.detach(), rtol=1e-12, atol=1e-12)
    report = explainer.verify(x, "all")
    assert report.ok
    assert abs(report.kept["unexplained"]) < 1e-9


class Inference(nn.Sequential):
    """Runs without gradients as a whole."""

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


def test_a_model_that_is_cut_off_as_a_whole() -> None:
    model, x = Inference(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).double().eval(), torch.randn(2, 4, dtype=F64)
    whole = nn.Sequential(*model)
    torch.testing.assert_close(fastlrp.explain(model, x, "all"), fastlrp.explain(whole, x, "all"))
    with pytest.raises(
        fastlrp.UnsupportedOperationError, match=r"cut off in '2', by detach or torch.no_grad.*Pass\(\)"
    ):
        fastlrp.explain(model, x, "all", "gradient")
    followed = composites.gradient().with_entries((composites.kind("detached"), rules.Pass()))
    found = fastlrp.explain(model, x, "all", followed, initial="one")
    torch.testing.assert_close(found, derivative(whole, x), rtol=1e-12, atol=1e-12)


class Spectrum(nn.Module):
    """Complex numbers that are cut off, by detach or by a block."""

    def __init__(self, block: bool) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        z = torch.fft.rfft(x)
        with torch.set_grad_enabled(not self.block):
            cut = torch.fft.rfft(2 * x)
        return torch.fft.irfft(z + (cut if self.block else cut.detach()), n=4)[:, :3]


@pytest.mark.parametrize("block", [True, False])
def test_a_gradient_of_complex_numbers_ends_there(block: bool) -> None:
    model, x = Spectrum(block).eval(), torch.randn(2, 4, dtype=F64)
    found = fastlrp.explain(model, x, "all", "gradient", initial="one")
    torch.testing.assert_close(found, derivative(model, x), rtol=1e-12, atol=1e-12)
    followed = fastlrp.explain(model, x, "all", "lrp0")
    torch.testing.assert_close(followed, 3 * x.unsqueeze(1) * torch.eye(3, 4, dtype=F64), rtol=1e-9, atol=1e-11)


class OfParts(nn.Module):
    """Writes into one part of a chunk, which PyTorch allows where it records no gradients alone."""

    def forward(self, x: Tensor) -> Tensor:
        first, second = (2 * x).chunk(2, 1)
        first.mul_(3)
        return first - second


def test_models_that_run_without_gradients_alone() -> None:
    x = torch.tensor([[1.0, 2.0]], dtype=F64)
    assert fastlrp.explain(OfParts().eval(), x, 0, "epsilon").flatten().tolist() == pytest.approx([6.0, -4.0], rel=1e-4)


class Written(nn.Module):
    """A block under no_grad that gives views, and writes into memory from outside of it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.below, self.above = nn.Linear(4, 6), nn.Linear(6, 3)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        h, fresh = self.below(x), torch.zeros(len(x), 6, dtype=x.dtype)
        with torch.no_grad():
            part = h[:, :2]
            fresh[:, 2:4] = self.below(x)[:, 2:4]
            rest = fresh[:, 4:]
            rest.copy_(x[:, :2])
        h = torch.cat([part.tanh(), h[:, 2:].tanh()], 1)
        return self.above(h * h + fresh.tanh())


def test_what_is_written_and_viewed_without_gradients() -> None:
    model, x = Written(), torch.randn(2, 4, dtype=F64)
    found = fastlrp.Explainer(model, "gradient").forward(x).relevance("all", initial="one")
    torch.testing.assert_close(found, derivative(model, x), rtol=1e-12, atol=1e-12)
    explainer = fastlrp.Explainer(model, "epsilon")
    torch.testing.assert_close(explainer.forward(x).output, model(x).detach(), rtol=1e-12, atol=1e-12)
    assert explainer.verify(x, "all").ok


class Inferred(nn.Sequential):
    """A block in inference mode, whose results are copied."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.inference_mode():
            h = self[0](x).tanh()
        return self[1](h.clone() + x)


def test_inference_mode_ends_a_gradient() -> None:
    model, x = Inferred(nn.Linear(4, 4), nn.Linear(4, 3)).double().eval(), torch.randn(2, 4, dtype=F64)
    found = fastlrp.Explainer(model, "gradient").forward(x).relevance("all", initial="one")
    torch.testing.assert_close(found, derivative(model, x), rtol=1e-12, atol=1e-12)
    with torch.inference_mode():
        assert model(x).is_inference()


def _in_place(h: Tensor) -> Tensor:
    h.detach().mul_(2)
    return h


def _entries(h: Tensor) -> Tensor:
    h.detach()[:, 1:3] = 0.25
    return h


def _in_block(h: Tensor) -> Tensor:
    with torch.no_grad():
        h.mul_(2)
        h[:, 3:].add_(1)
    return h


def _zeroed(h: Tensor) -> Tensor:
    with torch.no_grad():
        h.zero_()
    return h


def _of_another(h: Tensor) -> Tensor:
    part = h.detach()[:, :2]
    part.copy_(h[:, 2:4].clone().cos())
    return h.clone() * torch.cat((part, part, part[:, :1]), 1)


def _data_written(h: Tensor) -> Tensor:
    h.data.clamp_(-0.2, 0.2)
    h.data[:, 0] = 3
    return h


def _assigned(h: Tensor) -> Tensor:
    h.data = h.data.clamp(-0.2, 0.2)
    return h


def deep_copy(h: Tensor) -> Tensor:
    """Which PyTorch refuses where the tensor has a gradient."""
    return copy.deepcopy(h.detach()) if type(h) is Tensor else copy.deepcopy(h)


WRITES: dict[str, Any] = {
    "in place": _in_place,
    "entries": _entries,
    "in a block": _in_block,
    "zeroed": _zeroed,
    "of another": _of_another,
    "data written": _data_written,
    "data assigned": _assigned,
    "deep copy": lambda h: h * deep_copy(h),
    "data": lambda h: h.data * 2 + h / h.data.abs().amax(1, keepdim=True),
    "of a comparison": lambda h: h * (h.data > 0).to(h.dtype),
}


class Writes(nn.Module):
    def __init__(self, part: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.below, self.above, self.part = nn.Linear(4, 5), nn.Linear(5, 3), part
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        h = self.below(x)
        return self.above(self.part(h).tanh() + self.below(x)) + nn.functional.linear(h, self.above.weight.data)


@pytest.mark.parametrize("name", WRITES)
def test_what_autograd_does_not_see_leaves_the_gradient_as_it_was(name: str) -> None:
    model, x = Writes(WRITES[name]), torch.randn(2, 4, dtype=F64)
    with torch.no_grad():
        torch.testing.assert_close(fastlrp.Explainer(model, "epsilon").forward(x).output, model(x))
    found = fastlrp.Explainer(model, "gradient").forward(x).relevance("all", initial="one")
    torch.testing.assert_close(found, derivative(model, x), rtol=1e-12, atol=1e-12)
    for composite in ("epsilon", "gradient"):
        assert fastlrp.Explainer(model, composite).verify(x, "all").ok


class Overwritten(nn.Module):
    """A view from a block under no_grad of memory that is written later, which runs without gradients alone."""

    def __init__(self) -> None:
        super().__init__()
        self.below, self.above = nn.Linear(4, 8), nn.Linear(8, 3)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        h = self.below(x)
        with torch.no_grad():
            part, halves = h[:, :4], h.view(len(x), 2, 4)
            halves[:, 0] *= 3
        h[:, 2:6] += 1
        return self.above(torch.cat([part.tanh(), halves[:, 1].tanh()], 1) + h)


def test_views_of_a_block_see_what_is_written_later() -> None:
    model, x = Overwritten(), torch.randn(2, 4)
    with torch.no_grad():
        torch.testing.assert_close(fastlrp.Explainer(model, "epsilon").forward(x).output, model(x))
