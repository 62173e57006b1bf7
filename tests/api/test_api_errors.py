"""Bad input: the right error, with a message that says what to do, before anything is lost."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd import forward_ad

import fastlrp
from fastlrp import CaptureError, Explainer
from fastlrp.errors import BackendError
from tests.api.models import TwoInputs, make, relative_error, samples, shared


def nan_at(index, value=torch.nan):
    x = samples("convnet")
    x.view(-1)[index] = value
    return x


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (nan_at(0), ValueError, "x contains 1 NaN or infinite entries"),
        (nan_at(slice(3, 7)), ValueError, "x contains 4 NaN or infinite entries"),
        (nan_at(-1, torch.inf), ValueError, "x contains 1 NaN or infinite entries"),
        (
            nan_at(slice(0, 2), torch.tensor([torch.inf, -torch.inf]).double()),
            ValueError,
            "x contains 2 NaN or infinite",
        ),
        (samples("convnet").to(torch.uint8), TypeError, r"x is torch.uint8: .* convert with x.float\(\)"),
        (samples("convnet").long(), TypeError, r"x is torch.int64: .* convert with x.float\(\)"),
        (samples("convnet").bool(), TypeError, r"x is torch.bool: .* convert with x.float\(\)"),
        (
            samples("convnet").float(),
            TypeError,
            "x is torch.float32, the model's parameters are torch.float64: convert",
        ),
        (samples("convnet").to("meta"), ValueError, r"x is on meta, the model is on cpu: use x.to\("),
        (samples("convnet").to_sparse(), TypeError, r"x is torch.sparse_coo: .* use x.to_dense\("),
        (torch.tensor(1.0).double(), ValueError, "x must have a batch axis, got a scalar"),
        (None, TypeError, "x must be a tensor or array, a tuple of tensors or a dict .* got NoneType"),
        ("image.png", TypeError, "x must be a tensor or array, a tuple of tensors or a dict .* got str"),
        ((), ValueError, "x has no tensor"),
        ({}, ValueError, "x has no tensor"),
        ([None, "text"], ValueError, "x has no tensor"),
    ],
)
def test_bad_input(x, error, message):
    explainer = Explainer(make("convnet"))
    for call in (lambda: explainer(x, 0), lambda: explainer.forward(x), lambda: fastlrp.explain(explainer.model, x, 0)):
        with pytest.raises(error, match=message):
            call()
    assert explainer(samples("convnet"), 0).shape == (2, 1, 3, 8, 8), "it still works"


def test_large_finite_input_is_not_taken_for_infinite():
    """The sum overflows, no entry does."""
    x = torch.full((2, 4), 1e308, dtype=torch.float64)
    assert not torch.isfinite(x.sum())
    explainer = Explainer(nn.Sequential(nn.Linear(4, 2, bias=False)).double().eval(), "epsilon")
    torch.nn.init.constant_(explainer.model[0].weight, 0.1)
    assert relative_error(explainer(x * 0.5, 0) / 1e300, x.unsqueeze(1) * 0.05 / 1e300) <= 1e-12


@pytest.mark.parametrize("shape", [(2, 4, 8, 8), (2, 3), (3, 8, 8), (2, 3, 9, 12), (2, 3, 8, 8, 1), (2,)])
def test_a_shape_that_the_model_does_not_take(shape):
    """The model's own complaint is in the message, and what was captured before still works."""
    explainer, x = Explainer(make("convnet")), samples("convnet")
    expected = explainer(x, 0)
    wrong = torch.randn(*shape, dtype=torch.float64)
    with pytest.raises(CaptureError, match="the model could not be captured: ") as error:
        explainer(wrong, 0)
    with pytest.raises((RuntimeError, ValueError)):
        explainer.model(wrong)
    words = ("channels", "reduction dim", "Expected", "mat1 and mat2")
    assert any(word in str(error.value) for word in words), str(error.value)
    assert torch.equal(explainer(x, 0), expected)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        ((torch.zeros(2, 4), torch.zeros(3, 3)), ValueError, "input '1' has 3 samples, the first input has 2"),
        ({"left": torch.zeros(2, 4), "right": torch.full((2, 3), torch.nan)}, ValueError, "'right' contains 6 NaN"),
        ({"left": torch.zeros(2, 4).double(), "right": torch.zeros(2, 3)}, TypeError, "'left' is torch.float64"),
        ((torch.zeros(2, 4), torch.tensor(0.0)), ValueError, "input '1' must have a batch axis, got a scalar"),
        (
            (torch.zeros(2, 4), torch.zeros(2, 3, device="meta")),
            ValueError,
            "input '1' is on meta, the model is on cpu",
        ),
        ((torch.zeros(2, 4),), CaptureError, "right"),
        ({"left": torch.zeros(2, 4), "wrong": torch.zeros(2, 3)}, CaptureError, "wrong"),
    ],
)
def test_bad_inputs(x, error, message):
    with pytest.raises(error, match=message):
        Explainer(TwoInputs().eval(), "epsilon")(x, 0)


# The model and the options


class Wandering(nn.Module):
    """Control flow that depends on the data."""

    def forward(self, x):
        return x * 2 if x.sum() > 0 else x


@pytest.mark.parametrize("model", [torch.relu, nn.Linear, None, lambda x: x, "resnet18"])
def test_no_module(model):
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got \w+"):
        Explainer(model)


def test_a_model_that_cannot_be_captured():
    with pytest.raises(CaptureError, match=r"branches on the values of a tensor .* torch.where, or explain") as error:
        fastlrp.explain(Wandering(), samples("mlp"), 0)
    assert "torch.export.export(model, (x,))" in str(error.value)


class Asserting(nn.Linear):
    def forward(self, x):
        assert not x.isnan().any()
        return super().forward(x)


def test_the_line_that_reads_values_is_named():
    with pytest.raises(
        CaptureError, match=r"over data, test_api_errors.py, line \d+: `return x \* 2 if x.sum\(\) > 0 else x`"
    ):
        fastlrp.explain(Wandering(), samples("mlp"), 0)
    asserts = r"asserts something .*test_api_errors.py, line \d+: `assert not x.isnan\(\).any\(\)`.*Take the assertion"
    with pytest.raises(CaptureError, match=asserts):
        fastlrp.explain(Asserting(4, 3).double().eval(), torch.randn(2, 4, dtype=torch.float64), 0)


def test_a_model_without_parameters_works():
    x = samples("segment")
    pool = nn.Sequential(nn.AvgPool2d(6), nn.Flatten()).eval()
    found = fastlrp.explain(pool, x, "all", "lrp0")
    expected = torch.zeros(2, 2, 2, 6, 6, dtype=torch.float64)
    expected[:, 0, 0], expected[:, 1, 1] = x[:, 0] / 36, x[:, 1] / 36
    assert relative_error(found, expected) <= 1e-12
    assert torch.equal(fastlrp.explain(nn.Identity(), x.flatten(1), [3])[:, 0, 3], x.flatten(1)[:, 3])


def test_an_output_that_does_not_depend_on_the_input():
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.scores = nn.Parameter(torch.ones(2, 3))

        def forward(self, x):
            return self.scores

    with pytest.raises(CaptureError, match="output 0 of the model does not depend on its input"):
        fastlrp.explain(Constant(), torch.zeros(2, 4), 0)


def test_an_output_of_integers():
    class Label(nn.Module):
        def forward(self, x):
            return x.argmax(1, keepdim=True)

    with pytest.raises(ValueError, match=r"output to explain must be a float tensor \(B, C, …\), got .* torch.int64"):
        fastlrp.explain(Label(), samples("mlp"), 0, "gradient")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"composite": "epsilon_pluss"},
            ValueError,
            "unknown composite 'epsilon_pluss': expected one of epsilon_plus, ",
        ),
        ({"composite": None}, TypeError, "composite must be a name or a Composite, got NoneType"),
        ({"composite": fastlrp.rules.Epsilon()}, TypeError, "composite must be a name or a Composite, got Epsilon"),
        ({"composite": "epsilon_gamma_box"}, ValueError, r"needs the bounds .*epsilon_gamma_box\(low=…, high=…\)"),
        (
            {"backend": "triton2"},
            ValueError,
            "unknown backend 'triton2': expected 'auto' or one of reference, torch, cpu",
        ),
        ({"backend": None}, ValueError, "unknown backend None: expected 'auto' or one of"),
        ({"max_memory": "lots"}, ValueError, "max_memory must be a positive number of bytes or text such as '2GB'"),
        ({"max_memory": -5}, ValueError, "max_memory must be a positive number of bytes or text such as '2GB', got -5"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        Explainer(make("mlp"), **options)
    with pytest.raises(error, match=message):
        fastlrp.explain(make("mlp"), samples("mlp"), 0, **options)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_backend_that_cannot_run_says_why(dtype):
    model, x = make("convnet", dtype), samples("convnet", dtype=dtype)
    with pytest.raises(BackendError, match=rf"backend 'cpu' cannot run: dtype is {dtype}.*use backend='auto'"):
        fastlrp.explain(model, x, 0, backend="cpu")
    assert fastlrp.explain(model, x, 0).dtype == dtype


def test_the_plan_before_the_first_capture():
    with pytest.raises(
        RuntimeError, match="nothing is captured yet: call the explainer once, or give it example_inputs"
    ):
        _ = Explainer(make("mlp")).plan


def test_unknown_options_of_explain():
    with pytest.raises(TypeError, match="unexpected keyword argument 'layer'"):
        fastlrp.explain(make("mlp"), samples("mlp"), 0, layer="0")


def test_errors_cost_no_record():
    """After every kind of refusal the same record answers as before."""
    x = samples("convnet")
    with shared("convnet").forward(x) as record:
        expected = record.relevance("all")
        for question in (
            {"targets": 9}, {"targets": "best"}, {"targets": 0, "initial": "two"}, {"targets": 0, "layers": "conv9"},
            {"targets": 0, "reduce": "mean"}, {"targets": 0, "out": np.zeros(3)}, {"targets": 0, "layers": [None]},
        ):  # fmt: skip
            with pytest.raises((IndexError, ValueError, KeyError, TypeError)):
                record.relevance(**question)
            assert torch.equal(record.relevance("all"), expected)


def test_autocast_is_refused_wherever_it_is_turned_on():
    """It would compute single products in bfloat16, of a plan that was made for float32."""
    model, x = make("convnet", torch.float32), samples("convnet", dtype=torch.float32)
    explainer, message = Explainer(model), r"torch.autocast is on for cpu: .* model.to\(torch.bfloat16\)"
    expected = explainer(x, 0)
    with explainer.forward(x) as record:
        with torch.autocast("cpu", torch.bfloat16):
            for call in (
                lambda: explainer(x, 0), lambda: explainer.forward(x), lambda: Explainer(model, example_inputs=x),
                lambda: record.relevance(0), lambda: record.under("epsilon"), lambda: next(record.stream(0)),
            ):  # fmt: skip
                with pytest.raises(RuntimeError, match=message):
                    call()
            with torch.autocast("cpu", enabled=False):
                assert torch.equal(explainer(x, 0), expected)
        assert torch.equal(record.relevance(0), expected)


def test_a_model_without_numbers():
    x = samples("mlp")
    lazy = nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d()).double().eval()
    with pytest.raises(CaptureError, match=r"'0.weight' of the model has no shape yet.* call the model once"):
        Explainer(lazy)(x, 0)
    lazy(x)
    assert Explainer(lazy)(x, 0).shape == (len(x), 1, *x.shape[1:])
    with pytest.raises(ValueError, match="x is on meta, a device without numbers"):
        Explainer(make("mlp").to("meta"))(x.to("meta"), 0)


def test_transforms_of_torch_func():
    explainer, x = shared("mlp"), samples("mlp")
    derived = "inside of torch.func.grad, jvp, jacrev or another transform, or of an input that carries a tangent"
    mapped = r"inside of torch.vmap: give the whole batch at once, explainer\(x, targets\)"
    with pytest.raises(RuntimeError, match=mapped):
        torch.func.vmap(lambda x: explainer(x[None], [0]))(x)
    with pytest.raises(RuntimeError, match=mapped):
        torch.func.vmap(lambda k: explainer(x, k[None]))(torch.tensor([0, 1]))
    with explainer.forward(x) as record, pytest.raises(RuntimeError, match=mapped):
        torch.func.vmap(lambda k: record.relevance(k[None]))(torch.tensor([0, 1]))
    for transform in (torch.func.jacrev, torch.func.jacfwd):
        with pytest.raises(RuntimeError, match=derived):
            transform(lambda x: explainer(x, [0]))(x)
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match=derived):
        explainer(forward_ad.make_dual(x, x), [0])
    with forward_ad.dual_level():
        explainer(x, [0])
