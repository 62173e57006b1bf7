"""The same question asked in another way has the same answer: targets at once, layouts, batches, dtypes, grad modes."""

from __future__ import annotations

import warnings
from functools import cache

import pytest
import torch
from torch import nn

import fastlrp
from fastlrp import Explainer
from tests.api.models import make, relative_error, same, samples, shared

# Measured in float64: 5e-16. Products of other shapes add in another order.
TIGHT = 1e-12
COMPOSITES = ["epsilon_plus", "gamma", "alpha_beta", "epsilon_plus_flat", "wsquare", "guided_backprop"]
MODELS = ["convnet", "residual", "mlp", "segment", "spatial"]


# Targets


@pytest.mark.each_value
@pytest.mark.parametrize("composite", COMPOSITES)
@pytest.mark.parametrize("name", ["convnet", "residual"])
def test_targets_at_once_equal_single_calls(name, composite):
    explainer, x = shared(name, composite), samples(name)
    with explainer.forward(x) as record:
        together = record.relevance("all", layers="all")
        alone = [record.relevance(c, layers="all") for c in range(together["output"].shape[1])]
    assert len(alone) >= 4
    for layer, relevance in together.items():
        assert relative_error(torch.cat([a[layer] for a in alone], 1), relevance) <= TIGHT, layer


@pytest.mark.each_value
@pytest.mark.parametrize("composite", COMPOSITES)
@pytest.mark.parametrize("name", ["mlp", "residual", "spatial", "score"])
def test_more_targets_than_a_layer_has_neurons(name, composite):
    """Each of these has an edge narrower than 40 targets, through which a basis may go instead."""
    explainer, x = shared(name, composite), samples(name)
    with explainer.forward(x) as record:
        initial = torch.randn(2, 40, *record.output.shape[1:], dtype=torch.float64)
        alone = torch.cat([record.relevance(initial[:, k : k + 1]) for k in range(40)], 1)
        assert relative_error(record.relevance(initial), alone) <= TIGHT
        for layers, relevance in record.relevance(initial, layers="all").items():
            parts = [part[layers] for _, part in record.stream(initial, layers="all", block=1)]
            assert relative_error(relevance, torch.cat(parts, 1)) <= TIGHT, layers
        out = torch.full((2, 40, *x.shape[1:]), torch.nan, dtype=torch.float64)
        record.relevance(initial, out=out)
        assert relative_error(out, alone) <= TIGHT
        if x.dim() > 2:
            assert relative_error(record.relevance(initial, reduce="channels"), alone.sum(2)) <= TIGHT
    with explainer.forward(x, lrp_aware=False) as record:
        assert relative_error(record.relevance(initial), alone) <= TIGHT
    assert explainer(x[:0], initial[:0]).shape == (0, 40, *x.shape[1:])


@pytest.mark.parametrize("name", MODELS)
def test_samples_at_once_equal_single_calls(name):
    explainer, x = shared(name), samples(name, 3)
    together = explainer(x, [1, 0])
    alone = torch.cat([explainer(x[i : i + 1], [1, 0]) for i in range(3)])
    assert relative_error(alone, together) <= TIGHT


@pytest.mark.parametrize("name", MODELS)
def test_the_same_call_twice_is_the_same_bit_for_bit(name):
    explainer, x = shared(name), samples(name)
    with explainer.forward(x) as record:
        first = record.relevance([1, 0, 2])
        assert torch.equal(record.relevance([1, 0, 2]), first)
        assert torch.equal(explainer(x, [1, 0, 2]), first)
        assert torch.equal(fastlrp.explain(explainer.model, x, [1, 0, 2]), first)


@pytest.mark.parametrize("composite", COMPOSITES)
@pytest.mark.parametrize("name", ["convnet", "residual", "spatial"])
def test_lrp_aware_changes_nothing_but_memory(name, composite):
    explainer, x = shared(name, composite), samples(name)
    with explainer.forward(x) as aware, explainer.forward(x, lrp_aware=False) as plain:
        assert torch.equal(aware.output, plain.output)
        before = plain.cached_bytes
        for layers in (None, "all"):
            one, other = aware.relevance([2, 0], layers=layers), plain.relevance([2, 0], layers=layers)
            pairs = [(one, other)] if layers is None else [(one[k], other[k]) for k in one]
            assert all(torch.equal(a, b) for a, b in pairs)
        assert plain.cached_bytes == before, "a call leaves no coefficients behind"
        assert aware.lrp_aware
        assert not plain.lrp_aware


def test_lrp_aware_output_is_the_models():
    for name in MODELS:
        x = samples(name)
        with shared(name).forward(x) as record:
            assert relative_error(record.output, make(name)(x).detach()) <= 1e-14, name


# Layouts


def channels_last(x):
    return x.to(memory_format=torch.channels_last)


def permuted(x):
    return x.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0)


def strided(x):
    wide = x.new_full((*x.shape[:-1], 2 * x.shape[-1]), torch.nan)
    wide[..., ::2] = x
    return wide[..., ::2]


def shifted(x):
    """Not aligned to more than one element."""
    return torch.cat([x.new_full((1,), torch.nan), x.flatten()])[1:].view(x.shape)


@pytest.mark.parametrize("layout", [channels_last, permuted, strided, shifted])
@pytest.mark.parametrize("composite", ["epsilon_plus", "gamma", "epsilon_plus_flat"])
@pytest.mark.parametrize("name", ["convnet", "residual"])
def test_memory_layout_changes_nothing(name, composite, layout):
    explainer, x = shared(name, composite), samples(name)
    other = layout(x)
    assert torch.equal(x, other)
    assert layout is shifted or not other.is_contiguous()
    assert relative_error(explainer(other, "all"), explainer(x, "all")) <= TIGHT


@pytest.mark.parametrize("dim", [0, 1, 3])
def test_expanded_input(dim):
    x = samples("convnet").narrow(dim, 0, 1).expand(2, 3, 8, 8)
    assert 0 in x.stride()
    explainer = shared("convnet", "gamma")
    assert relative_error(explainer(x, "all"), explainer(x.contiguous(), "all")) <= TIGHT


def test_an_explainer_captured_with_another_layout():
    x = samples("convnet", dtype=torch.float32)
    explainer = Explainer(make("convnet", torch.float32), example_inputs=channels_last(x))
    # Measured in float32: 1e-7.
    assert relative_error(explainer(x, "all"), shared("convnet")(x.double(), "all")) <= 1e-5


def test_channels_last_model():
    model = make("residual").to(memory_format=torch.channels_last)
    x = channels_last(samples("residual"))
    assert relative_error(fastlrp.explain(model, x, "all"), shared("residual")(samples("residual"), "all")) <= TIGHT


# Batches and shapes


@pytest.mark.each_value
@pytest.mark.parametrize("first", [0, 1, 3])
@pytest.mark.parametrize("name", ["convnet", "residual", "mlp", "segment"])
def test_any_batch_size_after_one_capture(name, first, counts):
    explainer = Explainer(make(name))
    x = samples(name, 3)
    whole = shared(name)(x, [1, 0])
    counts.captured = counts.prepared = 0  # The shared explainer may just have been captured.
    for batch in (first, 0, 1, 3):
        found = explainer(x[:batch], [1, 0])
        assert found.shape == (batch, 2, *x.shape[1:])
        assert found.dtype == torch.float64
        if batch:
            assert relative_error(found, whole[:batch]) <= TIGHT
    assert explainer(x[:0], "all").shape[0] == 0
    assert counts.captured == 1
    assert counts.prepared == 1


def test_empty_batch_takes_every_question():
    explainer, x = shared("convnet"), samples("convnet")[:0]
    assert explainer(x, "top3").shape == (0, 3, 3, 8, 8)
    assert explainer(x, torch.zeros(0, 2, dtype=torch.long)).shape == (0, 2, 3, 8, 8)
    assert explainer(x, torch.ones(4, 5)).shape == (0, 4, 3, 8, 8)
    assert explainer(x, [0, 1], reduce="channels").shape == (0, 2, 8, 8)
    found = explainer(x, [0, 1], layers="all")
    assert found["3"].shape == (0, 2, 8, 2, 2)


def test_another_image_size_is_captured_again_and_only_once(counts):
    explainer = Explainer(make("spatial"))
    sizes = [(7, 5), (9, 4), (7, 5), (9, 4), (3, 3)]
    for height, width in sizes:
        x = torch.randn(2, 3, height, width, dtype=torch.float64)
        found = explainer(x, "all")
        assert found.shape == (2, 4, 3, height, width)
        assert relative_error(found, fastlrp.explain(make("spatial"), x, "all")) <= TIGHT
    assert counts.captured == 3 + len(sizes), "three shapes, and one capture for each explain()"


# Dtypes


@cache
def widened(name, dtype):
    """The model in float64, with the weights that it has in this dtype."""
    model = make(name)
    model.load_state_dict({k: v.double() for k, v in same(name, dtype).state_dict().items()})
    return model


@pytest.mark.each_value
@pytest.mark.usefixtures("captured_once")
@pytest.mark.parametrize("composite", ["epsilon_plus", "gamma", "epsilon_alpha2_beta1_flat", "epsilon", "wsquare"])
@pytest.mark.parametrize("name", ["convnet", "residual"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_lower_precision(name, dtype, composite):
    """As near to float64 as PyTorch's own gradient of the same network in that dtype comes, times what was measured."""
    model, x = same(name, dtype), samples(name, dtype=dtype)
    exact_model, exact_x = widened(name, dtype), x.double()

    def gradient(model, x):
        point = x.clone().requires_grad_()
        return torch.autograd.grad(model(point)[:, 1].sum(), point)[0]

    own = relative_error(gradient(model, x), gradient(exact_model, exact_x))
    found = Explainer(model, composite)(x, [1])
    assert found.dtype == dtype
    error = relative_error(found, Explainer(exact_model, composite)(exact_x, [1]))
    assert own > 0
    assert error <= 3 * max(own, torch.finfo(dtype).eps), f"{error:.2e}, the gradient's own error is {own:.2e}"


@pytest.mark.parametrize("backend", ["torch", "cpu", "reference"])
def test_float64_is_not_rounded_on_the_way(backend):
    """gamma = 0.1 is not a float32: a constant that passes through float32 costs nine digits."""
    composite = fastlrp.composites.gamma(0.1)
    x = samples("convnet")
    expected = Explainer(make("convnet"), composite, backend="reference")(x, "all")
    assert relative_error(Explainer(make("convnet"), composite, backend=backend)(x, "all"), expected) <= TIGHT


@pytest.mark.usefixtures("captured_once")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("composite", ["epsilon_plus", "gamma", "alpha_beta", "lrp0"])
def test_zero_input_is_finite(composite, dtype):
    found = Explainer(same("convnet", dtype), composite)(torch.zeros(2, 3, 8, 8, dtype=dtype), "all")
    assert torch.equal(found, torch.zeros_like(found)), "R is a multiple of x"


@pytest.mark.parametrize("composite", ["flat", "wsquare"])
def test_zero_input_under_rules_that_do_not_see_it(composite):
    x = torch.zeros(2, 3, 8, 8, dtype=torch.float64)
    found = shared("convnet", composite)(x, "all")
    assert bool(torch.isfinite(found).all())
    assert bool((found != 0).any())


# Grad modes


def test_inputs_that_require_grad():
    x = samples("convnet").requires_grad_()
    explainer = Explainer(make("convnet"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = explainer(x, "all")
        layers = explainer(x, "all", layers="all")
    assert not found.requires_grad
    assert not any(relevance.requires_grad for relevance in layers.values())
    assert x.grad is None
    assert torch.equal(found, shared("convnet")(x.detach(), "all"))
    assert not explainer.forward(x).output.requires_grad


def test_float_targets_that_require_grad():
    initial = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    found = shared("convnet")(samples("convnet"), initial, layers="all")
    assert not any(relevance.requires_grad for relevance in found.values())


@pytest.mark.parametrize(("name", "composite"), [(name, "epsilon_plus") for name in MODELS] + [("convnet", "gradient")])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_grad_mode(mode, composite, name):
    x = samples(name)
    expected = shared(name, composite)(x, [1, 0])
    with mode():
        assert relative_error(shared(name, composite)(x, [1, 0]), expected) <= TIGHT  # Captured outside.
        assert relative_error(Explainer(make(name), composite)(x, [1, 0]), expected) <= TIGHT


def test_inputs_made_in_inference_mode():
    with torch.inference_mode():
        x = samples("convnet").clone()
    assert x.is_inference()
    found = Explainer(make("convnet"))(x, "all")
    assert torch.equal(found, shared("convnet")(samples("convnet"), "all"))


@pytest.mark.parametrize("made", [False, True])
def test_what_differentiates_in_inference_mode(made):
    """``verify`` and the reference take derivatives, of a model that may have been made in inference mode too."""
    with torch.inference_mode(made):
        layers = [nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(12, 3)]
        model = nn.Sequential(*layers).double().eval()
    x = torch.randn(2, 1, 6, 6, dtype=torch.float64)
    expected = Explainer(model)(x, [0, 1])
    with torch.inference_mode():
        report = Explainer(model).verify(x, [0, 1])
        relevance = Explainer(model, backend="reference")(x, [0, 1])
    assert report.ok, report
    torch.testing.assert_close(relevance, expected, rtol=1e-12, atol=1e-15)


def test_a_record_made_in_inference_mode_is_read_outside():
    x = samples("spatial")
    with torch.inference_mode():
        record = shared("spatial").forward(x)
    with record:
        assert torch.equal(record.relevance("all"), shared("spatial")(x, "all"))


def test_a_model_made_in_inference_mode():
    with torch.inference_mode():
        model = make("convnet")
    assert next(model.parameters()).is_inference()
    x = samples("convnet")
    assert relative_error(Explainer(model)(x, "all"), shared("convnet")(x, "all")) <= TIGHT
