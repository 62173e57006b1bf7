from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from fastlrp import functional
from fastlrp.backends import dispatch
from fastlrp.backends.extension import extension
from fastlrp.functional.elementwise import elementwise_pooled_coefficients
from fastlrp.reference.redistribution import Affine
from tests.ops.cases import (
    DTYPES,
    assert_close,
    backends,
    bound,
    channels_last,
    mixed,
    reference,
    reversed_memory,
    same,
    with_gaps,
)
from tests.reference import textbook as rules

OP, POOLED = "elementwise_coefficients", "elementwise_pooled_coefficients"
RULES = [
    ("epsilon", 1.0),
    ("zplus", 1.0),
    ("zplus", 2.0),
    ("zplus", -1.5),
    ("gamma", 0.25),
]
SIZES = [(2, 3, 5, 7), (1, 1), (0, 3), (3,), (2, 17), (1, 4, 31, 33), (2, 3, 2, 3, 5)]


def arguments(size, dtype):
    positive, negative = mixed(*size, dtype=dtype).clamp(min=0), mixed(*size, dtype=dtype).clamp(max=0)
    return positive + negative + 0.1 * mixed(*size, dtype=dtype), positive, negative, mixed(*size, dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", backends(OP))
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(("rule", "alpha"), RULES)
def test_equals_reference(rule, alpha, size, backend, dtype):
    z, positive, negative, factor = arguments(size, dtype)
    call = bound(OP, backend, dtype)
    for f in (factor, None):
        for epsilon in (1e-6, 0.1, 0.0):
            expected = reference(OP)(z, positive, negative, f, rule, alpha, epsilon)
            for change in (same, with_gaps, reversed_memory):
                for other in (same, change):
                    rest = [None if t is None else other(t) for t in (positive, negative, f)]
                    assert_close(call(change(z), *rest, rule, alpha, epsilon), expected, epsilon)


@pytest.mark.parametrize("isa", extension().available_isas())
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_instruction_set(isa, dtype):
    compiled = extension()
    before = compiled.isa()
    z, positive, negative, factor = arguments((3, 1009), dtype)
    try:
        compiled.set_isa(isa)
        assert compiled.isa() == isa
        for rule, alpha in RULES:
            for f in (factor, None):
                expected = reference(OP)(z, positive, negative, f, rule, alpha, 1e-6)
                assert_close(bound(OP, "cpu", dtype)(z, positive, negative, f, rule, alpha, 1e-6), expected)
    finally:
        compiled.set_isa(before)


def test_unknown_instruction_set_is_an_error():
    with pytest.raises(ValueError, match=r"isa: expected 'auto' or one that this machine has \('portable'.*got 'mmx'"):
        extension().set_isa("mmx")


@pytest.mark.parametrize("backend", backends(OP))
@pytest.mark.parametrize(("rule", "alpha"), RULES)
def test_a_silent_neuron_is_never_nan(rule, alpha, backend):
    z = torch.tensor([0.0, -0.0, 1e-45, -1e-45, torch.inf, -torch.inf, torch.nan])
    zero = torch.zeros_like(z)
    for epsilon in (0.0, 1e-6):
        for p, n in ((zero, zero), (z.abs(), -z.abs())):
            for made in bound(OP, backend, torch.float32)(z, p, n, zero, rule, alpha, epsilon):
                assert made is None or torch.equal(made, zero)


@pytest.mark.parametrize("backend", ["torch", "cpu", "reference"])
def test_sign_of_zero_is_positive(backend):
    z = torch.tensor([0.0, -0.0])
    u, v = functional.elementwise_coefficients(z, epsilon=0.5, backend=backend)
    assert v is None
    assert u.tolist() == [2.0, 2.0]


def test_result_keeps_the_layout_of_z():
    z, positive, negative, factor = (channels_last(1)(t) for t in arguments((2, 3, 4, 5), torch.float32))
    u, v = bound(OP, "cpu", torch.float32)(z, positive, negative, factor, "gamma", 0.25, 1e-6)
    assert u.stride() == v.stride() == z.stride()


def test_public_function():
    z, positive, negative, factor = arguments((2, 3, 4), torch.float32)
    for backend in ("auto", "reference", "torch", "cpu"):
        for rule, alpha in RULES:
            got = functional.elementwise_coefficients(z, positive, negative, factor, rule, alpha, backend=backend)
            assert_close(got, reference(OP)(z, positive, negative, factor, rule, alpha, 1e-6))


@pytest.mark.parametrize("backend", ["reference", "torch", "cpu"])
@pytest.mark.parametrize("density", [0.1, 0.2])
def test_alpha_beta_of_sparse_inputs_in_float32(density, backend):
    """Two parts keep their digits where most neurons have no negative part and its 1 / st is 1 / epsilon."""
    torch.manual_seed(0)
    weight = torch.randn(8, 4, 3, 3)
    x = torch.rand(2, 4, 12, 12) * (torch.rand(2, 4, 12, 12) < density)
    R = torch.rand(2, 3, 8, 12, 12)

    def apply(x, weight, bias=None):
        return torch.nn.functional.conv2d(x, weight, bias, padding=1)

    def st(z):
        return z + 1e-6 * torch.where(z < 0, -1.0, 1.0)

    def propagate(weight, u, v):
        geometry = ([12, 12], [1, 1], [1, 1], [1, 1])
        return functional.conv_relevance(
            R, weight, u, v, x, None, *geometry, False, [0, 0], 1, False, True, backend=backend
        )

    def coefficients(p, alpha):
        return functional.elementwise_coefficients(p, p, rule="zplus", alpha=alpha, backend=backend)

    def error(got):
        return (got - expected).norm() / expected.norm()

    p, n = apply(x, weight.clamp(min=0)), apply(x, weight.clamp(max=0))
    textbook = Affine(apply, weight.double(), None)
    expected, _ = rules.alpha_beta(textbook, x.double(), R.double(), st, 2.0, 1.0)
    parts = propagate(weight, *coefficients(p, 2.0)) + propagate(-weight, *coefficients(-n, -1.0))
    assert error(parts) <= 1e-5  # the promise of the library; measured 1.2e-7
    # What one call with u = -beta B and v = alpha A + beta B loses: the inputs are as hard as they are meant to be.
    one_call = propagate(weight, -1 / st(n), 2 / st(p) + 1 / st(n))
    assert error(one_call) >= 5e-4  # measured 1.3e-3 for the definition, 9e-3 to 1.6e-2 for the others


Z, X = torch.ones(2, 3), torch.ones(2, 3, 4, 4)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"rule": "z+"}, ValueError, "rule must be one of 'epsilon', 'zplus', 'gamma', got 'z+'"),
        ({"rule": "gamma", "positive": Z}, ValueError, "negative must be given for rule 'gamma', got None"),
        ({"rule": "zplus"}, ValueError, "positive must be given for rule 'zplus', got None"),
        ({"epsilon": -1.0}, ValueError, "epsilon must be a number >= 0, got -1.0"),
        ({"epsilon": float("nan")}, ValueError, "epsilon must be a number >= 0, got nan"),
        ({"factor": Z[:1]}, ValueError, r"factor must have shape that of z = \(2, 3\), got \(1, 3\)"),
        ({"factor": Z.double()}, TypeError, "factor must have dtype torch.float32, got torch.float64"),
        ({"z": Z.long()}, TypeError, "z must have a floating-point dtype, got torch.int64"),
    ],
)
def test_errors(change, error, message):
    with pytest.raises(error, match=message.replace("z+", r"z\+")):
        functional.elementwise_coefficients(**{"z": Z, **change})


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({4: "flat"}, ValueError, "rule must be 'epsilon', 'zplus' or 'gamma', got 'flat'"),
        ({1: None}, ValueError, "rule 'gamma' needs positive, got None"),
        ({2: Z[:1]}, ValueError, r"negative must have shape \[2, 3\], got \[1, 3\]"),
        ({3: Z.double()}, TypeError, "factor must be Float, got Double"),
        ({0: Z.half()}, TypeError, "z must be float32 or float64, got Half"),
        ({0: Z.to("meta")}, RuntimeError, "z must be a dense CPU tensor, got Strided on meta"),
    ],
)
def test_kernel_edge_errors(change, error, message):
    values = [Z, Z, Z, Z, "gamma", 0.25, 1e-6]
    for place, value in change.items():
        values[place] = value
    with pytest.raises(error, match=message):
        bound(OP, "cpu", torch.float32)(*values)


# Spatial sizes, kernel, stride, padding, dilation, ceil_mode.
POOLS = [
    ((6, 4), [2, 2], [2, 2], [0, 0], [1, 1], False),
    ((7, 5), [2, 2], [2, 2], [0, 0], [1, 1], False),
    ((7, 5), [2, 2], [2, 2], [0, 0], [1, 1], True),
    ((7, 9), [3, 3], [2, 2], [1, 1], [1, 1], False),
    ((8, 7), [3, 3], [1, 1], [1, 1], [1, 1], True),
    ((9, 11), [3, 2], [2, 3], [1, 1], [2, 4], False),
    ((5, 5), [2, 2], [3, 3], [0, 0], [1, 1], True),
    ((13, 11), [2, 3], [5, 4], [1, 0], [1, 1], True),
    ((1, 1), [1, 1], [1, 1], [0, 0], [1, 1], False),
    ((1, 3), [2, 2], [1, 1], [1, 1], [2, 1], False),  # a window between the only entries
    ((13,), [3], [2], [0], [1], False),
    ((5, 4, 6), [2, 2, 2], [2, 2, 2], [0, 0, 0], [1, 1, 1], False),
    ((5, 3, 7), [2, 3, 1], [1, 2, 3], [1, 1, 0], [1, 1, 1], True),
]


def pooled_arguments(channels, pool, dtype, batch=2):
    z, positive, negative, _ = arguments((batch, channels, *pool[0]), dtype)
    return z, positive, negative, pool[1:]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", ["torch", "cpu"])
@pytest.mark.parametrize("pool", POOLS, ids=str)
@pytest.mark.parametrize(("rule", "alpha"), RULES)
def test_pooled_equals_reference(rule, alpha, pool, backend, dtype):
    # "cpu" has no kernel of its own and takes another backend's.
    call = dispatch.select(POOLED, backend, torch.device("cpu"), dtype).call
    for batch, channels in ((2, 3), (0, 2), (1, 16)):
        z, positive, negative, geometry = pooled_arguments(channels, pool, dtype, batch)
        for epsilon in (1e-6, 0.0):
            expected = reference(POOLED)(z, positive, negative, rule, alpha, epsilon, *geometry)
            for change in (same, with_gaps, channels_last(1)):
                pooled, index, *made = call(change(z), change(positive), negative, rule, alpha, epsilon, *geometry)
                assert torch.equal(pooled, expected[0])
                assert torch.equal(index, expected[1])
                assert_close(tuple(made), expected[2:], epsilon)


def test_pooled_is_the_three_steps():
    for pool in POOLS:
        z, positive, negative, (kernel, stride, padding, dilation, ceil_mode) = pooled_arguments(3, pool, torch.float64)
        a = z.relu()
        expected = functional.elementwise_coefficients(z, positive, negative, a, "gamma", 0.25, backend="torch")
        max_pool = {3: F.max_pool1d, 4: F.max_pool2d, 5: F.max_pool3d}[z.dim()]
        pooled, index, *made = elementwise_pooled_coefficients(
            z, positive, negative, "gamma", 0.25, 1e-6, kernel, stride, padding, dilation, ceil_mode
        )
        y, winners = max_pool(a, kernel, stride, padding, dilation, ceil_mode, True)
        assert torch.equal(pooled, y)
        assert torch.equal(index, winners)
        assert_close(tuple(made), expected)


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_pooled_winners_of_ties_and_nan(backend):
    nan = torch.nan
    z = torch.tensor([[-1.0, 0.0, 3.0, 3.0], [-2.0, -0.5, 1.0, 3.0], [nan, 1.0, nan, 2.0], [2.0, nan, 9.0, nan]])
    pooled, index, _, v = elementwise_pooled_coefficients(
        z[None, None], z[None, None], rule="zplus", epsilon=0.0, backend=backend
    )
    assert v is not None
    assert index.tolist() == [[[[0, 2], [13, 15]]]]
    assert pooled[0, 0, 0].tolist() == [0, 3]
    assert pooled[0, 0, 1].isnan().all()
    assert v[0, 0, 0].tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"rule": "z+"}, ValueError, "rule must be one of 'epsilon', 'zplus', 'gamma', got 'z+'"),
        ({"rule": "zplus"}, ValueError, "positive must be given for rule 'zplus', got None"),
        ({"epsilon": -1.0}, ValueError, "epsilon must be a number >= 0, got -1.0"),
        ({"z": Z}, ValueError, r"z must have shape \(B, C, \*S\) with one to three spatial sizes S, got \(2, 3\)"),
        ({"z": X.long()}, TypeError, "z must have a floating-point dtype, got torch.int64"),
        ({"negative": X[:1]}, ValueError, r"negative must have shape that of z = \(2, 3, 4, 4\), got \(1, 3, 4, 4\)"),
        ({"kernel_size": [2]}, ValueError, r"kernel_size must have 2 entries, each at least 1, got \[2\]"),
        ({"stride": 0}, ValueError, "stride must have 2 entries, each at least 1, got 0"),
        ({"dilation": "2"}, TypeError, "dilation must be an integer or a list of 2, got '2'"),
        ({"padding": 2}, ValueError, r"padding must be at most half of kernel_size, \[2, 2\], got \[2, 2\]"),
        (
            {"kernel_size": [2, 5]},
            ValueError,
            r"that hold a window, which spans \[2, 5\] with padding=\[0, 0\], got \[4",
        ),
    ],
)
def test_pooled_errors(change, error, message):
    with pytest.raises(error, match=f"{POOLED}: .*{message.replace('z+', r'z[+]')}"):
        elementwise_pooled_coefficients(**{"z": X, **change})
