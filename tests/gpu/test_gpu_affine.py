"""Linear layers and convolutions: hostile shapes, every dtype, TF32."""

from __future__ import annotations

import pytest
import torch

from tests.gpu.cases import BACKENDS, PRODUCTS, check, some, terms_and_signs
from tests.ops.cases import mixed
from tests.ops.test_ops_conv import GEOMETRIES, Geometry
from tests.ops.test_ops_linear import SHAPES

pytestmark = pytest.mark.gpu

FLOAT = torch.float32
# Tiles and one less or more, a reduction that is no multiple of 16, rows that are no multiple of 8.
MORE_SHAPES = [(1, 64, (), 128, 64), (1, 65, (), 127, 129), (2, 33, (), 17, 200), (1, 128, (), 1000, 96)]
MORE_GEOMETRIES = [
    Geometry("tiles", (16, 16), (3, 3), padding=(1, 1), channels=(64, 64), batch=(1, 4)),
    Geometry("tiles and one", (17, 15), (3, 3), padding=(1, 1), channels=(65, 33), batch=(1, 5)),
    Geometry("three channels in", (20, 20), (7, 7), (2, 2), (3, 3), channels=(3, 64), batch=(1, 5)),
    Geometry("1x1 wide", (7, 7), (1, 1), channels=(128, 96), batch=(2, 17)),
    Geometry("1x1 strided, wide", (14, 14), (1, 1), (2, 2), channels=(64, 128), batch=(1, 9)),
    Geometry("depthwise, wide", (14, 14), (3, 3), (2, 2), (1, 1), groups=48, channels=(48, 48), batch=(2, 5)),
    Geometry("groups, wide", (8, 8), (3, 3), padding=(1, 1), groups=4, channels=(64, 64), batch=(1, 6)),
    Geometry("many targets", (4, 4), (3, 3), padding=(1, 1), channels=(16, 16), batch=(1, 130)),
]


def coefficients(has, size):
    return [mixed(*size, dtype=FLOAT) if there else None for there in has]


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("number", "shape"), list(enumerate([*SHAPES, *MORE_SHAPES])), ids=str)
def test_linear(number, shape, backend, name):
    B, K, L, O, I = shape
    weight, x = mixed(O, I, dtype=FLOAT), mixed(B, *L, I, dtype=FLOAT)
    for i, (has, sign) in enumerate(some(terms_and_signs(), number)):
        prepared = weight.clamp(min=0) if i else None
        arguments = (mixed(B, K, *L, O, dtype=FLOAT), weight, *coefficients(has, (B, *L, O)), x, prepared, *sign)
        check("linear_relevance", backend, name, arguments, layouts=3 if i == 0 else 1, channel_axis=0)


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [s for s in SHAPES if not s[2]], ids=str)
def test_one_hot(shape, backend, name):
    B, K, _, O, I = shape
    weight, x = mixed(O, I, dtype=FLOAT), mixed(B, I, dtype=FLOAT)
    index = torch.randint(O, (B, K))
    for has, sign in terms_and_signs():
        arguments = (mixed(B, K, dtype=FLOAT), index, weight, *coefficients(has, (B, O)), x, *sign)
        check("linear_one_hot_relevance", backend, name, arguments)


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("number", "g"), list(enumerate([*GEOMETRIES, *MORE_GEOMETRIES])), ids=str)
def test_conv(number, g, backend, name):
    (B, K), (Ci, Co), out = g.batch, g.channels, g.output_size()
    stride, padding, dilation, output_padding = g.lists()
    rest = (list(g.S), stride, padding, dilation, g.transposed, output_padding, g.groups)
    weight, x = g.weight(FLOAT), mixed(B, Ci, *g.S, dtype=FLOAT)
    for i, (has, sign) in enumerate(some(terms_and_signs(), number)):
        prepared = weight.clamp(min=0) if i else None
        relevance = mixed(B, K, Co, *out, dtype=FLOAT)
        arguments = (relevance, weight, *coefficients(has, (B, Co, *out)), x, prepared, *rest, *sign)
        check("conv_relevance", backend, name, arguments, layouts=3 if i == 0 else 1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_blocks_of_targets_are_the_same_targets(backend):
    """What one target gets depends on no other."""
    g = MORE_GEOMETRIES[0]
    from tests.gpu.cases import DEVICE, bound, relative

    stride, padding, dilation, output_padding = g.lists()
    rest = (list(g.S), stride, padding, dilation, False, output_padding, 1, False, False)
    relevance, weight, u = torch.randn(1, 19, 64, 16, 16), g.weight(FLOAT), torch.randn(1, 64, 16, 16)
    relevance, weight, u = (t.to(DEVICE) for t in (relevance, weight, u))
    call = bound("conv_relevance", backend, FLOAT)
    whole = call(relevance, weight, u, None, None, None, *rest)
    for first, count in ((0, 1), (3, 7), (18, 1)):
        part = call(relevance[:, first : first + count], weight, u, None, None, None, *rest)
        assert relative(whole[:, first : first + count], part.double().cpu()) <= 1e-6
