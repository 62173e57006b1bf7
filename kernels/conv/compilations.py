"""What the launchers of convolutions may compile: samples of layers in every configuration of the tables."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastlrp.kernels.compilation import Compilation
from fastlrp.kernels.configs import configurations
from fastlrp.kernels.conv.call import Call, layer_of
from fastlrp.kernels.conv.launch import fused_launch, plain
from fastlrp.kernels.conv.maps import finish_launch, scale_launch


@dataclass(frozen=True)
class Sample:
    """A layer as its kernels see it; tensors have no data."""

    name: str
    terms: str  # "u", "v", "uv" or "": on the way up
    targets: int = 256
    signed: bool = False
    prepared: bool = False
    kernel: tuple[int, ...] = (3, 3)
    stride: int = 1
    transposed: bool = False
    channels: tuple[int, int] = (256, 256)  # in, out
    groups: int = 1
    pool: tuple[int, int, int] | None = None  # kernel, stride, padding

    def call(self, dtype: torch.dtype) -> Call:
        n, (Ci, Co), batch = len(self.kernel), self.channels, 2
        size, stride, padding = (8,) * n, (self.stride,) * n, tuple(k // 2 for k in self.kernel)
        weight = _map(dtype, *((Ci, Co // self.groups) if self.transposed else (Co, Ci // self.groups)), *self.kernel,
                      innermost=1 if self.transposed else 0)  # fmt: skip
        lists = (self.kernel, size, size, stride, padding, (1,) * n, self.transposed, self.groups)
        layer, index, arriving = layer_of(*lists), None, size
        if self.pool is not None:
            arriving = (4,) * n
            pool = tuple((number,) * n for number in (*self.pool, 1))
            layer = layer_of(*lists, arriving, pool)  # type: ignore[arg-type]
            index = _map(torch.int64, batch, Co, *arriving, innermost=1)
        u, v = (_map(dtype, batch, Co, *size, innermost=1) if term in self.terms else None for term in "uv")
        relevance = _map(dtype, batch, self.targets, Co, *arriving, innermost=2)
        x = _map(dtype, batch, Ci, *size, innermost=1)
        positive = torch.empty_like(weight) if self.prepared else None
        return plain(Call(layer, relevance, index, weight, positive, u, v, x, self.signed, True)).with_result()


def _map(dtype: torch.dtype, *shape: int, innermost: int) -> Tensor:
    memory = [n for axis, n in enumerate(shape) if axis != innermost]
    return torch.empty(*memory, shape[innermost], dtype=dtype, device="meta").movedim(-1, innermost)


_ONE = (
    Sample("u", "u"),
    Sample("v of one target, strided", "v", targets=1, stride=2),
    Sample("v with signs by column", "v", signed=True),
)
_BOTH = (
    Sample("both", "uv"),
    Sample("both of one target, prepared", "uv", targets=1, prepared=True),
    Sample("both with signs by column", "uv", signed=True),
)
_SIGNED = (
    Sample("signed v", "v", targets=16, signed=True),
    Sample("signed both of one target", "uv", targets=1, signed=True, stride=2),
)
_GEOMETRIES = (
    Sample("pointwise", "u", kernel=(1, 1)),
    Sample("along a line", "u", kernel=(5,)),
    Sample("in a volume", "v", kernel=(3, 3, 3)),
    Sample("transposed", "u", stride=2, transposed=True),
    Sample("few channels", "u", targets=1, channels=(3, 64), kernel=(7, 7), stride=2),
    Sample("merged groups", "u", channels=(128, 128), groups=32),
    Sample("up", "", transposed=True),
    Sample("up, strided", "", stride=2, transposed=True),
    Sample("up through a transposed layer", "", targets=1, stride=2),
)
_POOL = (2, 2, 0)


def _pooled(samples: tuple[Sample, ...]) -> tuple[Sample, ...]:
    return tuple(replace(s, name=f"{s.name}, pooled", pool=_POOL) for s in samples)


SAMPLES = {
    "conv": (*_ONE, *_GEOMETRIES),
    "conv_both": _BOTH,
    "conv_signed": _SIGNED,
    "conv_unpooled": _pooled(_ONE),
    "conv_both_unpooled": _pooled(_BOTH),
    "conv_signed_unpooled": _pooled(_SIGNED),
    "conv_depthwise": (
        Sample("u", "u", groups=256),
        Sample("up", "", stride=2, transposed=True, groups=256),
        Sample("both of one target, signed, strided, pooled", "uv", 1, True, stride=2, groups=256, pool=_POOL),
        Sample(
            "transposed, two outputs of each channel", "v", stride=2, transposed=True, channels=(64, 128), groups=64
        ),
    ),
}
"""By kernel as the tables name it; the samples together have all constants that a launcher can choose."""


def compiled_samples(dtype: torch.dtype) -> Iterator[Compilation]:
    """Every kernel of convolutions in every configuration, on samples of layers."""
    for kernel, samples in SAMPLES.items():
        for precision in ("tf32", "ieee") if dtype == torch.float32 else ("ieee",):
            tensor_cores = kernel != "conv_depthwise" and (precision == "tf32" or dtype != torch.float32)
            kind = precision if dtype == torch.float32 else "half"
            found = configurations(kernel, dtype, precision)
            for sample in samples:
                for name, config in found.items():
                    if config.route == "fused" and config.block_n <= max(16, sample.channels[0] // sample.groups):
                        launch = fused_launch(sample.call(dtype), config, precision)
                        yield launch.compilation(f"{kernel}: {sample.name}, {kind}, {name}", tensor_cores)
    yield from _maps(dtype)


def _maps(dtype: torch.dtype) -> Iterator[Compilation]:
    for channels in (3, 64, 256):
        narrow = replace(_BOTH[0], channels=(channels, channels))
        overlapping = replace(narrow, pool=(3, 2, 1))
        for name, sample, ones in (
            ("scale", narrow, False),
            ("scale and unpool", overlapping, False),
            ("winners", _pooled((narrow,))[0], True),
        ):
            call = sample.call(dtype)
            first = _map(dtype, 2, 256, 2 * channels, 8, 8, innermost=2)
            yield scale_launch(call, *first.chunk(2, 2), ones).compilation(f"{name}, {channels} channels", False)
        call = replace(overlapping.call(dtype), u=None, v=None)
        yield scale_launch(call, call.result, None).compilation(f"unpool, {channels} channels", False)
        for signed in (False, True):
            call = replace(narrow, signed=signed).call(dtype)
            parts = _map(dtype, 2, 256, 2 * channels, 8, 8, innermost=2).chunk(2, 2)
            launch = finish_launch(call, call.result, parts[0], parts[1] if signed else None)
            yield launch.compilation(f"finish, {'signed, ' if signed else ''}{channels} channels", False)
