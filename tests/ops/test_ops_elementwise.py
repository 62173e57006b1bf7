from __future__ import annotations

import pytest
import torch

from fastlrp import dispatch, functional
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

OP = "elementwise_coefficients"
RULES = [
    ("epsilon", 0.0, 0.0),
    ("zplus", 0.0, 0.0),
    ("alpha_beta", 2.0, 1.0),
    ("alpha_beta", 1.0, 0.0),
    ("gamma", 0.25, 0.0),
]
SIZES = [(2, 3, 5, 7), (1, 1), (0, 3), (3,), (2, 17), (1, 4, 31, 33), (2, 3, 2, 3, 5)]


def arguments(size, dtype):
    positive, negative = mixed(*size, dtype=dtype).clamp(min=0), mixed(*size, dtype=dtype).clamp(max=0)
    return positive + negative + 0.1 * mixed(*size, dtype=dtype), positive, negative, mixed(*size, dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", backends(OP))
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(("rule", "alpha", "beta"), RULES)
def test_equals_reference(rule, alpha, beta, size, backend, dtype):
    z, positive, negative, factor = arguments(size, dtype)
    call = bound(OP, backend, dtype)
    for f in (factor, None):
        for epsilon in (1e-6, 0.1, 0.0):
            expected = reference(OP)(z, positive, negative, f, rule, alpha, beta, epsilon)
            for change in (same, with_gaps, reversed_memory):
                for other in (same, change):
                    rest = [None if t is None else other(t) for t in (positive, negative, f)]
                    assert_close(call(change(z), *rest, rule, alpha, beta, epsilon), expected, epsilon)


@pytest.mark.parametrize("isa", dispatch.extension().available_isas())
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_instruction_set(isa, dtype):
    extension = dispatch.extension()
    before = extension.isa()
    z, positive, negative, factor = arguments((3, 1009), dtype)
    try:
        extension.set_isa(isa)
        assert extension.isa() == isa
        for rule, alpha, beta in RULES:
            for f in (factor, None):
                expected = reference(OP)(z, positive, negative, f, rule, alpha, beta, 1e-6)
                assert_close(bound(OP, "cpu", dtype)(z, positive, negative, f, rule, alpha, beta, 1e-6), expected)
    finally:
        extension.set_isa(before)


def test_unknown_instruction_set_is_an_error():
    with pytest.raises(ValueError, match=r"isa: expected 'auto' or one that this machine has \('portable'.*got 'mmx'"):
        dispatch.extension().set_isa("mmx")


@pytest.mark.parametrize("backend", backends(OP))
@pytest.mark.parametrize(("rule", "alpha", "beta"), RULES)
def test_a_silent_neuron_is_never_nan(rule, alpha, beta, backend):
    z = torch.tensor([0.0, -0.0, 1e-45, -1e-45, torch.inf, -torch.inf, torch.nan])
    zero = torch.zeros_like(z)
    for epsilon in (0.0, 1e-6):
        for p, n in ((zero, zero), (z.abs(), -z.abs())):
            for made in bound(OP, backend, torch.float32)(z, p, n, zero, rule, alpha, beta, epsilon):
                assert made is None or torch.equal(made, zero)


@pytest.mark.parametrize("backend", ["torch", "cpu", "reference"])
def test_sign_of_zero_is_positive(backend):
    z = torch.tensor([0.0, -0.0])
    u, v = functional.elementwise_coefficients(z, epsilon=0.5, backend=backend)
    assert v is None
    assert u.tolist() == [2.0, 2.0]


def test_result_keeps_the_layout_of_z():
    z, positive, negative, factor = (channels_last(1)(t) for t in arguments((2, 3, 4, 5), torch.float32))
    u, v = bound(OP, "cpu", torch.float32)(z, positive, negative, factor, "gamma", 0.25, 0.0, 1e-6)
    assert u.stride() == v.stride() == z.stride()


def test_public_function():
    z, positive, negative, factor = arguments((2, 3, 4), torch.float32)
    for backend in ("auto", "reference", "torch", "cpu"):
        for rule, alpha, beta in RULES:
            got = functional.elementwise_coefficients(z, positive, negative, factor, rule, alpha, beta, backend=backend)
            assert_close(got, reference(OP)(z, positive, negative, factor, rule, alpha, beta, 1e-6))


Z = torch.ones(2, 3)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"rule": "z+"}, ValueError, "rule must be one of 'epsilon', 'zplus', 'alpha_beta', 'gamma', got 'z+'"),
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
        ({4: "flat"}, ValueError, "rule must be 'epsilon', 'zplus', 'alpha_beta' or 'gamma', got 'flat'"),
        ({1: None}, ValueError, "rule 'gamma' needs positive, got None"),
        ({2: Z[:1]}, ValueError, r"negative must have shape \[2, 3\], got \[1, 3\]"),
        ({3: Z.double()}, TypeError, "factor must be Float, got Double"),
        ({0: Z.half()}, TypeError, "z must be float32 or float64, got Half"),
        ({0: Z.to("meta")}, RuntimeError, "z must be a dense CPU tensor, got Strided on meta"),
    ],
)
def test_kernel_edge_errors(change, error, message):
    values = [Z, Z, Z, Z, "gamma", 0.25, 0.0, 1e-6]
    for place, value in change.items():
        values[place] = value
    with pytest.raises(error, match=message):
        bound(OP, "cpu", torch.float32)(*values)
