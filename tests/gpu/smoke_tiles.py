"""Every tile of the tables once: a small call that is launched as the table's row says, whatever its shape."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch.nn import functional as F

from benchmarks import precisions
from fastlrp.backends import dispatch
from fastlrp.kernels import configs
from fastlrp.kernels.configs import Config
from tests.gpu.cases import DEVICE, cast, relative
from tests.ops.cases import reference

LIMITS = {"tf32": 2e-3, "ieee": 1e-5, "half": 2e-2}
PRECISION = {"tf32": "tf32", "ieee": "float32", "half": "bfloat16"}
WIDTHS = {"narrow": 64, "middle": 128, "wide": 256}

Sample = tuple[str, tuple[Any, ...]]


def linear(targets: int, signed: bool) -> Sample:
    u, x = torch.rand(8, 64), torch.randn(8, 96)
    given = (torch.randn(8, targets, 64), torch.randn(64, 96), u, u * 2 if signed else None, x, None, signed, signed)
    return "linear_relevance", given


def conv(terms: str, signed: bool, unpooled: bool) -> Sample:
    """64 channels to 48 on a map of 8x8; one target where signs are kept apart, since one tile cannot be full."""
    K, Co, Ci = 1 if signed else 9, 64, 48
    x, weight = torch.randn(1, Ci, 8, 8), torch.randn(Co, Ci, 3, 3) / 8
    z = torch.randn(1, Co, 8, 8).clamp(min=0)
    u, v = (torch.rand(1, Co, 8, 8) if name in terms else None for name in "uv")
    geometry = [1, 1], [1, 1], [1, 1]
    if unpooled:
        _, index = F.max_pool2d(z, 2, return_indices=True)
        pool = [8, 8], [2, 2], [2, 2], [0, 0], [1, 1]
        given = (torch.randn(1, K, Co, 4, 4), index, weight, u, v, x, None, *pool, [8, 8], *geometry, 1, signed, signed)
        return "conv_unpooled_relevance", given
    rest = ([8, 8], *geometry, False, [0, 0], 1, signed, signed)
    return "conv_relevance", (torch.randn(1, K, Co, 8, 8), weight, u, v, x, None, *rest)


def depthwise() -> Sample:
    u, weight = torch.rand(1, 32, 8, 8), torch.randn(32, 1, 3, 3)
    rest = ([8, 8], [1, 1], [1, 1], [1, 1], False, [0, 0], 32, False, False)
    return "conv_relevance", (torch.randn(1, 9, 32, 8, 8), weight, u, None, None, None, *rest)


def image() -> Sample:
    u, weight = torch.rand(1, 64, 8, 8), torch.randn(64, 3, 3, 3)
    x, parts = torch.rand(1, 3, 8, 8), [weight.clamp(min=0), weight.clamp(max=0)]
    rest = ([8, 8], [1, 1], [1, 1], [1, 1], 1, False)
    return "input_relevance", (torch.randn(1, 5, 64, 8, 8), parts, [u, u], [x, x - 1], *rest)


def attention(op: str, width: str) -> Sample:
    """Two heads of queries for one of keys, 70 positions, causal; three targets or groups."""
    D, B, K, H, S = WIDTHS[width], 1, 3, 2, 70
    q, k, v = torch.randn(B, H, S, D), torch.randn(B, 1, S, D), torch.randn(B, 1, S, D)
    scores = (None, True, D**-0.5, 0.0)
    output, log_sum = reference("attention_forward")(q, k, v, *scores)
    flow, up = torch.randn(B, K, H, S, D), torch.randn(B, K, 1, S, D)
    return op, {
        "attention_forward": (q, k, v, *scores),
        "attention_relevance": (flow, q, k, v, output, log_sum, *scores, 0.25, 0.25, 0.5, 0.0),
        "attention_value_relevance": (flow, q, k, log_sum, *scores),
        "attention_up": (q, k, v, output, log_sum, flow, up, up, *scores, 0.25, 0.25, 0.5, 0.0),
    }[op]


KERNELS: dict[str, Callable[[str], Sample]] = {
    "linear": lambda _: linear(16, False),
    "linear_signed": lambda _: linear(1, True),
    "conv_depthwise": lambda _: depthwise(),
    "input_relevance": lambda _: image(),
    **{
        f"conv{kind}{pool}": partial(lambda kind, pool, _: conv(kind[0], kind[1], pool), found, bool(pool))
        for kind, found in (("", ("u", False)), ("_both", ("uv", False)), ("_signed", ("uv", True)))
        for pool in ("", "_unpooled")
    },
    "attention_forward": partial(attention, "attention_forward"),
    "attention_query": partial(attention, "attention_relevance"),
    "attention_key": partial(attention, "attention_relevance"),
    "attention_value": partial(attention, "attention_value_relevance"),
    "attention_up": partial(attention, "attention_up"),
}
"""By kernel of the tables: the call that it is used in, for a shape class."""


def tile(kernel: str, shape: str, kind: str, config: Config) -> str:
    torch.manual_seed(0)
    op, arguments = KERNELS[kernel](shape)
    name = PRECISION[kind]
    dtype = precisions.PRECISIONS[name].dtype
    given = cast(arguments, dtype)
    expected = reference(op)(*cast(given, torch.float64))
    with precisions.using(name), configs.choosing(lambda asked, *_: config if asked == kernel else None):
        got = dispatch.select(op, "triton", DEVICE, dtype).call(*cast(given, dtype, DEVICE))
        error = relative(got, expected)
    assert error <= LIMITS[kind], f"off by {error:.3g}, at most {LIMITS[kind]:g}"
    return f"off by {error:.1e}"


def split_sum() -> str:
    """A sum over so many outputs that several programs share it."""
    torch.manual_seed(0)
    flow, weight, u = torch.randn(1, 1, 4096), torch.randn(4096, 16), torch.rand(1, 4096)
    given = (flow, weight, u, None, None, None, False, False)
    got = dispatch.select("linear_relevance", "triton", DEVICE, flow.dtype).call(*cast(given, flow.dtype, DEVICE))
    error = relative(got, reference("linear_relevance")(*cast(given, torch.float64)))
    assert error <= 1e-5, f"off by {error:.3g}, at most 1e-05"
    return f"off by {error:.1e}"


def cases(key: str = "sm90") -> Iterator[tuple[str, Callable[[], Any]]]:
    """Name and call of each tile, the largest of each kernel first."""
    yield "triton tile linear in parts", split_sum
    seen = set()
    rows = sorted(configs.table(key).rows.items(), key=lambda row: -_size(row[1]))
    first: dict[tuple[str, str], int] = {}
    found = []
    for (kernel, shape, kind), config in rows:
        # Heads of a width have tiles of their own; others fit any call.
        what = (kernel, shape if kernel.startswith("attention") else "", kind, str(config))
        if what not in seen:
            seen.add(what)
            turn = first[kernel, kind] = first.get((kernel, kind), -1) + 1
            name = f"triton tile {kernel} {shape} {kind} {config}"
            found.append((turn, name, partial(tile, kernel, shape, kind, config)))
    for _, name, run in sorted(found, key=lambda item: item[0]):
        yield name, run


def _size(config: Config) -> int:
    return math.prod((config.block_m, config.block_n, config.block_k))
