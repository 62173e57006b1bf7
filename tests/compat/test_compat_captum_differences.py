"""Where the replacement does more than Captum, or on purpose something else. Captum's side is pinned, too."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastlrp
from benchmarks.shim_captum import Options, measure
from fastlrp import rules
from fastlrp.composites import Composite, kind
from tests.compat.captum_scripts import (
    Library,
    SmallCnn,
    images,
    prepared,
    relative_error,
    replacement,
    run,
    theirs,
)

X = torch.linspace(-1.0, 1.0, 12, dtype=torch.float64).view(3, 4)


@pytest.fixture(autouse=True)
def _seed() -> Any:
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Input Tensor", UserWarning)
        torch.manual_seed(0)
        yield


def both(script: Callable[[Library], Any]) -> tuple[Any, Any]:
    return run(script, replacement()), run(script, theirs())


# More


class Reused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.relu, self.b = nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.relu(self.a(self.relu(self.a(x)))))


class Unrolled(nn.Module):
    """The same with a copy."""

    def __init__(self, of: Reused) -> None:
        super().__init__()
        self.a, self.c = nn.Linear(4, 4), nn.Linear(4, 4)
        self.a.load_state_dict(of.a.state_dict())
        self.c.load_state_dict(of.a.state_dict())
        self.relu, self.relu2, self.b = nn.ReLU(), nn.ReLU(), of.b

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.relu2(self.c(self.relu(self.a(x)))))


def test_a_module_that_is_used_twice() -> None:
    """Captum refuses; here each use has its own relevance."""
    model = prepared(Reused())
    lib, other = replacement(), theirs()
    model.a.rule = lib.GammaRule()
    found = lib.LRP(model).attribute(X, target=0)
    with pytest.raises(RuntimeError, match="more than once"):
        other.LRP(model).attribute(X.clone(), target=0)
    unrolled = Unrolled(model).double().eval()
    for layer in (unrolled.a, unrolled.c):
        layer.rule = other.GammaRule()
    assert relative_error(found, other.LRP(unrolled).attribute(X.clone(), target=0)) <= 1e-9


@pytest.mark.parametrize(
    "layer",
    [
        lambda: nn.Sequential(nn.ReLU6(), nn.Identity()),
        lambda: nn.Sequential(nn.SiLU(), nn.LayerNorm(6)),
        lambda: nn.Sequential(nn.Sigmoid(), nn.AlphaDropout()),
        lambda: nn.Sequential(nn.Flatten(), nn.Softplus(), nn.Unflatten(1, (6,))),
    ],
)
def test_types_without_a_default(layer: Callable[[], nn.Module]) -> None:
    """Captum refuses; here relevance passes activations and norms, and follows what is only moved."""
    model = prepared(nn.Sequential(nn.Linear(4, 6), layer(), nn.Linear(6, 3)))
    with pytest.raises(TypeError, match="no rule"):
        theirs().LRP(model).attribute(X.clone(), target=1)
    found = replacement().LRP(model).attribute(X, target=1)
    composite = Composite(
        (
            (kind("linear"), rules.Epsilon(1e-9)),
            (kind("activation", "normalization"), rules.Pass()),
        )
    )
    assert relative_error(found, fastlrp.explain(model, X, 1, composite)[:, 0]) <= 1e-9


def test_layers_of_more_types() -> None:
    """Epsilon by default, where Captum wants a rule to be attached."""

    def model() -> Any:
        return prepared(
            nn.Sequential(nn.ConvTranspose1d(4, 6, 2), nn.ReLU(), nn.AvgPool1d(2), nn.Conv1d(6, 5, 2), nn.Flatten())
        )

    def script(lib: Library, attach: bool) -> Any:
        net = model()
        for i in (0, 2, 3) if attach else ():
            net[i].rule = lib.EpsilonRule()
        if attach:
            net[4].rule = lib.EpsilonRule()
        return lib.LRP(net).attribute(torch.randn(2, 4, 5).double(), target=1)

    found = run(lambda lib: script(lib, False), replacement())
    assert (
        relative_error(found, run(lambda lib: script(lib, True), theirs())) <= 1e-6
    )  # Its Flatten keeps epsilon, too.


def test_a_parametrised_layer_is_a_layer() -> None:
    model = prepared(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)))
    expected = theirs().LRP(model).attribute(X.clone(), target=1)
    nn.utils.parametrizations.weight_norm(model[0])
    assert relative_error(replacement().LRP(model).attribute(X, target=1), expected) <= 1e-9


def test_results_have_no_graph_and_inputs_are_left_alone() -> None:
    model, x = prepared(SmallCnn()), images()
    found = replacement().LRP(model).attribute(x, target=1)
    assert not found.requires_grad
    assert theirs().LRP(model).attribute(x.clone(), target=1).requires_grad
    x.requires_grad_()
    with torch.no_grad():
        assert torch.equal(replacement().LRP(model).attribute(x, target=1), found)
    assert x.grad is None


# Something else


class Chain(nn.Module):
    """Layers in a row; what is above the first can be read a second time, past the second."""

    def __init__(self, *layers: nn.Module, skip: bool = False) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(4, 6), nn.Sequential(*layers), nn.Linear(6, 3)
        self.skip = skip

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.last(self.middle(h) + h if self.skip else self.middle(h))


def test_identity_behind_an_activation() -> None:
    """Captum's activation hook misses the identity's relevance and passes ``W^T (R / z)`` on. Here it passes ``R``."""

    def script(lib: Library) -> Any:
        model = prepared(Chain(nn.ReLU(), nn.Linear(6, 6)))
        model.middle[1].rule = lib.IdentityRule()
        top = lib.LayerLRP(model, [model.middle[1], model.first])
        return top.attribute(X.clone(), target=1)

    (above, below), (their_above, their_below) = both(script)
    assert relative_error(above, their_above) <= 1e-9
    assert torch.equal(above, below)
    assert relative_error(their_below, their_above) > 0.1


def test_an_activation_beside_another_reader() -> None:
    """Captum's hook on the activation's input overwrites what others sent there. Here it is added."""

    def script(lib: Library) -> Any:
        model = prepared(Chain(nn.ReLU(), nn.Linear(6, 6), skip=True))
        lrp = lib.LayerLRP(model, [model.first, model.middle[1]])
        found = lrp.attribute(X.clone(), target=1)
        return found, model

    ((whole, branch), model), ((their_whole, their_branch), _) = both(script)
    assert relative_error(branch, their_branch) <= 1e-9  # The relevance above both.
    through = replacement().LayerLRP(model, model.middle[1]).attribute(X, target=1, attribute_to_layer_input=True)
    assert relative_error(their_whole, through) <= 1e-9  # The other branch is lost.
    assert relative_error(whole, through + branch) <= 1e-9


def test_identity_on_an_input_that_another_layer_reads_first() -> None:
    """One tensor has one hook with Captum, that of the first layer: there the identity is an epsilon rule."""

    class Pair(nn.Module):
        def __init__(self, addition: type[nn.Module]) -> None:
            super().__init__()
            self.first, self.branch, self.add, self.last = nn.Linear(4, 6), nn.Linear(6, 6), addition(), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            return self.last(self.add(self.branch(h), h))

    def script(lib: Library) -> Any:
        model = prepared(Pair(lib.Addition_Module))
        model.add.rule = lib.IdentityRule()
        found = lib.LayerLRP(model, [model.first, model.branch, model.add]).attribute(X.clone(), target=1)
        h = model.first(X).detach()
        return found, h, (h + model.branch(h)).detach()

    ((whole, branch, above), h, z), ((their_whole, their_branch, their_above), *_) = both(script)
    assert relative_error(above, their_above) <= 1e-9
    assert relative_error(branch, their_branch) <= 1e-9
    assert torch.equal(branch, above)
    assert relative_error(whole - above, their_whole - h * above / z) <= 1e-6


def test_what_captum_keeps_where_nothing_is_computed() -> None:
    def script(lib: Library) -> Any:
        model = prepared(Chain(nn.Identity()))
        model.middle[0].rule = lib.EpsilonRule(0.5)
        return lib.LayerLRP(model, [model.first, model.last]).attribute(X.clone(), target=1)

    (below, _), (their_below, _) = both(script)
    h = prepared(Chain(nn.Identity())).first
    with torch.random.fork_rng():
        torch.manual_seed(0)
        h = prepared(Chain(nn.Identity())).first(X)
    kept = h / (h + 0.5 * torch.where(h < 0, -1.0, 1.0))
    assert relative_error(below * kept, their_below) <= 1e-9


# Refused, as a sample's relevance cannot be told from that of the others


def test_a_model_that_mixes_samples() -> None:
    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.linear(x))[0].unsqueeze(0)

    with pytest.raises(fastlrp.UnsupportedOperationError, match="batch axis"):
        replacement().LRP(prepared(First())).attribute(X, target=0)


def test_benchmark_refuses_outputs_that_disagree(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs()
    from benchmarks import shim_captum

    model, x = SmallCnn().eval(), images().float()
    options = Options([3], peer_targets=2, repeats=1)
    (row,) = measure("small", "mixed", model, x, options)
    assert row.error <= 1e-9
    assert row.targets == 3
    assert row.captum > 0
    assert row.ours > 0
    monkeypatch.setattr(shim_captum, "AGREES", 0.0)
    with pytest.raises(RuntimeError, match=r"small: outputs differ by .*not timed"):
        measure("small", "mixed", model, x, options)
