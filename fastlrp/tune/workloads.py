"""Calls of the operations at the shapes of real models: what kernels are tuned on."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

TARGETS = (1, 16, 128, 256)
TERMS = ("u", "v", "uv")
"""Which coefficients a call has: of epsilon, of z+, of gamma on outputs of both signs."""

OPS = ("conv_relevance", "conv_unpooled_relevance", "linear_relevance", "input_relevance")


@dataclass(frozen=True)
class Workload:
    """One call. Sizes are the layer's: ``inputs`` and ``outputs`` are channels or features.

    Attributes:
        size: spatial sizes of the layer's input, ``()`` for a linear layer. pool: the max-pool after the layer has
            windows of this size, as far apart; 0 for none.
        signed: whether the layer's input may be negative.
    """

    op: str
    inputs: int
    outputs: int
    size: tuple[int, ...] = ()
    kernel: int = 1
    stride: int = 1
    padding: int = 0
    groups: int = 1
    pool: int = 0
    terms: str = "v"
    signed: bool = False
    batch: int = 1
    targets: int = 16

    @property
    def output_size(self) -> tuple[int, ...]:
        return tuple((n + 2 * self.padding - self.kernel) // self.stride + 1 for n in self.size)

    @property
    def largest(self) -> int:
        """Elements of one target's largest map."""
        return self.batch * max(self.inputs * math.prod(self.size), self.outputs * math.prod(self.output_size))

    @property
    def reduction(self) -> int:
        """Numbers that one result is a sum of."""
        return self.outputs // self.groups * self.kernel ** len(self.size)

    def __str__(self) -> str:
        layer = f"{self.inputs}->{self.outputs}"
        if self.size:
            layer += f" {self.kernel}x{self.kernel}" + (f"/{self.stride}" if self.stride > 1 else "")
            layer += f" of {'x'.join(map(str, self.size))}" + (f" groups={self.groups}" if self.groups > 1 else "")
            layer += f" under a pool of {self.pool}" if self.pool else ""
        signed = " signed" if self.signed else ""
        return f"{self.op} {layer} {self.terms}{signed}, B={self.batch}, K={self.targets}"

    def arguments(self, device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
        """Arguments of the operation, random, half of the coefficients zero as under a ReLU."""
        make = _Maker(device, dtype)
        if self.op == "linear_relevance":
            weight = make.weight((self.outputs, self.inputs), self.reduction)
            u, v, x, positive = self._factors(make, (self.outputs,), (self.inputs,), weight)
            flow = make.flow((self.batch, self.targets, self.outputs))
            return flow, weight, u, v, x, positive, self.signed, False
        weight = make.weight(
            (self.outputs, self.inputs // self.groups, *[self.kernel] * len(self.size)), self.reduction
        )
        u, v, x, positive = self._factors(make, (self.outputs, *self.output_size), (self.inputs, *self.size), weight)
        stride, padding, dilation = ([n] * len(self.size) for n in (self.stride, self.padding, 1))
        geometry = (stride, padding, dilation)
        flow = make.flow((self.batch, self.targets, self.outputs, *self.output_size))
        if self.op == "input_relevance":
            ms: list[Tensor | None] = [make.flow((self.batch, self.inputs, *self.size)) for _ in range(2)]
            assert v is not None
            parts = [weight.clamp(min=0), weight.clamp(max=0)]
            return flow, parts, [v, v], ms, list(self.size), *geometry, self.groups, False
        if self.op == "conv_unpooled_relevance":
            pool = (
                [self.pool] * len(self.size),
                [self.pool] * len(self.size),
                [0] * len(self.size),
                [1] * len(self.size),
            )
            index = make.winners((self.batch, self.outputs, *self.output_size), self.pool)
            flow = make.flow((self.batch, self.targets, *index.shape[1:]))
            sizes = (list(self.output_size), *pool, list(self.size))
            return flow, index, weight, u, v, x, positive, *sizes, *geometry, self.groups, self.signed, False
        rest = (False, [0] * len(self.size), self.groups, self.signed, False)
        return flow, weight, u, v, x, positive, list(self.size), *geometry, *rest

    def _factors(
        self, make: _Maker, above: tuple[int, ...], below: tuple[int, ...], weight: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
        u = make.coefficient((self.batch, *above)) if "u" in self.terms else None
        v = make.coefficient((self.batch, *above)) if "v" in self.terms else None
        x = make.flow((self.batch, *below)) if self.signed else None
        return u, v, x, None if v is None else weight.clamp(min=0)


class _Maker:
    """Random tensors, maps channels-last, the same ones every time."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._to: dict[str, Any] = {"device": device, "dtype": dtype}
        self._generator = torch.Generator(device).manual_seed(0)

    def flow(self, shape: tuple[int, ...]) -> Tensor:
        """``(B, K, C, *S)`` or ``(B, C, *S)``, channels innermost: the axis before the spatial ones."""
        spatial = 2 if len(shape) > 3 else 0
        order = [*range(len(shape) - spatial - 1), *range(len(shape) - spatial, len(shape)), len(shape) - spatial - 1]
        made = torch.randn([shape[axis] for axis in order], generator=self._generator, **self._to)
        return made.permute([order.index(axis) for axis in range(len(shape))])

    def coefficient(self, shape: tuple[int, ...]) -> Tensor:
        return self.flow(shape).clamp_(min=0)

    def weight(self, shape: tuple[int, ...], reduction: int) -> Tensor:
        made = torch.randn(shape, generator=self._generator, **self._to) / math.sqrt(reduction)
        return made.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else made

    def winners(self, shape: tuple[int, ...], pool: int) -> Tensor:
        """Indices of a max-pool's winners, channels-last."""
        values = self.flow(shape)
        found = torch.nn.functional.max_pool2d(values, pool, return_indices=True)[1]
        return found.contiguous(memory_format=torch.channels_last)


def _vgg16() -> Iterator[Workload]:
    size, inputs = 224, 3
    for outputs, layers in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for layer in range(layers):
            conv = Workload("conv_relevance", inputs, outputs, (size, size), 3, padding=1)
            if inputs == 3:
                yield replace(conv, op="input_relevance")
            elif layer == layers - 1:
                yield replace(conv, op="conv_unpooled_relevance", pool=2)
            else:
                yield conv
            inputs = outputs
        size //= 2
    for inputs, outputs in ((25088, 4096), (4096, 4096), (4096, 1000)):
        yield Workload("linear_relevance", inputs, outputs, terms="u")


def _resnet50() -> Iterator[Workload]:
    yield Workload("input_relevance", 3, 64, (224, 224), 7, 2, 3)
    inputs, size = 64, 56
    for width, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        maps = [((size, size), stride, inputs), ((size // stride, size // stride), 1, 4 * width)]
        for (height, _), step, coming in maps:
            yield Workload("conv_relevance", coming, width, (height, height))
            yield Workload("conv_relevance", width, width, (height, height), 3, step, 1)
        yield Workload("conv_relevance", width, 4 * width, (size // stride, size // stride))
        yield Workload("conv_relevance", inputs, 4 * width, (size, size), 1, stride)
        inputs, size = 4 * width, size // stride
    yield Workload("linear_relevance", 2048, 1000, terms="u")


def _others() -> Iterator[Workload]:
    """What these models do under other rules: both terms, inputs of both signs, a group for each channel."""
    for inputs, outputs, size in ((64, 64, 112), (256, 256, 28)):
        conv = Workload("conv_relevance", inputs, outputs, (size, size), 3, padding=1)
        yield replace(conv, terms="uv")
        yield replace(conv, signed=True)
        yield replace(conv, op="conv_unpooled_relevance", pool=2, terms="uv")
        yield replace(conv, op="conv_unpooled_relevance", pool=2, signed=True)
    yield Workload("conv_relevance", 144, 144, (56, 56), 3, padding=1, groups=144)
    yield Workload("linear_relevance", 4096, 4096, terms="uv")
    yield Workload("linear_relevance", 4096, 4096, signed=True)


def standard(quick: bool = False, targets: Sequence[int] = TARGETS) -> list[Workload]:
    """Layers of VGG-16 and ResNet-50, each once; ``quick``: every third of them, with the second and third of K."""
    layers = list(dict.fromkeys([*_vgg16(), *_resnet50(), *_others()]))
    if quick:
        layers, targets = layers[::3], targets[1:3] or targets
    return [replace(layer, targets=k) for layer in layers for k in targets]


def read(path: Path) -> list[Workload]:
    """A user's shapes: a JSON list of objects with the attributes of :class:`Workload`; ``size`` is a list.

    Raises:
        ValueError: names the file, the entry and what is wrong with it.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(data, list) or not data:
        raise ValueError(f"{path}: expected a list of shapes, such as [{json.dumps(_EXAMPLE)}]")
    return [_workload(entry, f"{path}, shape {number}") for number, entry in enumerate(data)]


def _workload(entry: Any, place: str) -> Workload:
    types = {f.name: type(getattr(_SAMPLE, f.name)) for f in fields(Workload)}
    if not isinstance(entry, dict) or not set(entry) <= set(types):
        unknown = f"unknown {', '.join(sorted(set(entry) - set(types)))}; " if isinstance(entry, dict) else ""
        raise ValueError(f"{place}: {unknown}expected an object with some of {', '.join(types)}")
    entry = {**entry, "size": tuple(entry["size"])} if isinstance(entry.get("size"), list) else entry
    for name, value in entry.items():
        if type(value) is not types[name]:
            raise ValueError(f"{place}: {name!r} must be of type {types[name].__name__}, got {value!r}")
    missing = {"op", "inputs", "outputs"} - set(entry)
    if missing:
        raise ValueError(f"{place}: {', '.join(sorted(missing))} must be given")
    made = Workload(**entry)
    _check(made, place)
    return made


def _check(w: Workload, place: str) -> None:
    if w.op not in OPS:
        raise ValueError(f"{place}: 'op' must be one of {', '.join(OPS)}, got {w.op!r}")
    if w.terms not in TERMS:
        raise ValueError(f"{place}: 'terms' must be one of {', '.join(TERMS)}, got {w.terms!r}")
    counts = {n: getattr(w, n) for n in ("inputs", "outputs", "kernel", "stride", "groups", "batch", "targets")}
    if min(counts.values()) < 1 or w.padding < 0 or w.pool < 0:
        raise ValueError(f"{place}: numbers must be at least 1, 'padding' and 'pool' at least 0")
    if len(w.size) != (0 if w.op == "linear_relevance" else 2) or any(type(n) is not int or n < 1 for n in w.size):
        raise ValueError(f"{place}: 'size' must be a height and a width, and left out for linear_relevance")
    if w.inputs % w.groups or w.outputs % w.groups:
        raise ValueError(f"{place}: {w.groups} groups do not divide {w.inputs} and {w.outputs} channels")
    if w.size and min(w.output_size) < max(1, w.pool):
        raise ValueError(f"{place}: the output of size {w.output_size} is empty or smaller than the pool's window")
    if (w.op == "conv_unpooled_relevance") != (w.pool > 0):
        raise ValueError(f"{place}: 'pool' is the window of the pool after conv_unpooled_relevance, of others 0")


_SAMPLE = Workload("conv_relevance", 64, 64, (56, 56), 3, padding=1)
_EXAMPLE = {k: v for k, v in asdict(_SAMPLE).items() if k in ("op", "inputs", "outputs", "size", "kernel", "padding")}
