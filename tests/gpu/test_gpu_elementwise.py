"""Coefficients, alone and with the max-pool behind them."""

from __future__ import annotations

import pytest
import torch

from tests.gpu.cases import BACKENDS, DEVICE, NAMES, bound, check
from tests.ops.cases import mixed
from tests.ops.pools import POOLS, Pool
from tests.ops.test_ops_elementwise import RULES, SIZES, arguments

pytestmark = pytest.mark.gpu

FLOAT = torch.float32
OP, POOLED = "elementwise_coefficients", "elementwise_pooled_coefficients"
MORE_SIZES = [(1, 64, 57, 57), (70001,), (2, 5, 9, 1031)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [*SIZES, *MORE_SIZES], ids=str)
@pytest.mark.parametrize(("rule", "alpha"), RULES)
def test_coefficients(rule, alpha, size, backend, name):
    z, positive, negative, factor = arguments(size, FLOAT)
    # In 16 bits 1 / 1e-6 is more than float16 has; what is lost there is not the kernel's.
    epsilons = (1e-6, 0.1, 0.0) if name in ("float32", "float64") else (0.1,)
    for f in (factor, None):
        for epsilon in epsilons:
            check(OP, backend, name, (z, positive, negative, f, rule, alpha, epsilon), layouts=2)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("rule", "alpha"), RULES)
def test_a_silent_neuron_is_never_nan(rule, alpha, backend):
    z = torch.tensor([0.0, -0.0, 1e-45, -1e-45, torch.inf, -torch.inf, torch.nan], device=DEVICE)
    zero = torch.zeros_like(z)
    for epsilon in (0.0, 1e-6):
        for made in bound(OP, backend, FLOAT)(z, z.abs(), -z.abs(), zero, rule, alpha, epsilon):
            assert made is None or torch.equal(made, zero)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("p", [p for p in POOLS if p.K and p.B], ids=str)
def test_with_the_pool(p: Pool, backend, name):
    z = mixed(p.B, p.C, *p.S, dtype=FLOAT)
    signs = z.clamp(min=0) + mixed(*z.shape, dtype=FLOAT).abs(), z.clamp(max=0) - mixed(*z.shape, dtype=FLOAT).abs()
    rule, alpha = RULES[sum(p.S) % len(RULES)]
    epsilon = 1e-6 if name in ("float32", "float64") else 0.1
    check(POOLED, backend, name, (z, *signs, rule, alpha, epsilon, *p.lists(), p.ceil_mode), layouts=2)
