from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from torch.nn import functional as F

from fastlrp import functional
from tests.ops.cases import DTYPES, assert_close, backends, bound, layouts, mixed, reference, signs, terms

OP, UNPOOLED = "conv_relevance", "conv_unpooled_relevance"


@dataclass(frozen=True)
class Geometry:
    name: str
    S: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    output_padding: tuple[int, ...] = ()
    transposed: bool = False
    groups: int = 1
    channels: tuple[int, int] = (4, 6)  # in, out
    batch: tuple[int, int] = field(default=(2, 3))  # B, K

    def __str__(self) -> str:
        return self.name

    def lists(self) -> tuple[list[int], ...]:
        n = len(self.S)
        return (
            list(self.stride or [1] * n),
            list(self.padding or [0] * n),
            list(self.dilation or [1] * n),
            list(self.output_padding or [0] * n),
        )

    def weight(self, dtype: torch.dtype) -> torch.Tensor:
        Ci, Co = self.channels
        first, second = (Ci, Co) if self.transposed else (Co, Ci)
        return mixed(first, second // self.groups, *self.kernel, dtype=dtype)

    def output_size(self) -> tuple[int, ...]:
        rows = zip(self.S, self.kernel, *self.lists(), strict=True)
        if self.transposed:
            return tuple((s - 1) * t - 2 * p + d * (k - 1) + o + 1 for s, k, t, p, d, o in rows)
        return tuple((s + 2 * p - d * (k - 1) - 1) // t + 1 for s, k, t, p, d, _ in rows)


GEOMETRIES = [
    Geometry("plain", (7, 5), (3, 3)),
    Geometry("padded", (7, 5), (3, 3), padding=(1, 1)),
    Geometry("strided with remainder", (8, 11), (3, 2), stride=(2, 3)),
    Geometry("dilated", (11, 9), (3, 2), dilation=(2, 3), padding=(2, 1)),
    Geometry("padding beyond the kernel", (5, 4), (1, 3), padding=(1, 3)),
    Geometry("padding beyond the kernel, strided", (5, 4), (2, 1), padding=(2, 2), stride=(2, 3)),
    Geometry("depthwise", (5, 5), (3, 3), padding=(1, 1), groups=4, channels=(4, 8)),
    Geometry("groups", (5, 5), (3, 3), groups=2),
    Geometry("1x1", (5, 3), (1, 1)),
    Geometry("1x1 strided", (5, 4), (1, 1), stride=(2, 2)),
    Geometry("size one", (1, 1), (1, 1), channels=(1, 1), batch=(1, 1)),
    Geometry("one target", (7, 7), (3, 3), batch=(1, 1)),
    Geometry("no sample", (5, 5), (3, 3), batch=(0, 2)),
    Geometry("no target", (5, 5), (3, 3), batch=(2, 0)),
    Geometry("1-D", (13,), (5,), stride=(2,), padding=(2,)),
    Geometry("3-D", (5, 4, 3), (2, 3, 1), padding=(1, 1, 0), stride=(1, 2, 1)),
    Geometry("transposed", (4, 5), (3, 2), stride=(2, 3), transposed=True),
    Geometry("transposed padded", (4, 5), (3, 4), (2, 2), (1, 2), (2, 1), (1, 1), transposed=True, groups=2),
    Geometry("transposed, output padding", (3, 3), (1, 2), (3, 2), output_padding=(2, 1), transposed=True),
    Geometry("transposed 1-D", (6,), (3,), stride=(2,), transposed=True),
    Geometry("wide enough for channels last", (32, 32), (3, 3), padding=(1, 1), channels=(8, 16)),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", backends(OP))
@pytest.mark.parametrize("g", GEOMETRIES, ids=str)
def test_equals_reference(g, backend, dtype):
    (B, K), (Ci, Co), out = g.batch, g.channels, g.output_size()
    stride, padding, dilation, output_padding = g.lists()
    rest = (list(g.S), stride, padding, dilation, g.transposed, output_padding, g.groups)
    weight, x = g.weight(dtype), mixed(B, Ci, *g.S, dtype=dtype)
    call, definition = bound(OP, backend, dtype), reference(OP)
    for (u, v), (signed, multiply) in ((t, s) for t in terms((B, Co, *out), dtype) for s in signs()):
        arguments = (mixed(B, K, Co, *out, dtype=dtype), weight, u, v, x, weight.clamp(min=0) if multiply else None)
        expected = definition(*arguments, *rest, signed, multiply)
        changes = layouts(arguments) if signed and multiply else [arguments]
        for changed in changes:
            context = (u is None, v is None, signed, multiply)
            assert_close(call(*changed, *rest, signed, multiply), expected, context)


def test_public_function():
    r, w, u = torch.randn(2, 3, 6, 3, 3), torch.randn(6, 4, 3, 3), torch.randn(2, 6, 3, 3)
    x = torch.randn(2, 4, 5, 6)
    geometry = ([5, 6], [2, 2], [1, 1], [1, 1], False, [0, 0], 1)
    expected = reference(OP)(r, w, u, None, x, None, *geometry, False, True)
    for backend in ("auto", "reference", "torch", "cpu"):
        result = functional.conv_relevance(r, w, u, input=x, stride=2, padding=1, multiply=True, backend=backend)
        assert_close(result, expected)
        assert result.is_contiguous()
    channels_last = r.movedim(2, -1).contiguous().movedim(-1, 2)
    assert_close(functional.conv_relevance(channels_last, w, u, input=x, stride=2, padding=1, multiply=True), expected)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"relevance": torch.zeros(2, 6, 3)}, ValueError, r"relevance must have shape \(B, K, C, \*S'\) with one to"),
        (
            {"relevance": torch.zeros(2, 3, 6, 4, 3)},
            ValueError,
            r"spatial size \[3, 3\], which is what this layer makes",
        ),
        (
            {"relevance": torch.zeros(2, 3, 5, 3, 3)},
            ValueError,
            r"weight must have shape \(Co, Ci / groups, \*k\) = \(5,",
        ),
        (
            {"weight": torch.zeros(6, 4, 3)},
            ValueError,
            r"weight must have shape \(Co, Ci / groups, \*k\) with 2 kernel",
        ),
        ({"weight": torch.zeros(6, 4, 3, 3).double()}, TypeError, "weight must have dtype torch.float32, got torch.fl"),
        (
            {"u": torch.zeros(2, 6, 3)},
            ValueError,
            r"u must have shape \(B, Co, \*S'\) = \(2, 6, 3, 3\), got \(2, 6, 3\)",
        ),
        ({"input": torch.zeros(2, 3, 5, 5)}, ValueError, r"input must have shape \(B, Ci, \*S\) = \(2, 4, 5, 5\)"),
        ({"input_size": None}, ValueError, "input_size must be given where input is None"),
        ({"input_size": [5]}, ValueError, r"input_size must have 2 entries, each at least 0, got \[5\]"),
        ({"stride": 0}, ValueError, "stride must have 2 entries, each at least 1, got 0"),
        ({"stride": "2"}, TypeError, "stride must be an integer or a list of 2, got '2'"),
        ({"groups": 4}, ValueError, "groups must divide the channels Co = 6 and Ci, got 4"),
        ({"weight_positive": torch.zeros(1)}, ValueError, "weight_positive must have shape"),
        ({"multiply": True}, ValueError, "input must be given for multiply=True"),
    ],
)
def test_errors(change, error, message):
    good = {
        "relevance": torch.zeros(2, 3, 6, 3, 3),
        "weight": torch.zeros(6, 4, 3, 3),
        "u": torch.zeros(2, 6, 3, 3),
        "input_size": [5, 5],
    }
    with pytest.raises(error, match=message):
        functional.conv_relevance(**{**good, **change})


@dataclass(frozen=True)
class Pooled:
    """A convolution whose output, of size ``out``, goes into a max-pool."""

    name: str
    out: tuple[int, ...]
    pool: tuple[int, int, int, int] = (2, 2, 0, 1)  # kernel, stride, padding, dilation
    ceil_mode: bool = False
    stride: int = 1
    groups: int = 1
    batch: tuple[int, int] = (2, 3)

    def __str__(self) -> str:
        return self.name

    def tensors(self, dtype: torch.dtype) -> tuple[tuple[torch.Tensor, ...], tuple[object, ...]]:
        """Relevance, index, weight and input; then the geometry, without signed and multiply."""
        n, (B, K), (Ci, Co) = len(self.out), self.batch, (4, 6)
        S = [(size - 1) * self.stride + 2 for size in self.out]
        pool = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}[n]
        z = mixed(max(B, 1), Co, *self.out, dtype=dtype)  # max_pool takes no empty batch everywhere
        pooled, index = pool(z, *self.pool, self.ceil_mode, True)
        r = mixed(B, K, *pooled.shape[1:], dtype=dtype)
        weight = mixed(Co, Ci // self.groups, *[2] * n, dtype=dtype)
        lists = [[number] * n for number in (*self.pool, self.stride, 0, 1)]
        geometry = (list(self.out), *lists[:4], S, *lists[4:], self.groups)
        return (r, index[:B], weight, mixed(B, Ci, *S, dtype=dtype)), geometry


POOLED = [
    Pooled("apart", (6, 4)),
    Pooled("apart with a rest", (7, 5), ceil_mode=True),
    Pooled("overlapping", (7, 5), (3, 2, 1, 1)),
    Pooled("dilated", (6, 5), (2, 1, 0, 2)),
    Pooled("gaps between", (5, 7), (2, 3, 0, 1)),
    Pooled("strided groups", (4, 4), stride=2, groups=2),
    Pooled("1-D", (9,), (3, 3, 1, 1)),
    Pooled("3-D", (2, 4, 3)),
    Pooled("no sample", (4, 4), batch=(0, 2)),
    Pooled("no target", (4, 4), batch=(2, 0)),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", backends(UNPOOLED))
@pytest.mark.parametrize("p", POOLED, ids=str)
def test_unpooled_equals_reference(p, backend, dtype):
    (r, index, weight, x), rest = p.tensors(dtype)
    call, definition = bound(UNPOOLED, backend, dtype), reference(UNPOOLED)
    for (u, v), (signed, multiply) in ((t, s) for t in terms((p.batch[0], 6, *p.out), dtype) for s in signs()):
        arguments = (r, index, weight, u, v, x, None)
        expected = definition(*arguments, *rest, signed, multiply)
        for changed in layouts(arguments) if signed and multiply else [arguments]:
            assert_close(call(*changed, *rest, signed, multiply), expected, (u is None, v is None, signed, multiply))


def test_unpooled_by_hand():
    """Two windows with winners 1 and 2 of four outputs; each output is the sum of two neighbouring inputs."""
    r, index = torch.tensor([[[[3.0, 5.0]]]]), torch.tensor([[[1, 2]]])
    u = torch.tensor([[[7.0, 1.0, 2.0, 7.0]]])
    arguments = (r, index, torch.ones(1, 1, 2), u, None, None, None)
    result = functional.conv_unpooled_relevance(*arguments, input_size=[5], backend="reference")
    assert result.flatten().tolist() == [0, 3, 13, 10, 0]


def test_unpooled_public_function():
    x, weight = torch.randn(2, 4, 6, 7), torch.randn(6, 4, 3, 3)
    z = F.conv2d(x, weight, padding=1)
    pooled, index = F.max_pool2d(z, 3, 2, 1, return_indices=True)
    r, u = torch.randn(2, 3, *pooled.shape[1:]), torch.randn(z.shape)
    between = functional.pool_max_relevance(r, index, None, [6, 7])
    expected = functional.conv_relevance(between, weight, u, input=x, padding=1, multiply=True, backend="reference")
    for backend in ("auto", "reference", "torch"):
        for size in (None, [6, 7]):
            result = functional.conv_unpooled_relevance(
                r, index, weight, u, input=x, unpooled_size=size, pool_kernel=3, pool_stride=2, pool_padding=1,
                padding=1, multiply=True, backend=backend,
            )  # fmt: skip
            assert_close(result, expected)
            assert result.is_contiguous()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"relevance": torch.zeros(2, 6, 2)}, ValueError, r"relevance must have shape \(B, K, C, \*S'\) with one to"),
        (
            {"relevance": torch.zeros(2, 3, 6, 1, 2)},
            ValueError,
            r"spatial size \[2, 2\], which is what this pool makes",
        ),
        ({"pool_kernel": 4}, ValueError, r"size \[1, 1\], which is what this pool makes of \[4, 4\], got \[2, 2\]"),
        (
            {"pool_kernel": 3, "pool_stride": 2, "relevance": torch.zeros(2, 3, 6, 3, 3)},
            ValueError,
            r"spatial size \[1, 1\] or, with ceil_mode, \[2, 2\], which",
        ),
        ({"pool_padding": 2}, ValueError, r"pool_padding must be at most half of what a window spans, \[2, 2\], got"),
        ({"pool_stride": 0}, ValueError, "pool_stride must have 2 entries, each at least 1, got 0"),
        (
            {"unpooled_size": [4, 5]},
            ValueError,
            r"unpooled_size must be \[4, 4\], which is what this convolution makes",
        ),
        ({"index": None}, TypeError, "index must be a tensor, got None; max_pool2d"),
        ({"index": torch.zeros(2, 6, 2, 2)}, TypeError, "index must have dtype torch.int64, got torch.float32"),
        ({"index": torch.zeros(2, 6, 2).long()}, ValueError, r"index must have shape \(B, Co, \*P\) = \(2, 6, 2, 2\)"),
        ({"u": torch.zeros(2, 6, 2, 2)}, ValueError, r"u must have shape \(B, Co, \*S'\) = \(2, 6, 4, 4\), got"),
        ({"u": None}, ValueError, "u or v must be given, got None for both"),
        ({"input_size": None}, ValueError, "input_size must be given where input is None"),
        ({"groups": 4}, ValueError, "groups must divide the channels Co = 6 and Ci, got 4"),
        ({"multiply": True}, ValueError, "input must be given for multiply=True"),
    ],
)
def test_unpooled_errors(change, error, message):
    good = {
        "relevance": torch.zeros(2, 3, 6, 2, 2),
        "index": torch.zeros(2, 6, 2, 2, dtype=torch.int64),
        "weight": torch.zeros(6, 4, 3, 3),
        "u": torch.zeros(2, 6, 4, 4),
        "input_size": [6, 6],
    }
    with pytest.raises(error, match=f"conv_unpooled_relevance: .*{message}"):
        functional.conv_unpooled_relevance(**{**good, **change})
