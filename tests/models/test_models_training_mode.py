"""Models that change their own buffers or draw numbers in training mode: errors that say what to do."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import fastlrp
from fastlrp.errors import CaptureError

X = torch.linspace(-1, 1, 24).view(3, 8)
EVAL = r"call model\.eval\(\) first"


def chain(middle: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), middle, nn.ReLU(), nn.Linear(8, 3))


class Own(nn.Module):
    """Does what ``body`` says in training mode, with a buffer ``mean`` of its own."""

    def __init__(self, body: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.body = body
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x) if self.training else x - self.mean


def averaged(own: nn.Module, x: Tensor) -> Tensor:
    own.mean.mul_(0.9).add_(x.detach().mean(0), alpha=0.1)
    return x - own.mean


def replaced(own: nn.Module, x: Tensor) -> Tensor:
    own.mean = 0.9 * own.mean + 0.1 * x.detach().mean(0)
    return x - own.mean


class OfWeights(nn.Module):
    """A batch norm of a weight: its statistics are those of the weight, whatever the batch."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.weight, self.norm = nn.Parameter(torch.linspace(-1, 2, 32).view(4, 8) ** 3), norm

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.norm(self.weight))


POWER = r"spectral_norm takes a step of its power iteration in each forward pass in training mode.*" + EVAL
CASES = {
    "spectral_norm": (lambda: chain(nn.utils.spectral_norm(nn.Linear(8, 8))), r"changes '1\.weight_[uv]'.*" + POWER),
    "parametrizations.spectral_norm": (
        lambda: chain(parametrizations.spectral_norm(nn.Linear(8, 8))),
        r"changes '1\.parametrizations\.weight\.0\._u'.*" + POWER,
    ),
    "spectral_norm of a convolution": (
        lambda: nn.Sequential(nn.Unflatten(1, (2, 2, 2)), nn.utils.spectral_norm(nn.Conv2d(2, 3, 2)), nn.Flatten()),
        POWER,
    ),
    "instance norm": (
        lambda: nn.Sequential(nn.Unflatten(1, (2, 4)), nn.InstanceNorm1d(2, track_running_stats=True), nn.Flatten()),
        rf"instance_norm at '1' is in training mode, so that it changes its running statistics.*{EVAL}",
    ),
    "batch norm of a weight": (
        lambda: OfWeights(nn.BatchNorm1d(8)), rf"batch_norm at 'norm' is in training mode, so that it changes.*{EVAL}"
    ),
    "cumulative batch norm": (lambda: chain(nn.BatchNorm1d(8, momentum=None)), rf"training mode.*{EVAL}"),
    "running mean": (lambda: chain(Own(averaged)), rf"changes '1\.mean'.*module \(Own\) is in training mode.*{EVAL}"),
    "mean that is replaced": (lambda: chain(Own(replaced)), rf"mixes samples.*is in training mode.*{EVAL}"),
    "noise": (lambda: chain(Own(lambda own, x: x + torch.randn_like(x))), rf"'randn_like'.*in training mode.*{EVAL}"),
    "the model's own dropout": (
        lambda: Own(lambda own, x: nn.functional.dropout(x)), rf"dropout at '\(the model itself\)' is in tra.*{EVAL}"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_in_training_mode(name: str) -> None:
    make, words = CASES[name]
    model = make().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CaptureError, match=words):
        fastlrp.explain(model, X, 0, "epsilon")
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    explainer = fastlrp.Explainer(model.eval(), "epsilon")
    with explainer.forward(X) as record:
        torch.testing.assert_close(record.scores, model(X))


def test_a_batch_norm_of_a_weight_without_running_statistics() -> None:
    model = OfWeights(nn.BatchNorm1d(8, track_running_stats=False)).train()
    with fastlrp.Explainer(model, "epsilon").forward(X) as record:
        torch.testing.assert_close(record.scores, model(X))


def test_a_module_alone_in_training_mode() -> None:
    model = chain(Own(lambda own, x: x + torch.randn_like(x))).eval()
    model[1].train()
    with pytest.raises(CaptureError, match=rf"Module '1' \(Own\) is in training mode.*{EVAL}"):
        fastlrp.explain(model, X, 0)


def test_nothing_is_said_of_training_where_that_is_not_the_reason() -> None:
    always = Own(averaged)
    always.forward = lambda x: averaged(always, x)
    with pytest.raises(CaptureError, match=r"changes '1\.mean'.*keep such state outside") as error:
        fastlrp.explain(chain(always).eval(), X, 0)
    assert "eval()" not in str(error.value)


@pytest.mark.parametrize(
    "make", [torch.ao.quantization.MinMaxObserver, torch.ao.quantization.FakeQuantize], ids=["observer", "fake"]
)
def test_observers_of_quantisation(make: type[nn.Module]) -> None:
    with pytest.raises(
        CaptureError, match=r"(MinMaxObserver|Module '1' \(FakeQuantize\)) prepares quantisation.*floats"
    ):
        fastlrp.explain(chain(make()).eval(), X, 0)


def test_a_model_prepared_for_quantisation_aware_training() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).train()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.qconfig = torch.ao.quantization.get_default_qat_qconfig("fbgemm")
        prepared = torch.ao.quantization.prepare_qat(model).eval()
    with pytest.raises(
        CaptureError, match=r"'0\.weight_fake_quant\..*prepares quantisation.*explain the model of floats"
    ):
        fastlrp.explain(prepared, X, 0)


class Looked(nn.Module):
    def __init__(self, sort: type[nn.Module]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = sort(20, 8, max_norm=1.0), nn.Linear(8, 3)

    def forward(self, ids: Tensor) -> Tensor:
        found = self.embed(ids)
        return self.head(found.mean(1) if found.dim() == 3 else found)


@pytest.mark.parametrize("sort", [nn.Embedding, nn.EmbeddingBag])
def test_an_embedding_that_shortens_its_rows(sort: type[nn.Module]) -> None:
    model, ids = Looked(sort).eval(), torch.arange(10).view(2, 5)
    with pytest.raises(CaptureError, match=r"changes 'embed\.weight'.*max_norm.*weight\.renorm_.*max_norm = None"):
        fastlrp.explain(model, ids, 0)
    layer, expected = model.embed, Looked(sort)(ids)
    with torch.no_grad():
        layer.weight.renorm_(layer.norm_type, 0, layer.max_norm)
    layer.max_norm = None
    with fastlrp.Explainer(model, "epsilon").forward(ids) as record:
        torch.testing.assert_close(record.scores, expected)


def test_a_program_that_was_exported_in_training_mode() -> None:
    model = chain(nn.Dropout()).train()
    program = torch.export.export(model, (X,)).module()
    with pytest.raises(CaptureError, match=rf"{EVAL}.*before torch\.export"):
        fastlrp.explain(program, X, 0)
