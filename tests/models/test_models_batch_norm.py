"""Batch norm after, before and between layers, and alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import fastlrp
from fastlrp import CaptureError
from tests.models import oracle
from tests.models.cases import TARGETS, chain, check_case, conv, prepared, vector, volume


@pytest.mark.each_value
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("options", [{}, {"affine": False}, {"eps": 0.3}], ids=str)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
def test_after_a_convolution(dims: int, options: dict[str, float], bias: bool) -> None:
    layer, norm = (
        [nn.Conv1d, nn.Conv2d, nn.Conv3d][dims - 1],
        [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d][dims - 1],
    )
    model = chain(
        layer(3, 4, 3, bias=bias), norm(4, **options), nn.ReLU(), layer(4, 4, 1, groups=2), norm(4), nn.ReLU()
    )
    check_case(model, volume(dims), merged=[("0", "1"), ("3", "4")])


@pytest.mark.parametrize("groups", [1, 2])
def test_after_a_transposed_convolution(groups: int) -> None:
    model = chain(
        conv(3, 4), nn.ReLU(), nn.ConvTranspose2d(4, 6, 3, stride=2, groups=groups), nn.BatchNorm2d(6), nn.ReLU()
    )
    x = volume(2)
    if groups == 1:
        check_case(model, x, merged=[("2", "3")])
        return
    # PyTorch's own merging does not know groups: LRP-0 is x * gradient however the weights are written.
    model, x = prepared(model, x), x.double()
    relevance = fastlrp.explain(model, x, list(TARGETS), "lrp0")
    assert oracle.relative_error(relevance, _input_times_gradient(model, x)) <= 1e-13
    assert fastlrp.Explainer(model).verify(x, list(TARGETS)).ok


def test_after_a_linear_layer() -> None:
    model = nn.Sequential(nn.Linear(10, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4), nn.BatchNorm1d(4))
    check_case(model, vector(), merged=[("0", "1"), ("3", "4")])


def test_before_a_convolution() -> None:
    """Merged into the layer after it: LRP-0 then is x * gradient of the whole."""
    model = chain(
        nn.BatchNorm2d(3),
        nn.Conv2d(3, 4, 3, groups=1),
        nn.ReLU(),
        nn.BatchNorm2d(4),
        nn.Conv2d(4, 4, 3, groups=2),
        nn.ReLU(),
    )
    x = volume(2)
    model = prepared(model, x)
    relevance = fastlrp.explain(model, x.double(), list(TARGETS), "lrp0")
    assert oracle.relative_error(relevance, _input_times_gradient(model, x.double())) <= 1e-13
    explainer = fastlrp.Explainer(model)
    assert explainer.verify(x.double(), list(TARGETS)).ok
    assert not any(row.node.kind == "batch_norm" for row in explainer.plan.rows)


def test_before_a_linear_layer() -> None:
    model = prepared(
        nn.Sequential(nn.BatchNorm1d(10), nn.Linear(10, 6), nn.ReLU(), nn.BatchNorm1d(6), nn.Linear(6, 4)), vector()
    )
    x = vector().double()
    relevance = fastlrp.explain(model, x, list(TARGETS), "lrp0")
    assert oracle.relative_error(relevance, _input_times_gradient(model, x)) <= 1e-13


class Tokens(nn.Module):
    """A linear layer over tokens ``(B, 5, 10)`` with a batch norm behind a move of the channels."""

    def __init__(self, move: str) -> None:
        super().__init__()
        self.linear, self.norm, self.last = nn.Linear(10, 6), nn.BatchNorm1d(6), nn.LazyLinear(4)
        self.move = move

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.linear(x)
        if self.move == "flattened":
            y = self.norm(y.flatten(0, 1)).reshape_as(y)
        elif self.move == "transposed":
            y = self.norm(y.transpose(1, 2)).transpose(1, 2)
        elif self.move == "padded":
            y = self.norm(nn.functional.pad(y.transpose(1, 2), (1, 0)))[..., 1:]
        else:  # Its channels are others than the layer's.
            y = self.norm(y.reshape(-1, 6, 5))
        return self.last(y.relu().flatten(1))


@pytest.mark.parametrize(("move", "tokens"), [("flattened", 5), ("transposed", 5), ("flattened", 1)])
def test_behind_moves_that_keep_the_channels(move: str, tokens: int) -> None:
    """Relevance is that of the merged layer, however the model brings its channels to the batch norm.

    ``reshape_as`` reads the layer's output too, but its sizes alone: of one token nothing else says so.
    """
    torch.manual_seed(0)
    x = torch.randn(2, tokens, 10)
    model, x = prepared(Tokens(move), x), x.double()
    merged = oracle.merged(model, [("linear", "norm")])
    expected = oracle.relevance(merged, x, list(TARGETS), epsilon=1e-6)
    for graph, found in (
        ("model", fastlrp.Explainer(model, "epsilon")),
        ("merged", fastlrp.Explainer(merged, "epsilon")),
    ):
        assert oracle.relative_error(found(x, list(TARGETS)), expected) <= 1e-12, graph
    explainer = fastlrp.Explainer(model, "epsilon_plus")
    assert explainer.verify(x, list(TARGETS)).ok
    torch.testing.assert_close(explainer.forward(x).output, model(x), rtol=1e-13, atol=1e-13)
    assert not any(row.node.kind == "batch_norm" for row in explainer.plan.rows)
    found = explainer(x, [1], layers=["linear", "norm"])
    torch.testing.assert_close(found["linear"].flatten(1).sum(1), found["norm"].flatten(1).sum(1))


@pytest.mark.parametrize("move", ["padded", "reshaped"])
def test_behind_moves_that_do_not_keep_the_channels_it_is_alone(move: str) -> None:
    x = torch.randn(2, 5, 10)
    explainer = fastlrp.Explainer(prepared(Tokens(move), x), "epsilon", example_inputs=x.double())
    assert sum(row.node.kind == "batch_norm" for row in explainer.plan.rows) == 1


READERS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "sum": lambda y, other: y + other,
    "itself": lambda y, other: y * y.sigmoid(),
    "product": lambda y, other: y * other,
    "constant": lambda y, other: (y * 6).relu(),
    "quotient": lambda y, other: y / y.norm(dim=1, keepdim=True),
    "attention": lambda y, other: nn.functional.scaled_dot_product_attention(y, other, other),
}


class Read(nn.Module):
    """A batch norm behind a move, and an operation that tells its operands apart."""

    def __init__(self, read: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.linear, self.norm, self.other = nn.Linear(10, 6), nn.BatchNorm1d(6), nn.Linear(10, 6)
        self.last, self.read = nn.LazyLinear(4), read

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.linear(x).transpose(1, 2))
        return self.last(self.read(y, self.other(x).transpose(1, 2)).flatten(1))


@pytest.mark.parametrize("name", READERS)
def test_behind_moves_whoever_reads_it(name: str) -> None:
    """The same relevance as of the layer that is merged by hand. Measured: 3e-16."""
    x = torch.randn(2, 5, 10)
    model, x = prepared(Read(READERS[name]), x), x.double()
    merged = oracle.merged(model, [("linear", "norm")])
    for composite in ("epsilon_plus", "attnlrp"):
        found, expected = (fastlrp.Explainer(m, composite)(x, list(TARGETS)) for m in (model, merged))
        assert oracle.relative_error(found, expected) <= 1e-14


def test_alone_passes_relevance() -> None:
    """Between activations, or before a layer that pads, there is nothing to merge it into."""
    model = chain(conv(3, 4), nn.Tanh(), nn.BatchNorm2d(4), nn.SiLU(), nn.BatchNorm2d(4), conv(4, 4), nn.ReLU())
    check_case(model, volume(2))


def test_alone_passes_relevance_where_its_input_is_zero() -> None:
    """After a ReLU a batch norm makes something of nothing; what it gets passes through to the convolution."""
    x = volume(2)
    model = prepared(chain(conv(3, 4), nn.ReLU(), nn.BatchNorm2d(4), conv(4, 4), nn.ReLU()), x)
    found = fastlrp.explain(model, x.double(), [1], layers=["0", "1", "2"])
    zero = model[:2](x.double()).unsqueeze(1) == 0
    assert bool((found["2"][zero] != 0).any())
    assert torch.equal(found["0"], found["2"])
    assert torch.equal(found["1"], found["2"])
    assert fastlrp.Explainer(model).verify(x.double(), [1]).ok


def test_not_merged_where_somebody_else_reads_the_layer() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.last = conv(3, 4), nn.BatchNorm2d(4), nn.LazyLinear(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(x)
            return self.last((self.norm(y).relu() + y.relu()).flatten(1))

    check_case(Net(), volume(2))


def test_reused_for_two_layers() -> None:
    norm = nn.BatchNorm2d(4)
    model = chain(conv(3, 4), norm, nn.ReLU(), conv(4, 4), norm, nn.ReLU())
    check_case(model, volume(2), merged=[("0", "1"), ("3", "4")])


def test_frozen_statistics_follow_the_module() -> None:
    x = volume(2)
    model = prepared(chain(conv(3, 4), nn.BatchNorm2d(4), nn.ReLU()), x)
    explainer = fastlrp.Explainer(model)
    before = explainer(x.double(), [0])
    with torch.no_grad():
        model[1].running_var.mul_(4)
    after = explainer(x.double(), [0])
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, fastlrp.explain(model, x.double(), [0]))


def test_statistics_of_the_batch_are_refused() -> None:
    model = chain(conv(3, 4), nn.BatchNorm2d(4, track_running_stats=False), nn.ReLU())
    x = volume(2)
    model.eval()(x)
    with pytest.raises(CaptureError, match=r"batch_norm at '1' has no running statistics"):
        fastlrp.explain(model, x, [0])


def _input_times_gradient(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    point = x.clone().requires_grad_(True)
    gradients = [torch.autograd.grad(model(point)[:, t].sum(), point)[0] for t in TARGETS]
    return torch.stack([x * g for g in gradients], 1)
