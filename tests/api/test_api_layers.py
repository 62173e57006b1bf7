"""Relevance of layers, sums over channels, and results in the caller's memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from fastlrp import Explainer, rules
from tests.api.models import TwoInputs, make, relative_error, samples, shared
from tests.api.oracle import one_hot_scores, walk

# Measured: 6e-16.
TIGHT = 1e-12


def record(name="convnet", composite="epsilon_plus", **options):
    return shared(name, composite).forward(samples(name), **options)


def zplus_then_epsilon(i, n):
    return rules.ZPlus() if i < 2 else rules.Epsilon()


# Layers


def test_all_layers():
    model, x = make("convnet"), samples("convnet")
    expected = walk(model, x, one_hot_scores(model(x)), zplus_then_epsilon)
    with record() as r:
        found = r.relevance("all", layers="all")
    assert list(found) == ["0", "1", "2", "3", "4", "5", "6", "output", "input"]
    for name, relevance in expected.items():
        assert relative_error(found[name], relevance) <= TIGHT, name


def test_some_layers():
    with record() as r:
        everything = r.relevance([4, 1], layers="all")
        found = r.relevance([4, 1], layers=["3", "0"])
        assert list(found) == ["3", "0", "output", "input"]
        for name, relevance in found.items():
            assert torch.equal(relevance, everything[name]), name
        alone = r.relevance([4, 1], layers="3")
        assert list(alone) == ["3", "output", "input"]
        assert torch.equal(alone["3"], everything["3"])
        assert list(r.relevance(0, layers=[])) == ["output", "input"]
        assert list(r.relevance(0, layers=["input", "output"])) == ["output", "input"]
        assert list(r.relevance(0, layers="input")) == ["output", "input"]
        assert torch.equal(found["input"], r.relevance([4, 1]))


def test_input_and_output_of_one_call():
    with record() as r:
        found = r.relevance([4, 1], layers=["output"])
        expected = torch.zeros(2, 2, 5, dtype=torch.float64)
        expected[:, 0, 4], expected[:, 1, 1] = r.output[:, 4], r.output[:, 1]
        assert torch.equal(found["output"], expected)


@pytest.mark.parametrize("cut", [1, 3, 4, 6])
def test_a_layers_relevance_is_the_input_relevance_of_the_model_cut_there(cut):
    """Layer ``cut - 1`` gives what the rest of the model gives its input, under the same rule for every layer."""
    model, x = make("convnet"), samples("convnet")
    rest = nn.Sequential(*list(model)[cut:])
    middle = nn.Sequential(*list(model)[:cut])(x).detach()
    with record(composite="gamma") as r:
        found = r.relevance("all", layers=[str(cut - 1)])[str(cut - 1)]
    assert relative_error(found, Explainer(rest, "gamma")(middle, "all")) <= TIGHT


def test_every_call_of_a_reused_module_has_a_name():
    model, x = make("reused"), samples("reused")
    with shared("reused", "epsilon").forward(x) as r:
        found = r.relevance("all", layers="all")
    assert set(found) == {"a", "relu", "b", "relu@1", "c", "output", "input"}
    # LRP passes a ReLU, so each call has the relevance of the layer before it, which tells the two calls apart.
    assert torch.equal(found["relu"], found["a"])
    assert torch.equal(found["relu@1"], found["b"])
    assert found["relu"].shape == (2, 3, 6)
    assert found["relu@1"].shape == (2, 3, 5)
    flat = nn.Sequential(model.a, nn.ReLU(), model.b, nn.ReLU(), model.c)
    expected = walk(flat, x, one_hot_scores(model(x)), lambda i, n: rules.Epsilon())
    assert relative_error(found["relu@1"], expected["3"]) <= TIGHT
    assert relative_error(found["relu"], expected["1"]) <= TIGHT


def test_relevance_is_kept_from_layer_to_layer_without_bias_and_epsilon():
    model = make("convnet")
    for layer in model:
        if getattr(layer, "bias", None) is not None:
            nn.init.zeros_(layer.bias)
    x = samples("convnet")
    with Explainer(model, "lrp0").forward(x) as r:
        score = r.output.sum(1)
        for name, relevance in r.relevance("all", layers="all").items():
            torch.testing.assert_close(relevance.flatten(1).sum(1), score, rtol=1e-12, atol=1e-12, msg=name)


def test_batch_norm_and_its_convolution_are_one_layer():
    with shared("residual").forward(samples("residual")) as r:
        found = r.relevance("all", layers="all")
    assert torch.equal(found["stem"], found["norm"])
    assert found["inner"].shape == (2, 4, 6, 8, 8)


def test_several_inputs():
    model = TwoInputs().double().eval()
    left, right = torch.randn(2, 4, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    explainer = Explainer(model, "lrp0")
    as_tuple = explainer((left, right), "all")
    as_dict = explainer({"right": right, "left": left}, "all")
    assert isinstance(as_tuple, tuple)
    assert list(as_dict) == ["right", "left"]
    points = left.clone().requires_grad_(), right.clone().requires_grad_()
    for c in range(3):
        grads = torch.autograd.grad(model(*points)[:, c].sum(), points)
        assert relative_error(as_tuple[0][:, c], grads[0] * left) <= TIGHT
        assert relative_error(as_tuple[1][:, c], grads[1] * right) <= TIGHT
    assert relative_error(as_dict["left"], as_tuple[0]) <= TIGHT
    assert relative_error(as_dict["right"], as_tuple[1]) <= TIGHT
    found = explainer((left, right), [1], layers=["head"])
    assert torch.equal(found["input"]["input.1"], as_tuple[1][:, 1:2])
    outs = {"input.0": torch.empty(2, 3, 4), "input.1": np.empty((2, 3, 3))}
    explainer((left, right), "all", out=outs)
    assert relative_error(outs["input.0"], as_tuple[0]) <= 1e-7, "float32"
    assert np.array_equal(outs["input.1"], as_tuple[1].numpy())


@pytest.mark.parametrize("composite", ["epsilon_plus", "flat", "gradient", "deconvnet"])
@pytest.mark.parametrize("inference", [False, True])
def test_no_two_results_share_memory(composite, inference):
    with torch.inference_mode(inference), record(composite=composite) as r:
        found = r.relevance("all", layers="all")
        expected = {name: relevance.clone() for name, relevance in found.items()}
        for name, relevance in found.items():
            relevance.fill_(torch.nan)
            expected.pop(name)
            for other, before in expected.items():
                assert torch.equal(found[other], before), f"writing into {name!r} changed {other!r}"
        assert bool(torch.isfinite(r.output).all())


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("conv1", r"unknown layer 'conv1'.* Known: 0, 1, 2, 3, 4, 5, 6"),
        (["0", "66"], r"unknown layer '66'; did you mean 6\?"),
    ],
)
def test_unknown_layer(layers, message):
    with record() as r, pytest.raises(KeyError, match=message):
        r.relevance(0, layers=layers)


def test_unknown_layer_suggests_what_is_close():
    with shared("residual").forward(samples("residual")) as r:
        with pytest.raises(KeyError, match=r"unknown layer 'iner'; did you mean inner\?"):
            r.relevance(0, layers="iner")
        with pytest.raises(KeyError, match="unknown layer 'Inner'"):
            r.relevance(0, layers="Inner")


def test_a_layer_that_the_output_does_not_depend_on():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.trunk, self.one, self.other = nn.Linear(4, 4), nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, x):
            x = self.trunk(x).relu()
            return self.one(x), self.other(x)

    explainer = Explainer(Branches().eval(), "epsilon", output=0)
    with pytest.raises(KeyError, match="no relevance reaches the output of layer 'other'"):
        explainer(torch.randn(2, 4), 0, layers=["other"])
    assert set(explainer(torch.randn(2, 4), 0, layers="all")) == {"trunk", "one", "output", "input"}


# Channels


def test_sum_over_channels():
    with record() as r:
        full = r.relevance("all", layers="all")
        found = r.relevance("all", layers="all", reduce="channels")
        assert r.relevance("all", reduce="channels").shape == (2, 5, 8, 8)
    for name, relevance in full.items():
        expected = relevance.sum(2) if relevance.dim() > 3 else relevance
        assert relative_error(found[name], expected) <= TIGHT, name


def test_sum_over_channels_into_blocks_and_out():
    x = samples("convnet")
    expected = shared("convnet")(x, "all").sum(2)
    with shared("convnet", "epsilon_plus").forward(x) as r:
        out = torch.full((2, 5, 8, 8), torch.nan, dtype=torch.float32)
        assert r.relevance("all", reduce="channels", out=out) is out
        assert relative_error(out, expected) <= 1e-7, "float32"
        blocks = [block for _, block in r.stream("all", reduce="channels", block=2)]
        assert relative_error(torch.cat(blocks, 1), expected) <= TIGHT


@pytest.mark.parametrize("reduce", ["sum", "channel", True, 1])
def test_bad_reduce(reduce):
    with record() as r, pytest.raises(ValueError, match=f"reduce must be None or 'channels', got {reduce!r}"):
        r.relevance(0, reduce=reduce)


# Out


def test_out_tensor():
    expected = shared("convnet")(samples("convnet"), "all")
    out = torch.full((2, 5, 3, 8, 8), torch.nan, dtype=torch.float64)
    with record() as r:
        assert r.relevance("all", out=out) is out
        assert torch.equal(out, expected)
        # Any strides, a view into something larger, and a leaf that requires grad.
        wide = torch.full((2, 5, 3, 8, 9), torch.nan, dtype=torch.float64)
        r.relevance("all", out=wide[..., :8])
        assert torch.equal(wide[..., :8], expected)
        assert bool(wide[..., 8].isnan().all())
        swapped = torch.full((5, 2, 3, 8, 8), torch.nan, dtype=torch.float64)
        r.relevance("all", out=swapped.transpose(0, 1))
        assert torch.equal(swapped.transpose(0, 1), expected)
        leaf = torch.zeros(2, 5, 3, 8, 8, dtype=torch.float64, requires_grad=True)
        assert r.relevance("all", out=leaf) is leaf
        assert torch.equal(leaf.detach(), expected)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-7), (torch.float16, 1e-3), (torch.bfloat16, 4e-3)])
def test_out_of_another_dtype(dtype, tolerance):
    out = torch.full((2, 5, 3, 8, 8), torch.nan, dtype=dtype)
    with record() as r:
        r.relevance("all", out=out)
    assert relative_error(out, shared("convnet")(samples("convnet"), "all")) <= tolerance


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_out_array(dtype):
    expected = shared("convnet")(samples("convnet"), "all").numpy().astype(dtype)
    out = np.full((2, 5, 3, 8, 8), np.nan, dtype)
    with record() as r:
        assert r.relevance("all", out=out) is out
        # float16 values below 6e-5 are subnormal: an absolute bound.
        np.testing.assert_allclose(out, expected, rtol=1e-6, atol=1e-7)
        fortran = np.full((2, 5, 3, 8, 8), np.nan, dtype, order="F")
        r.relevance("all", out=fortran)
        assert np.array_equal(fortran, out)


def test_out_memmap(tmp_path):
    expected = shared("convnet")(samples("convnet"), "all").float().numpy()
    path = tmp_path / "relevance.dat"
    out = np.memmap(path, dtype=np.float32, mode="w+", shape=(2, 5, 3, 8, 8))
    with record() as r:
        assert r.relevance("all", out=out) is out
    out.flush()
    del out
    np.testing.assert_allclose(np.fromfile(path, np.float32).reshape(expected.shape), expected, rtol=1e-6, atol=1e-12)


def test_out_with_layers():
    with record() as r:
        expected = r.relevance("all", layers=["0", "3"])
        outs = {
            "0": np.full((2, 5, 8, 8, 8), np.nan),
            "input": torch.full((2, 5, 3, 8, 8), torch.nan, dtype=torch.float64),
        }
        found = r.relevance("all", layers=["0", "3"], out=outs)
        assert found["0"] is outs["0"]
        assert found["input"] is outs["input"]
        assert np.array_equal(outs["0"], expected["0"].numpy())
        assert torch.equal(outs["input"], expected["input"])
        assert torch.equal(found["3"], expected["3"])
        assert torch.equal(found["output"], expected["output"])


def test_out_of_explain():
    out = torch.full((2, 1, 3, 8, 8), torch.nan, dtype=torch.float64)
    assert shared("convnet")(samples("convnet"), 2, out=out) is out
    assert torch.equal(out, shared("convnet")(samples("convnet"), 2))


def read_only(shape):
    array = np.full(shape, 7.0)
    array.flags.writeable = False
    return array


SHAPE = r"out for 'input' must have the shape \(2, 5, 3, 8, 8\), got "
BAD = [
    (lambda: np.full((2, 5, 3, 8, 7), 7.0), ValueError, SHAPE + r"\(2, 5, 3, 8, 7\)"),
    (lambda: torch.full((5, 2, 3, 8, 8), 7.0), ValueError, SHAPE + r"\(5, 2, 3, 8, 8\)"),
    (lambda: torch.full((5, 3, 8, 8), 7.0), ValueError, SHAPE + r"\(5, 3, 8, 8\)"),
    (lambda: read_only((2, 5, 3, 8, 8)), ValueError, "read-only array: open the memmap with mode 'r\\+' or 'w\\+'"),
    (lambda: np.full((2, 5, 3, 8, 8), 7, np.int64), TypeError, "must be of a floating-point dtype, got int64"),
    (lambda: torch.full((2, 5, 3, 8, 8), 7), TypeError, "must be of a floating-point dtype, got torch.int64"),
    (lambda: np.full((2, 5, 3, 8, 8), 7j), TypeError, "must be of a floating-point dtype, got complex128"),
    (lambda: [7.0] * 5, TypeError, "must be a tensor or a NumPy array, got list"),
]  # fmt: skip


@pytest.mark.parametrize(("make_out", "error", "message"), BAD)
def test_bad_out_is_not_written_to(make_out, error, message):
    out = make_out()
    with record() as r:
        with pytest.raises(error, match=message):
            r.relevance("all", out=out)
        assert np.array_equal(np.asarray(out), np.asarray(make_out()))
        assert r.relevance(0).shape == (2, 1, 3, 8, 8), "the record still answers"


def test_one_bad_out_of_several_spoils_none():
    good = torch.full((2, 5, 3, 8, 8), 7.0)
    with record() as r:
        with pytest.raises(ValueError, match=r"out for '0' must have the shape \(2, 5, 8, 8, 8\)"):
            r.relevance("all", layers=["0"], out={"input": good, "0": torch.zeros(1)})
        with pytest.raises(ValueError, match=r"out has entries for \['1'\], the results are 0, output, input"):
            r.relevance("all", layers=["0"], out={"input": good, "1": torch.zeros(1)})
        with pytest.raises(
            ValueError, match="out must be a dict by name when there are several results: 0, output, in"
        ):
            r.relevance("all", layers=["0"], out=good)
    assert bool((good == 7.0).all())


def test_read_only_memmap(tmp_path):
    path = tmp_path / "relevance.dat"
    np.zeros((2, 5, 3, 8, 8)).tofile(path)
    out = np.memmap(path, dtype=np.float64, mode="r", shape=(2, 5, 3, 8, 8))
    with record() as r, pytest.raises(ValueError, match="read-only"):
        r.relevance("all", out=out)
