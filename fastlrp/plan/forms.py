"""What a backward step computes, in the terms of the sparse kernels; lowering attaches one to each step it can."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from fastlrp.plan.compact import Compact, Pattern, kernels_for
from fastlrp.plan.geometry import ConvGeometry, PoolGeometry

Way = Literal["dense", "sparse", "sparse bf16"]
"""How a layer is computed. Whether a dense one reads bfloat16 is settled when its plan is made."""


@dataclass(frozen=True, eq=False)
class Affine:
    """``c = sum over products of weight^T (coefficient * arriving)`` through a convolution or linear layer.

    Attributes:
        weights: ``(Co, Ci/groups, *k)`` (``(Ci, Co/groups, *k)`` if transposed), one per product.
        coefficients: slots of u or v, one per product.
        splits: whether a product takes the positive weights of inputs above zero, the negative ones of those below.
        sign: slot of the input whose sign decides, or of False; None if no product splits.
        factors: slots that the two products' results are multiplied with before they are added (the box rule).
        gamma: of two coefficients of the gamma rule: ``W + gamma W+`` or ``W + gamma W-``, by an output's sign.
        geometry: of the convolution.
        arriving, leaving: sizes ``(C, *S)`` of the layer's output and input.
        path: of the module, for those who choose by name.
        work: floating-point operations of one product for one sample and target.
        is_reduced: whether its products may read bfloat16; its dense ones then do.
        is_filtered: whether its dense products go by Winograd's filtering, in float32.
        is_chosen: whether its dense products are of float32 because the input's sign chooses between them.
    """

    weights: tuple[Tensor, ...]
    coefficients: tuple[int, ...]
    splits: tuple[bool, ...]
    sign: int | None
    factors: tuple[int, int] | None
    geometry: ConvGeometry
    arriving: tuple[int, ...]
    leaving: tuple[int, ...]
    work: int
    path: str
    gamma: float | None = None
    is_reduced: bool = False
    is_filtered: bool = False
    is_chosen: bool = False
    _packed: dict[Any, list[Tensor]] = field(default_factory=dict)

    @property
    def kernel(self) -> list[int]:
        return list(self.weights[0].shape[2 : 2 + len(self.leaving) - 1])

    @property
    def groups(self) -> int:
        return self.geometry.groups

    def is_split(self, state: Mapping[int, Any] | Sequence[Any]) -> bool:
        """Whether this sample's input really has two signs."""
        return self.sign is not None and state[self.sign] is not False

    def takes_one_of_two(self, split: bool) -> bool:
        """Whether each output neuron takes one of two weights, so that two coefficients cost one product."""
        # Depthwise, or one channel in and out: the kernel for one weight per tap knows no choice between two of them.
        single = self.arriving[0] == self.groups == self.leaving[0]
        two = self.gamma is not None and len(self.coefficients) == 2
        return two and not split and not single and not self.merges_products

    @property
    def has_pairs(self) -> bool:
        """Whether its sparse products may read bfloat16 too: not depthwise, where there are no pairs to multiply."""
        single = self.groups > 1 and self.arriving[0] == self.groups == self.leaving[0]
        return self.is_reduced and not single and hasattr(kernels_for(self.weights[0]), "sparse_pack_pairs")

    @property
    def is_narrow(self) -> bool:
        """Whether its dense products read bfloat16."""
        return self.is_reduced and not self.is_filtered and not self.is_chosen

    @property
    def merges_products(self) -> bool:
        """Whether the kernels take any number of products at the cost of one, as the CUDA kernels do."""
        return getattr(kernels_for(self.weights[0]), "merges_products", False)

    def reads(self, state: Sequence[Any]) -> dict[int, Any]:
        """The slots that it reads, by number, out of a pass's state."""
        return {slot: state[slot] for slot in self.slots}

    @property
    def slots(self) -> tuple[int, ...]:
        """The slots that it reads: coefficients, factors, and the input whose sign decides."""
        return (*self.coefficients, *(self.factors or ()), *(() if self.sign is None else (self.sign,)))

    def packed(self, split: bool, narrow: bool = False) -> list[Tensor]:
        """Weights as the kernel reads them; input channels twice if they go by the sign of the input.

        Args:
            narrow: whether they are of bfloat16.
        """
        key = split, narrow
        if key not in self._packed:
            parts = [self._pack(w, narrow) for w in self._by_group(split)]
            # Two to choose from lie one behind the other in memory.
            self._packed[key] = list(torch.stack(parts)) if self.takes_one_of_two(split) else parts
        return self._packed[key]

    def copied_bytes(self, narrow: bool = False) -> int:
        """At most of the weights as the kernels read them, whose channels fill whole blocks; not narrow, for the way up
        too."""
        outputs, inputs = self.arriving[0] // self.groups, self.leaving[0] // self.groups
        twice = 2 if self.sign is not None or self.factors is not None else 1
        if len(self.leaving) > 1:
            outputs, inputs = _in_blocks(outputs), _in_blocks(inputs)
        entries = self.groups * outputs * inputs * twice * math.prod(self.kernel)
        products = 1 if self.factors is not None else len(self.weights)
        return products * entries * (2 if narrow else self.weights[0].element_size())

    def _pack(self, weight: Tensor, narrow: bool) -> Tensor:
        kernels = kernels_for(weight)
        if narrow:
            return kernels.sparse_pack_pairs(weight)
        linear = len(self.leaving) == 1
        return weight[0, :, :, 0].contiguous() if linear else kernels.sparse_pack(weight)

    def _by_group(self, split: bool) -> list[Tensor]:
        canonical = [self._canonical(w) for w in self.weights]
        if self.takes_one_of_two(split):
            w, gamma = canonical[0], self.gamma or 0.0
            return [w + gamma * w.clamp(min=0), w + gamma * w.clamp(max=0)]
        if self.factors is not None:
            return [torch.cat(canonical, 2)]
        if not split:
            return [w.clamp(min=0) if s else w for w, s in zip(canonical, self.splits, strict=True)]
        return [
            torch.cat([w.clamp(min=0), w.clamp(max=0)] if s else [w, w], 2)
            for w, s in zip(canonical, self.splits, strict=True)
        ]

    def _canonical(self, weight: Tensor) -> Tensor:
        """``(groups, Co, Ci, taps)``."""
        if self.geometry.transposed:
            return weight.unflatten(0, (self.groups, -1)).flatten(3).transpose(1, 2)
        return weight.flatten(2).unflatten(0, (self.groups, -1))

    def everywhere(self, state: Sequence[Any]) -> Pattern:
        """What a dense result is made of: all neurons, with two signs the one channel of each pair that the sign picks,
        under the box rule both."""
        if self.is_split(state):
            assert self.sign is not None
            x = state[self.sign]
            return Pattern.of(torch.cat([x.clamp(min=0), x.clamp(max=0)], 1))
        channels, *spatial = self.leaving
        batch = state[self.coefficients[0]].shape[0]
        channels = channels if self.factors is None else 2 * channels
        return Pattern.full(batch, (channels, *spatial), self.weights[0].device)

    def relevance_at(
        self, register: Compact, state: Mapping[int, Any], leaving: Pattern, dense: bool,
        initial: Sequence[Any] = (), narrow: bool = False,
    ) -> Tensor | Compact:  # fmt: skip
        """Relevance at ``leaving`` plus what is there already (``initial``), or in a dense tensor.

        Args:
            narrow: whether the products are of bfloat16, with sums of float32.
        """
        split, batch, size = self.is_split(state), register.pattern.batch, self.leaving
        channels = size[0] if dense else None
        factors = [state[slot] for slot in self.factors or ()]
        stride, padding, dilation, transposed, _, groups = self.geometry.arguments
        twice = 2 if split or factors else 1
        coefficients, other = [state[slot] for slot in self.coefficients], None
        if self.takes_one_of_two(split):
            coefficients, other = coefficients[:1], coefficients[1]
        values = kernels_for(register.values).sparse_conv_relevance(
            register.parts, batch, register.count, coefficients, self.packed(split, narrow),
            [self.arriving[0] // groups, twice * size[0] // groups], leaving.tensors, list(size[1:]),
            list(self.arriving[1:]), self.kernel, stride, padding, dilation, transposed, channels, factors,
            initial, other,
        )  # fmt: skip
        return values if dense else Compact(values, leaving, register.count)


@dataclass(frozen=True, eq=False)
class MaxPool:
    """A max-pool: what arrives goes to the winners.

    Attributes:
        index, scale: slots; scale may be None. leaving: sizes ``(C, *S)`` of its input. geometry: of its windows.
    """

    index: int
    scale: int | None
    leaving: tuple[int, ...]
    geometry: PoolGeometry


@dataclass(frozen=True, eq=False)
class AvgPool:
    """An average or sum pool: every entry of a window gets the same share of what arrives.

    Attributes:
        scale: slot or None. shares: ``(*S',)``, what one entry of each window gets; None if all of it.
        arriving, leaving: sizes ``(C, *S')`` and ``(C, *S)`` of its output and input. geometry: of its windows.
    """

    scale: int | None
    shares: Tensor | None
    arriving: tuple[int, ...]
    leaving: tuple[int, ...]
    geometry: PoolGeometry

    @staticmethod
    def shares_of(
        arriving: Sequence[int], leaving: Sequence[int], geometry: PoolGeometry, include_pad: bool,
        divisor: int | None, dtype: torch.dtype,
    ) -> Tensor | None:  # fmt: skip
        """One over the divisor of every window, as PyTorch's average pools have it; sizes without channels."""
        if divisor is not None:
            return None if divisor == 1 else torch.full(tuple(arriving), 1 / divisor, dtype=dtype)
        counts = torch.ones((), dtype=torch.float64)
        for outputs, inputs, kernel, stride, padding in zip(arriving, leaving, *geometry.windows, strict=True):
            start = torch.arange(outputs, dtype=torch.float64) * stride - padding
            stop = (start + kernel).clamp(max=inputs + padding)
            count = stop - start if include_pad else stop.clamp(max=inputs) - start.clamp(min=0)
            counts = counts.unsqueeze(-1) * count.clamp(min=1)
        return counts.reciprocal().to(dtype)

    def scales(self, state: Sequence[Any]) -> Tensor | None:
        """``(B, C, *S')``: what an output's relevance is multiplied with before it goes to each entry."""
        scale: Tensor | None = None if self.scale is None else state[self.scale]
        if self.shares is None or scale is None:
            return scale if self.shares is None else self.shares.expand(1, *self.arriving)
        return scale * self.shares

    def reached(self, values: Tensor) -> Tensor:
        """``(B, C, *S)`` to ``(B, C, *S')``: not zero where any value in the window is not."""
        alive = (values != 0).to(values.dtype)
        sizes = zip(self.arriving[1:], *self.geometry.windows, strict=True)
        for axis, (outputs, kernel, stride, padding) in enumerate(sizes, start=2):
            inputs, last = alive.shape[axis], (outputs - 1) * stride + kernel
            shape = list(alive.shape)
            padded = []
            for length in (padding, max(0, last - padding - inputs)):
                shape[axis] = length
                padded.append(alive.new_zeros(shape))
            whole = torch.cat([padded[0], alive, padded[1]], axis)
            alive = whole.unfold(axis, kernel, stride).narrow(axis, 0, outputs).amax(-1)
        return alive


@dataclass(frozen=True, eq=False)
class Sum:
    """A sum of registers, each times a slot or None."""

    scales: tuple[int | None, ...]


_BLOCK = 64
"""Channels from which on kernels read whole blocks, of so many or twice as many."""


def _in_blocks(channels: int) -> int:
    return channels if channels <= _BLOCK else -(-channels // (2 * _BLOCK)) * 2 * _BLOCK


Form = Affine | MaxPool | AvgPool | Sum
