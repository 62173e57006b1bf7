from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from fastlrp import functional
from fastlrp.aten import norm as aten
from tests.ops.cases import (
    DTYPES,
    TOLERANCE,
    assert_close,
    backends,
    bound,
    reference,
    reversed_memory,
    same,
    with_gaps,
)

OP = "norm_relevance"
SHAPES = [  # B, K, L, N
    (2, 3, (5,), 7),
    (1, 1, (), 1),
    (0, 3, (4,), 5),
    (2, 0, (4,), 5),
    (3, 2, (4, 3), 33),
    (1, 2, (2,), 768),
]


def gains(B, L, N, dtype):
    yield None
    yield from (torch.randn(size, dtype=dtype) for size in ((N,), (B, *L, N), (1,) * (len(L) + 1) + (N,)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", backends(OP))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_reference(shape, backend, dtype):
    B, K, L, N = shape
    inverse = torch.rand(B, *L, 1, dtype=dtype) + 0.5
    for gain in gains(B, L, N, dtype):
        for centre in (False, True):
            r = torch.randn(B, K, *L, N, dtype=dtype)
            expected = reference(OP)(r, gain, inverse, centre)
            for change in (same, with_gaps, reversed_memory):
                got = bound(OP, backend, dtype)(
                    change(r), None if gain is None else change(gain), change(inverse), centre
                )
                if N > 1 or not centre:
                    assert_close(got, expected)
                else:
                    assert got.abs().max() <= TOLERANCE[dtype]  # A single number less its mean.


def test_fractions():
    """g (1, 2, 6) times the gain (2, 1, 1) over sigma 2 is (1, 1, 3), whose mean is 5/3."""
    g, gain, inverse = torch.tensor([[[1.0, 2, 6]]]), torch.tensor([2.0, 1, 1]), torch.tensor([[0.5]])
    assert reference(OP)(g, gain, inverse, False).flatten().tolist() == [1, 1, 3]
    assert reference(OP)(g.double(), gain.double(), inverse.double(), True).flatten().tolist() == pytest.approx(
        [-2 / 3, -2 / 3, 4 / 3]
    )
    assert reference(OP)(g, None, inverse, False).flatten().tolist() == [0.5, 1, 3]


@pytest.mark.parametrize("kind", ["layer", "rms", "group"])
def test_equals_autograd_at_a_fixed_sigma(kind):
    x, c = torch.randn(2, 6, 8).double().requires_grad_(), torch.randn(2, 3, 6, 8).double()
    weight, bias = torch.randn(8).double(), torch.randn(8).double()
    if kind == "group":  # Two groups of three channels with eight positions each; a weight for each channel.
        weight, bias = torch.randn(6).double(), torch.randn(6).double()
        grouped = x.reshape(2, 2, 24)
        gain = weight.repeat_interleave(8).view(2, 24)
        y, register = F.group_norm(x, 2, weight, bias), c.reshape(2, 3, 2, 24)
    else:
        grouped, gain, register = x, weight, c
        y = F.layer_norm(x, (8,), weight, bias) if kind == "layer" else F.rms_norm(x, (8,), weight, eps=1e-5)
    centre = kind != "rms"
    mean = grouped.mean(-1, keepdim=True) if centre else 0
    sigma = ((grouped - mean).pow(2).mean(-1, keepdim=True) + 1e-5).sqrt().detach()
    held = ((grouped - mean) / sigma * gain).reshape(x.shape)
    shift = 0 if kind == "rms" else bias.unsqueeze(1) if kind == "group" else bias
    torch.testing.assert_close(held + shift, y)
    for backend in ("reference", *backends(OP)):
        found = bound(OP, backend, torch.float64)(register, gain, 1 / sigma, centre).reshape(c.shape)
        for target in range(3):
            (right,) = torch.autograd.grad((held * c[:, target]).sum(), x, retain_graph=True)
            torch.testing.assert_close(found[:, target], right, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    """As exact as the dtype of the result: at most half of its unit."""
    r, gain, inverse = torch.randn(2, 3, 5, 768).to(dtype), torch.randn(768).to(dtype), torch.rand(2, 5, 1) + 0.5
    for sigma in (inverse, inverse.to(dtype)):
        found = functional.norm_relevance(r, gain, sigma, True)
        expected = reference(OP)(r.double(), gain, sigma, True)
        assert found.dtype == dtype
        assert (found.double() - expected).norm() <= 0.5 * torch.finfo(dtype).eps * expected.norm()


def test_differentiable():
    r, gain, inverse = (torch.randn(s).double().requires_grad_() for s in ((2, 3, 4, 5), (5,), (2, 4, 1)))
    assert torch.autograd.gradcheck(lambda *t: aten.norm_relevance(*t, True), (r, gain, inverse))


def test_public_function():
    r, gain, inverse = torch.randn(2, 3, 5, 7), torch.randn(7), torch.rand(2, 5, 1)
    for backend in ("auto", "reference", "torch", "cpu"):
        result = functional.norm_relevance(r, gain, inverse, True, backend=backend)
        assert_close(result, reference(OP)(r, gain, inverse, True))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"relevance": torch.zeros(2, 7)},
            ValueError,
            r"relevance must have shape \(B, K, \*L, N\), got \(2, 7\); the",
        ),
        ({"relevance": torch.zeros(2, 3, 5, 7).int()}, TypeError, "relevance must have a floating-point dtype"),
        (
            {"gain": torch.zeros(5)},
            ValueError,
            r"gain must broadcast to \(B, \*L, N\) = \(2, 5, 7\), got \(5,\); the w",
        ),
        ({"gain": torch.zeros(7).double()}, TypeError, "gain must have dtype torch.float32, got torch.float64"),
        ({"gain": 1.0}, TypeError, "gain must be a tensor, got float"),
        (
            {"inverse_sigma": torch.zeros(2, 5)},
            ValueError,
            r"inverse_sigma must have shape \(B, \*L, 1\) = \(2, 5, 1\)",
        ),
        ({"inverse_sigma": torch.zeros(2, 5, 1).double()}, TypeError, "inverse_sigma must have dtype torch.float32"),
        ({"inverse_sigma": torch.zeros(2, 5, 1, device="meta")}, ValueError, "inverse_sigma must be on cpu, got meta"),
    ],
)
def test_errors(change, error, message):
    good = {"relevance": torch.zeros(2, 3, 5, 7), "gain": torch.zeros(7), "inverse_sigma": torch.zeros(2, 5, 1)}
    with pytest.raises(error, match=message):
        functional.norm_relevance(**{**good, **change}, centre=True)
