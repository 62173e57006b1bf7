"""Triton's convolutions, interpreted, against the definition."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch
from torch.nn import functional as F

from fastlrp.aten.conv import conv_relevance as aten_relevance
from fastlrp.kernels import conv
from fastlrp.kernels.configs import Config
from fastlrp.reference.conv import conv_relevance as definition
from fastlrp.reference.conv import conv_unpooled_relevance as unpooled_definition
from tests.ops.cases import (
    assert_close,
    channels_last,
    few_layouts,
    layouts,
    mixed,
    reversed_memory,
    signs,
    terms,
    with_gaps,
)
from tests.ops.test_ops_conv import GEOMETRIES, Geometry

LARGE = Config(128, 16, 16)  # the interpreter's time goes by programs, not by elements
SMALL = Config(16, 16, 16)
LIBRARY = Config(16, 16, 16, route="library")
# How much larger than that of PyTorch's own operations the error may be; worst measured: 1.0 and 2.1 times. The
# interpreter cuts bfloat16 off where a GPU rounds, which doubles the error: 2 times cannot be shown for it here.
TIMES = {torch.float16: 2, torch.bfloat16: 3}

# What takes the definition's small cases through many programs here is tested by the sizes of tiles below.
CASES = [g for g in GEOMETRIES if g.name != "wide enough for channels last"] + [
    Geometry("dilation shares a factor with the stride", (11,), (3,), stride=(4,), dilation=(2,), padding=(2,)),
    Geometry("stride beyond the kernel", (9,), (2,), stride=(5,)),
    Geometry("groups side by side", (3, 2), (1, 2), groups=4, channels=(8, 12)),
    Geometry("groups by themselves", (3,), (2,), groups=2, channels=(18, 6)),
    Geometry("groups that cannot all stand side by side", (3,), (2,), groups=6, channels=(30, 24)),
    Geometry("transposed depthwise", (4,), (3,), (2,), transposed=True, groups=5, channels=(5, 10)),
    Geometry("transposed groups side by side", (4,), (3,), (2,), transposed=True, groups=2, channels=(6, 4)),
    Geometry("enough targets to share coefficients", (5,), (3,), padding=(1,), batch=(2, 8)),
]


# In a full run only where tiles are concerned: others go the same ways through the kernels in fewer programs.
SLOW = ("strided with remainder", "padding beyond the kernel, strided", "stride beyond the kernel", "1x1 strided")


@pytest.fixture
def configured(monkeypatch):
    """Makes every launch take one configuration."""

    def configure(config: Config) -> None:
        monkeypatch.setattr(conv, "configuration", lambda *_: config)

    return configure


def tensors(g: Geometry, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Relevance, weight, u, v and input."""
    (B, K), (Ci, Co), out = g.batch, g.channels, g.output_size()
    *_, (u, v) = terms((B, Co, *out), dtype)
    return mixed(B, K, Co, *out, dtype=dtype), g.weight(dtype), u, v, mixed(B, Ci, *g.S, dtype=dtype)


def geometry(g: Geometry) -> tuple[object, ...]:
    stride, padding, dilation, output_padding = g.lists()
    return list(g.S), stride, padding, dilation, g.transposed, output_padding, g.groups


@pytest.mark.parametrize(
    ("g", "config"),
    [
        *((g, LIBRARY) for g in CASES),
        *(pytest.param(g, LARGE, marks=pytest.mark.full) if g.name in SLOW else (g, LARGE) for g in CASES),
    ],
    ids=str,
)
def test_equals_definition(g, config, configured):
    """In turn with both parts of the weights in one sum, and apart by the sign of the input."""
    configured(config)
    signed = config is LIBRARY or CASES.index(g) % 2 == 0
    g = replace(g, batch=(2, 2)) if g.batch == (2, 3) else g
    arguments = (*tensors(g, torch.float32), None, *geometry(g), signed, True)
    assert_close(conv.conv_relevance(*arguments), definition(*arguments))


@pytest.mark.parametrize(
    ("config", "K", "groups"),
    [
        (LARGE, 3, 1),
        pytest.param(LARGE, 3, 2, marks=pytest.mark.full),
        (LARGE, 3, 4),
        (SMALL, 16, 1),
        (LIBRARY, 3, 1),
        (LIBRARY, 3, 2),
    ],
    ids=str,
)
def test_terms(config, K, groups, configured):
    """With 16 targets a tile of 16 has one position, where the sign of the input chooses before the product."""
    configured(config)
    g = Geometry("", (2,), (2,), groups=groups, channels=(4, 8), batch=(1, K))
    r, weight, _, _, x = tensors(g, torch.float32)
    cases = list(product(terms((1, 8, 1), torch.float32), signs()))
    # With groups and with many targets another part of them each.
    for (u, v), (signed, multiply) in cases if (K, groups) == (3, 1) else cases[groups // 2 :: 3] + cases[-1:]:
        needed = x if multiply or (signed and v is not None) else None
        both = v is not None and (K, groups) == (3, 1) and signed == (u is None)
        for positive in (None, weight.clamp(min=0)) if both else (None,):
            arguments = (r, weight, u, v, needed, positive, *geometry(g), signed, multiply)
            context = (u is None, v is None, signed, multiply, positive is None)
            assert_close(conv.conv_relevance(*arguments), definition(*arguments), context)


@pytest.mark.parametrize(
    ("channels", "S", "batch"),
    [
        pytest.param((15, 17), 7, (1, 8), marks=pytest.mark.full),
        ((17, 33), 4, (3, 1)),
        ((33, 16), 19, (1, 1)),
        pytest.param((16, 15), 2, (2, 9), marks=pytest.mark.full),
        ((1, 1), 17, (2, 1)),
    ],
)
def test_tiles_of_sixteen(channels, S, batch, configured):
    """Sizes around the tile's in channels of both sides and in rows, several tiles in each direction."""
    configured(SMALL)
    g = Geometry("", (S,), (2,), channels=channels, batch=batch)
    r, weight, u, v, x = tensors(g, torch.float32)
    for arguments in ((r, weight, u, None, x), (r, weight, u, v, x)):
        signed = arguments[3] is not None
        rest = (None, *geometry(g), signed, True)
        assert_close(conv.conv_relevance(*arguments, *rest), definition(*arguments, *rest))


def test_tiles_of_depthwise(configured):
    configured(SMALL)
    g = Geometry("", (5, 2), (2, 1), groups=17, channels=(17, 34), batch=(2, 2))
    r, weight, u, v, x = tensors(g, torch.float32)
    arguments = (r, weight, u, v, x, None, *geometry(g), True, True)
    assert_close(conv.conv_relevance(*arguments), definition(*arguments))


@pytest.mark.parametrize(
    ("groups", "config"),
    [(1, LARGE), pytest.param(4, LARGE, marks=pytest.mark.full), (1, LIBRARY), (4, LIBRARY)],
    ids=str,
)
def test_any_memory(groups, config, configured):
    configured(config)
    g = Geometry("", (3, 2), (2, 1), channels=(4, 8), groups=groups)
    arguments = (*tensors(g, torch.float32), None)
    expected = definition(*arguments, *geometry(g), True, True)
    for changed in layouts(arguments) if groups == 1 else few_layouts(arguments):
        result = conv.conv_relevance(*changed, *geometry(g), True, True)
        assert_close(result, expected)
        if config is LARGE:
            assert result.stride(2) == 1


@pytest.mark.parametrize("transposed", [False, True])
def test_weights_in_any_order(transposed, configured):
    configured(LARGE)
    g = Geometry("", (3,), (2,), channels=(5, 6), transposed=transposed)
    r, weight, u, v, _ = tensors(g, torch.float32)
    rest = (*geometry(g), False, False)
    expected = definition(r, weight, u, v, None, None, *rest)
    only_v = definition(r, weight, None, v, None, None, *rest)
    orders = (lambda t: t, channels_last(0), channels_last(1), reversed_memory, with_gaps)
    mixed_orders = [(orders[0], orders[1]), (orders[1], orders[2])]
    for change, other in [*((f, f) for f in orders), *([] if transposed else mixed_orders)]:
        positive = other(weight.clamp(min=0))
        assert_close(conv.conv_relevance(r, change(weight), u, v, None, positive, *rest), expected)
        if change is not other or (change is orders[1] and transposed):
            assert_close(conv.conv_relevance(r, change(weight), None, v, None, positive, *rest), only_v)


def test_relevance_that_all_targets_share(configured):
    configured(SMALL)
    g = Geometry("", (3,), (1,), batch=(2, 1))
    r, weight, u, _, _ = tensors(g, torch.float32)
    shared = r.expand(2, 4, *r.shape[2:])
    expected = definition(shared, weight, u, None, None, None, *geometry(g), False, False)
    assert_close(conv.conv_relevance(shared, weight, u, None, None, None, *geometry(g), False, False), expected)


@pytest.mark.parametrize("config", [LARGE, LIBRARY], ids=str)
def test_nothing_to_sum_is_zero(config, configured):
    configured(config)
    r, weight, u = torch.ones(2, 3, 0, 4), torch.ones(0, 5, 1), torch.ones(2, 0, 4)
    result = conv.conv_relevance(r, weight, u, None, None, None, [4], [1], [0], [1], False, [0], 1, False, False)
    assert result.shape == (2, 3, 5, 4)
    assert (result == 0).all()


@pytest.mark.parametrize(
    ("groups", "config", "dtype"),
    [
        *product((1, 8), [LIBRARY], TIMES),
        (1, LARGE, torch.float16),
        (8, LARGE, torch.bfloat16),
        pytest.param(1, LARGE, torch.bfloat16, marks=pytest.mark.full),
        pytest.param(8, LARGE, torch.float16, marks=pytest.mark.full),
    ],
    ids=str,
)
def test_sixteen_bits(groups, config, dtype, configured):
    configured(config)
    g = Geometry("", (3, 2), (2, 1), padding=(1, 0), channels=(8, 16), groups=groups, batch=(1, 9))
    r, weight, u, v, x = tensors(g, dtype)
    for signed, multiply in ((False, True), (True, False)):
        arguments = (r, weight, u, v, x, None)
        rest = (*geometry(g), signed, multiply)
        exact = definition(*(None if t is None else t.double() for t in arguments), *rest)
        plain = aten_relevance(*arguments, *rest)
        got = conv.conv_relevance(*arguments, *rest)
        assert got.dtype == dtype
        ours, theirs = (((t.double() - exact).norm() / exact.norm()).item() for t in (got, plain))
        assert ours <= TIMES[dtype] * theirs, (signed, multiply, ours / theirs)


POOLS = {  # kernel, stride, padding, dilation, ceil_mode, sizes that the pool takes, windows at a position
    "apart": (2, 2, 0, 1, False, (4, 5)),
    "apart, with a rest": (2, 2, 0, 1, True, (5, 3)),
    "gaps between": (1, 2, 0, 1, False, (5, 4)),
    "padded": (2, 2, 1, 1, False, (4, 3)),
    "overlapping": (3, 2, 1, 1, False, (5, 4)),
    "overlapping everywhere": (3, 1, 1, 1, True, (3,)),
    "dilated": (2, 1, 0, 2, False, (5,)),
    "in a volume": (2, 2, 0, 1, False, (2, 2, 3)),
}


@pytest.mark.parametrize(
    ("pool", "config"),
    [
        *((pool, LARGE) for pool in POOLS),
        *((pool, LIBRARY) for pool in ("apart, with a rest", "overlapping", "in a volume")),
    ],
    ids=str,
)
def test_unpooled_equals_definition(pool, config, configured):
    configured(config)
    k, s, p, d, ceil_mode, out = POOLS[pool]
    n, B, K, Ci, Co = len(out), 1 + (pool == "apart"), 3, 3, 4
    pooling = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}[n]
    pooled, index = pooling(mixed(B, Co, *out, dtype=torch.float32), k, s, p, d, ceil_mode, True)
    S = [size + 1 for size in out]
    r, u, v = mixed(B, K, *pooled.shape[1:], dtype=torch.float32), *(torch.randn(B, Co, *out) for _ in range(2))
    x, weight = mixed(B, Ci, *S, dtype=torch.float32), mixed(Co, Ci, *[2] * n, dtype=torch.float32)
    rest = (list(out), *([number] * n for number in (k, s, p, d)), S, [1] * n, [0] * n, [1] * n, 1)
    ways = (((u, v), (False, True)), ((u, None), (False, False)), ((u, v), (True, True)))
    turn = list(POOLS).index(pool)
    for (a, b), (signed, multiply) in ways if pool == "overlapping" or config is LIBRARY else [ways[turn % 3]]:
        arguments = (r, index, weight, a, b, x, None)
        expected = unpooled_definition(*arguments, *rest, signed, multiply)
        assert_close(conv.conv_unpooled_relevance(*arguments, *rest, signed, multiply), expected, (signed, multiply))


@pytest.mark.parametrize(
    ("dtype", "config"),
    [
        (torch.float32, LARGE),
        pytest.param(torch.bfloat16, LARGE, marks=pytest.mark.full),
        (torch.float32, LIBRARY),
        (torch.bfloat16, LIBRARY),
    ],
    ids=str,
)
def test_unpooled_any_memory(dtype, config, configured):
    """Strided, with eight targets of each position, and depthwise."""
    configured(config)
    r, weight = mixed(2, 8, 4, 1, 2, dtype=dtype), mixed(4, 1, 3, 1, dtype=dtype)
    _, index = F.max_pool2d(torch.randn(2, 4, 2, 4), 2, return_indices=True)
    u, x = mixed(2, 4, 2, 4, dtype=dtype), mixed(2, 4, 5, 4, dtype=dtype)
    rest = ([2, 4], *[[2, 2]] * 2, [0, 0], [1, 1], [5, 4], [2, 1], [0, 0], [1, 1], 4, False, True)
    for arguments in few_layouts((r, index, weight, u, None, x, None)):
        expected = unpooled_definition(*arguments, *rest)
        got = conv.conv_unpooled_relevance(*arguments, *rest)
        # Cut off up to three times by the interpreter, each time by up to 2^-8. Worst measured: 0.0075.
        tolerance = 1e-5 if dtype == torch.float32 else 0.012
        assert (got.double() - expected.double()).norm() <= tolerance * expected.double().norm()


def test_dead_windows_give_nothing(configured):
    """Relevance of a window reaches its winner alone, even where it is not finite."""
    configured(SMALL)
    r = torch.ones(1, 1, 1, 2)
    index = torch.tensor([[[1, 2]]])
    rest = ([4], [2], [2], [0], [1], [4], [1], [0], [1], 1, False, False)
    got = conv.conv_unpooled_relevance(r, index, torch.ones(1, 1, 1), torch.ones(1, 1, 4), None, None, None, *rest)
    assert got.flatten().tolist() == [0, 1, 1, 0]


@pytest.mark.parametrize(
    ("reduction", "channels", "results", "pointwise", "expected"),
    [
        (21, 512, 1 << 20, False, "odd"),
        (512, 512, 1000, False, "few"),
        (64, 3, 1 << 20, False, "narrow"),
        (64, 16, 1 << 20, True, "narrow"),
        (64, 64, 1 << 20, False, "medium"),
        (64, 17, 1 << 19, True, "medium_pointwise"),
        (64, 65, 1 << 20, False, "wide"),
        (512, 2048, 1 << 31, True, "wide_pointwise"),
    ],
)
def test_shape_class(reduction, channels, results, pointwise, expected):
    assert conv.shape_class(reduction, channels, results, pointwise) == expected


def test_configuration_goes_by_the_call(monkeypatch):
    asked = []

    def configuration(*arguments):
        asked.append(arguments[:2] + arguments[3:])
        return SMALL

    monkeypatch.setattr(conv, "configuration", configuration)
    single, depthwise = (Geometry("", (2,), (1,), groups=n, channels=(4, 8)) for n in (1, 4))
    for g, signed in ((single, False), (single, True), (depthwise, True)):
        r, weight, u, v, x = tensors(g, torch.float32)
        conv.conv_relevance(r, weight, u, v, x, None, *geometry(g), signed, False)
    precision = "tf32" if torch.backends.cudnn.allow_tf32 else "ieee"
    kernels = [*((name, "few") for name in ("conv_both", "conv_both", "conv_signed")), ("conv_depthwise", "any")]
    assert asked == [(*kernel, torch.float32, precision) for kernel in kernels]
