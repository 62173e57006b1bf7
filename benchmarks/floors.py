"""What dense products alone cost: one with the transposed weight for every convolution and linear layer.

The operands are random, in the model's own dtype and on its device, and lie ready; nothing is passed on from layer to
layer. Each product is the fastest way that PyTorch's libraries (oneDNN; cuDNN and cuBLAS) have for its shape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.clock import Clock
from benchmarks.density import AFFINE

BLOCK_BYTES = {"cpu": 24 << 20, "cuda": 256 << 20}
"""Largest map of a block of products: the size that fastlrp's blocks have on a CPU; several times a GPU's cache."""

_TRIES = 3

Run = Callable[[], Tensor]


@dataclass(frozen=True)
class Layer:
    """A layer with a weight: path, and the shapes of one sample at its input and output."""

    name: str
    module: Any
    size: torch.Size
    out: torch.Size

    @property
    def flops(self) -> int:
        """Of the product of one map: a multiplication and an addition per output and weight that makes it."""
        weight = self.module.weight
        return 2 * self.out.numel() * (weight.numel() // weight.shape[0])


@dataclass(frozen=True)
class Product:
    """A layer's product for ``maps`` maps, in calls for ``rows`` maps each. ``way``: the library call that it is."""

    layer: Layer
    way: str
    call: Run
    rows: int
    maps: int

    @property
    def calls(self) -> int:
        return -(-self.maps // self.rows)

    @property
    def flops(self) -> int:
        """Of all calls."""
        return self.layer.flops * self.rows * self.calls

    def run(self) -> None:
        with torch.no_grad():
            for _ in range(self.calls):
                self.call()


def layers(model: nn.Module, x: Tensor) -> list[Layer]:
    """The layers that ``model(x)`` goes through, in that order, once per use."""
    found: list[Layer] = []
    hooks = [
        module.register_forward_hook(
            lambda m, i, y, name=name: found.append(Layer(name, m, i[0].shape[1:], y.shape[1:]))
        )
        for name, module in model.named_modules()
        if isinstance(module, AFFINE)
    ]
    try:
        with torch.no_grad():
            model(x[:1])
    finally:
        for hook in hooks:
            hook.remove()
    return found


def products(model: nn.Module, x: Tensor, maps: int) -> list[Product]:
    """The floor of ``maps`` maps. Layers of the same shape share their random operands."""
    operands = Operands(x.device, x.dtype)
    return [fastest(layer, operands, maps) for layer in layers(model, x)]


class Operands:
    """Random maps, channels innermost where there is a choice."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self._made: dict[tuple[Any, ...], Tensor] = {}

    def rows(self, layer: Layer, maps: int) -> int:
        """Maps at once, so that all calls have about as many."""
        largest = max(layer.size.numel(), layer.out.numel()) * self.dtype.itemsize
        fits = max(1, min(maps, BLOCK_BYTES[self.device.type] // largest))
        return -(-maps // -(-maps // fits))

    def map(self, shape: torch.Size, rows: int, filled: bool = True) -> Tensor:
        key = (shape, rows, filled)
        if key not in self._made:
            make = torch.randn if filled else torch.empty
            self._made[key] = _last(make(rows, *shape, device=self.device, dtype=self.dtype))
        return self._made[key]


def fastest(layer: Layer, operands: Operands, maps: int) -> Product:
    """The product of ``maps`` maps by the call that is fastest here."""
    rows = operands.rows(layer, maps)
    ways = dict(_ways(layer, operands, rows))
    if len(ways) == 1:
        ((name, call),) = ways.items()
        return Product(layer, name, call, rows, maps)
    clock = Clock(operands.device)
    with torch.no_grad():
        cost = {name: _seconds(call, clock) for name, call in ways.items()}
    name = min(cost, key=lambda key: cost[key])
    return Product(layer, name, ways[name], rows, maps)


def _seconds(call: Run, clock: Clock) -> float:
    call()
    return min(clock.seconds(call) for _ in range(_TRIES if clock.is_cuda else 1))


def _ways(layer: Layer, operands: Operands, rows: int) -> Iterator[tuple[str, Run]]:
    """Calls that compute the product, by name."""
    module, flow = layer.module, operands.map(layer.out, rows)
    weight = module.weight.detach()
    if isinstance(module, nn.Linear):
        yield "matrix product", lambda: flow @ weight
        return
    weight, given = _last(weight), operands.map(layer.size, rows, filled=False)
    fixed = (module.stride, module.padding, module.dilation)

    def backward(flow: Tensor = flow, weight: Tensor = weight, given: Tensor = given) -> Tensor:
        found: Tensor = torch.ops.aten.convolution_backward(
            flow, given, weight, None, *fixed, module.transposed, module.output_padding, module.groups,
            [True, False, False],
        )[0]  # fmt: skip
        return found

    yield "backward of the convolution", backward
    if len(module.kernel_size) != 2 or module.transposed:
        return
    missing = [
        s - ((o - 1) * t - 2 * p + d * (k - 1) + 1)
        for s, o, t, p, d, k in zip(layer.size[1:], layer.out[1:], *fixed, module.kernel_size, strict=True)
    ]
    if all(0 <= m < t for m, t in zip(missing, module.stride, strict=True)):
        yield (
            "transposed convolution",
            lambda: torch.convolution(flow, weight, None, *fixed, True, missing, module.groups),
        )
    if flow.device.type == "cuda":
        yield from _more_ways(module, flow, weight, given, backward)


def _more_ways(module: Any, flow: Tensor, weight: Tensor, given: Tensor, backward: Callable[..., Tensor]) -> Any:
    """On a GPU: a plain matrix product where the kernel is one pixel, and the other order in memory."""
    if set(module.kernel_size) == set(module.stride) == {1} and set(module.padding) == {0} and module.groups == 1:
        matrix, inner = weight[:, :, 0, 0].contiguous(), flow.permute(0, 2, 3, 1)
        yield "matrix product", lambda: inner @ matrix
    planes = [t.contiguous() for t in (flow, weight, given)]
    yield "backward of the convolution, channels outermost", lambda: backward(*planes)


def _last(t: Tensor) -> Tensor:
    return t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t
