"""Changed weights are noticed; the model itself is never changed."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import fastlrp
from fastlrp import CaptureError, Explainer
from fastlrp.capture import fingerprint
from tests.api.models import make, relative_error, samples, shared

# Measured: 0 to 3e-16.
TIGHT = 1e-12


def fresh(model, x):
    """From an explainer that has seen nothing before."""
    return Explainer(copy.deepcopy(model))(x, "all", initial="one")


def step(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    model(samples("residual")).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def load(model):
    model.load_state_dict({k: v + 0.1 if v.is_floating_point() else v for k, v in model.state_dict().items()})


def assign(model):
    model.load_state_dict({k: v * 1.5 for k, v in model.state_dict().items()}, assign=True)


def data(model):
    model.head.weight.data = model.head.weight.data * -1


def in_place(model):
    with torch.no_grad():
        model.stem.weight.mul_(-1)


def parameter(model):
    model.head.bias = nn.Parameter(torch.full((4,), 3.0, dtype=torch.float64))


def no_bias(model):
    model.head.bias = None


def module(model):
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model.inner = nn.Conv2d(6, 6, 5, padding=2).double()


def activation(model):
    model.head = nn.Sequential(model.head, nn.Tanh(), nn.Linear(4, 4).double())


def buffers(model):
    model.norm.running_mean.add_(0.3)


def statistics(model):
    """As a forward pass in training mode does."""
    model.train()
    with torch.no_grad():
        model(samples("residual", 4, seed=7))
    model.eval()


CHANGES = [step, load, assign, data, in_place, parameter, no_bias, module, activation, buffers, statistics]


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_noticed(change, counts):
    model, x = make("residual"), samples("residual")
    explainer = Explainer(model)
    before = explainer(x, "all", initial="one")
    explainer(x, "all", initial="one")
    assert (counts.captured, counts.prepared) == (1, 1)
    change(model)
    after = explainer(x, "all", initial="one")
    assert counts.prepared == 2
    assert relative_error(after, before) > 1e-3, "the change has no effect: nothing is tested"
    assert relative_error(after, fresh(model, x)) <= TIGHT
    assert relative_error(explainer.forward(x).output, model(x).detach()) <= TIGHT


def test_an_added_module_is_noticed():
    model, x = make("mlp"), samples("mlp")
    explainer = Explainer(model)
    explainer(x, 0)
    model.append(nn.ReLU())
    model.append(nn.Linear(3, 7).double())
    assert explainer(x, "all").shape == (2, 7, 4)
    assert relative_error(explainer(x, "all", initial="one"), fresh(model, x)) <= TIGHT
    del model[-1]
    del model[-1]
    assert torch.equal(explainer(x, "all"), shared("mlp")(x, "all"))


def test_every_captured_shape_is_prepared_again():
    model = make("spatial")
    explainer = Explainer(model)
    inputs = [torch.randn(2, 3, n, n, dtype=torch.float64) for n in (5, 6)]
    for x in inputs:
        explainer(x, 0)
    with torch.no_grad():
        model.conv.weight.mul_(-1)
    for x in inputs:
        assert relative_error(explainer(x, "all", initial="one"), fresh(model, x)) <= TIGHT


def test_unchanged_is_not_prepared_again(counts):
    model = make("residual")
    explainer = Explainer(model)
    for batch in (2, 3, 2):
        explainer(samples("residual", batch), "all")
    with torch.no_grad():
        model(samples("residual"))
    model.eval()
    model.requires_grad_(False)
    explainer.forward(samples("residual"), lrp_aware=False).relevance(0)
    assert (counts.captured, counts.prepared) == (1, 1)


def test_another_dtype_and_back():
    model, x = make("residual"), samples("residual")
    explainer = Explainer(model)
    expected = explainer(x, "all")
    model.float()
    with pytest.raises(TypeError, match=r"x is torch.float64, the model's parameters are torch.float32: convert one"):
        explainer(x, "all")
    found = explainer(x.float(), "all")
    assert found.dtype == torch.float32
    # Measured: 3e-7.
    assert relative_error(found, expected) <= 1e-5
    model.double()
    assert relative_error(explainer(x, "all", initial="one"), fresh(model, x)) <= TIGHT


def test_training_mode_is_an_error_that_says_what_to_do():
    model, x = make("residual"), samples("residual")
    explainer = Explainer(model)
    expected = explainer(x, "all")
    model.train()
    with pytest.raises(CaptureError, match=r"batch_norm at 'norm' is in training mode.*call model.eval\(\) first"):
        explainer(x, "all")
    model.eval()
    assert torch.equal(explainer(x, "all"), expected)
    model.norm.train()
    with pytest.raises(CaptureError, match=r"batch_norm at 'norm' is in training mode"):
        explainer(x, "all")
    model.eval()
    assert torch.equal(explainer(x, "all"), expected)


@pytest.mark.parametrize("layer", [nn.Dropout(0.5), nn.Dropout2d(0.5), nn.BatchNorm2d(8), nn.AlphaDropout(0.2)])
def test_capturing_in_training_mode(layer):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), layer, nn.ReLU(), nn.Flatten(), nn.Linear(288, 5)).double().train()
    with pytest.raises(CaptureError, match=r"at '1' is in training mode.*call model.eval\(\) first"):
        fastlrp.explain(model, samples("convnet"), 0)
    assert model.training
    assert layer.training
    assert fastlrp.explain(model.eval(), samples("convnet"), 0).shape == (2, 1, 3, 8, 8)


def test_a_model_in_training_mode_that_does_not_care():
    model = make("convnet").train()
    assert torch.equal(fastlrp.explain(model, samples("convnet"), "all"), shared("convnet")(samples("convnet"), "all"))
    assert model.training


# Never modified


def state(model):
    """Everything about a model that somebody could notice."""
    return {
        "parameters": {k: (id(p), p._version, p.requires_grad, p.grad) for k, p in model.named_parameters()},
        "buffers": {k: (id(b), b._version) for k, b in model.named_buffers()},
        "modules": {k: (id(m), type(m), m.training) for k, m in model.named_modules()},
        "attributes": {k: sorted(vars(m)) for k, m in model.named_modules()},
        "hooks": {
            k: {name: dict(table) for name, table in vars(m).items() if name.endswith("hooks")}
            for k, m in model.named_modules()
        },
        "forwards": {k: m.forward.__func__ for k, m in model.named_modules()},
    }


@pytest.mark.parametrize("name", ["convnet", "residual", "spatial", "reused"])
def test_the_model_is_not_modified(name):
    model, x = make(name), samples(name)
    seen = []
    first = next(m for _, m in model.named_modules() if not list(m.children()))
    handle = first.register_forward_hook(lambda module, args, output: seen.append(type(output)))
    first.register_full_backward_hook(lambda module, grad_input, grad_output: None)
    next(model.parameters()).requires_grad_(False)
    before, weights = state(model), copy.deepcopy(model.state_dict())
    kept = x.clone()
    explainer = Explainer(model, "gamma")
    with explainer.forward(x) as record:
        record.relevance("all", layers="all")
    with explainer.forward(x, lrp_aware=False) as record:
        record.relevance("all", reduce="channels")
    for composite in ("gradient", "guided_backprop", "epsilon_plus_flat"):
        fastlrp.explain(model, x, [0, 1], composite)
    after = state(model)
    for what, expected in before.items():
        assert after[what] == expected, what
    assert list(model.state_dict()) == list(weights)
    assert all(torch.equal(model.state_dict()[k], v) for k, v in weights.items())
    assert torch.equal(x, kept)
    assert x.grad is None
    seen.clear()
    model(x)
    assert len(seen) == 1, "the user's hook still runs"
    handle.remove()


def test_the_model_can_be_trained_and_pickled_afterwards():
    model, x = make("residual"), samples("residual")
    explainer = Explainer(model)
    explainer(x, 0)
    model(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert torch.equal(copy.deepcopy(model)(x), model(x))


def test_a_failed_capture_leaves_the_model_as_it_was():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x):
            return self.layer(x) if x.sum() > 0 else -self.layer(x)

    model = Branching().double().eval()
    before = state(model)
    with pytest.raises(CaptureError, match=r"branches on the values of a tensor .*torch.where, or explain"):
        fastlrp.explain(model, samples("mlp"), 0)
    assert state(model) == before
    assert torch.isfinite(model(samples("mlp"))).all()


OTHER_VIEWS = {
    "transposed": lambda w: w.t(),
    "one row": lambda w: w[:1].expand(6, 6),
    "one entry": lambda w: w[:1, :1].expand(6, 6),
}


@pytest.mark.parametrize("change", OTHER_VIEWS.values(), ids=OTHER_VIEWS)
@pytest.mark.parametrize("compiled", [True, False])
def test_another_view_of_the_same_memory_is_another_weight(change, compiled, monkeypatch):
    """The address, the bits and PyTorch's count of writes stay what they are."""
    if not compiled:
        monkeypatch.setattr(fingerprint, "loaded", lambda: "not built")
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    explainer, x = fastlrp.Explainer(model, "epsilon_plus"), torch.randn(2, 6)
    record = explainer.forward(x)
    model[0].weight.data = change(model[0].weight.data)
    assert torch.equal(explainer(x, "all"), fastlrp.Explainer(model, "epsilon_plus")(x, "all"))
    with pytest.raises(RuntimeError, match="weights have changed"):
        record.relevance("all")


@pytest.mark.parametrize("size", [1, 5])
def test_weights_of_another_shape_are_captured_anew(size):
    """The convolution's result has another size then."""
    model = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    explainer, x = fastlrp.Explainer(model, "epsilon"), torch.randn(2, 2, 6, 6)
    explainer(x, 0)
    model[0].weight.data = torch.randn(3, 2, size, size)
    assert torch.equal(explainer(x, 0), fastlrp.Explainer(model, "epsilon")(x, 0))
