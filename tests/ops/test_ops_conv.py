from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch

from fastlrp import functional
from tests.ops.cases import DTYPES, assert_close, backends, bound, layouts, mixed, reference, signs, terms

OP = "conv_relevance"


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
