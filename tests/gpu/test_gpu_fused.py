"""Convolutions that read the pooled relevance, and the rules at the input."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from tests.gpu.cases import BACKENDS, PRODUCTS, check, some, terms_and_signs
from tests.ops.cases import mixed
from tests.ops.test_ops_conv import GEOMETRIES, Geometry

pytestmark = pytest.mark.gpu

FLOAT = torch.float32
FLAT = [g for g in GEOMETRIES if not g.transposed]
SQUARE = [g for g in FLAT if len(g.S) == 2 and min(g.output_size()) >= 2 and g.batch[0]]
WINDOWS = [((2, 2), (2, 2), (0, 0), (1, 1)), ((3, 3), (2, 2), (1, 1), (1, 1)), ((2, 2), (1, 1), (0, 0), (1, 1))]
INPUTS = [
    Geometry("image", (20, 20), (3, 3), padding=(1, 1), channels=(3, 64), batch=(1, 9)),
    Geometry("stem", (23, 21), (7, 7), (2, 2), (3, 3), channels=(3, 64), batch=(2, 5)),
    Geometry("grey", (28, 28), (5, 5), padding=(2, 2), channels=(1, 6), batch=(1, 10)),
    Geometry("patches", (16, 16), (4, 4), (4, 4), channels=(3, 96), batch=(1, 5)),
]


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("number", "g"), list(enumerate(SQUARE)), ids=str)
def test_unpooled(number, g, backend, name):
    for window in some(WINDOWS, number, 1):
        unpooled(number, g, window, backend, name)


def unpooled(number, g, window, backend, name):
    (B, K), (Ci, Co), out = g.batch, g.channels, g.output_size()
    stride, padding, dilation, _ = g.lists()
    kernel, step, border, spread = window
    # Ties and dead maps, as after a ReLU.
    above = mixed(B, Co, *out, dtype=FLOAT).clamp(min=0)
    _, index = F.max_pool2d(above, kernel, step, border, spread, return_indices=True)
    weight, x = g.weight(FLOAT), mixed(B, Ci, *g.S, dtype=FLOAT)
    relevance = mixed(B, K, Co, *index.shape[2:], dtype=FLOAT)
    rest = (list(out), *map(list, window), list(g.S), stride, padding, dilation, g.groups)
    for i, (has, sign) in enumerate(some(terms_and_signs(), number)):
        coefficients = [mixed(B, Co, *out, dtype=FLOAT) if there else None for there in has]
        prepared = weight.clamp(min=0) if i else None
        arguments = (relevance, index, weight, *coefficients, x, prepared, *rest, *sign)
        check("conv_unpooled_relevance", backend, name, arguments, layouts=2)


def terms(rule, g):
    """Weights, coefficients and multipliers, as the rules at the input have them."""
    (B, _), (Ci, Co), out = g.batch, g.channels, g.output_size()
    weight, x = g.weight(FLOAT), mixed(B, Ci, *g.S, dtype=FLOAT)
    u, v = mixed(B, Co, *out, dtype=FLOAT), mixed(B, Co, *out, dtype=FLOAT)
    positive, negative = weight.clamp(min=0), weight.clamp(max=0)
    return {
        "zbox": ([positive, negative], [u, u], [x + 3, x - 3]),
        "wsquare": ([weight.square()], [u], [None]),
        "epsilon": ([weight], [u], [x]),
        "zplus": ([positive, negative], [v, v], [x.clamp(min=0), x.clamp(max=0)]),
        "three": ([weight, positive, negative], [u, v, v], [x, None, x.clamp(max=0)]),
    }[rule]


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("number", "g"), list(enumerate([*INPUTS, *FLAT])), ids=str)
def test_input(number, g, backend, name):
    (B, K), (_, Co), out = g.batch, g.channels, g.output_size()
    stride, padding, dilation, _ = g.lists()
    rest = (list(g.S), stride, padding, dilation, g.groups)
    relevance = mixed(B, K, Co, *out, dtype=FLOAT)
    for rule in some(("zbox", "wsquare", "epsilon", "zplus", "three"), number):
        for reduce in (False, True):
            check("input_relevance", backend, name, (relevance, *terms(rule, g), *rest, reduce), layouts=2)


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("g", [g for g in (*INPUTS, *FLAT) if g.groups == 1], ids=str)
def test_flat(g, backend, name):
    (B, K), (Ci, Co), out = g.batch, g.channels, g.output_size()
    stride, padding, dilation, _ = g.lists()
    relevance, u = mixed(B, K, Co, *out, dtype=FLOAT), mixed(B, Co, *out, dtype=FLOAT)
    for reduce in (False, True):
        arguments = (relevance, u, Ci, list(g.kernel), list(g.S), stride, padding, dilation, reduce)
        check("input_flat_relevance", backend, name, arguments, layouts=2)
