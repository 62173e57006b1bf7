"""Registers times factors, and their sums where several readers of one value send relevance to it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def multiply(register: Tensor, factor: Tensor) -> Tensor:
    """``(B, K, …) * (B, …)``."""
    return register * factor.unsqueeze(1)


def in_one_axis(register: Tensor) -> Tensor:
    """``(B, K, …)`` as ``(B, K, entries)``, also of a value that is one number per sample and has no axis."""
    return register.flatten(2) if register.dim() > 2 else register.unsqueeze(2)


@dataclass(frozen=True)
class Total:
    """The sum of ``count`` registers, the first ``plain`` of them as they are, the others times a factor each.

    Operands are the registers, then the factors.
    """

    count: int
    plain: int

    def __call__(self, *operands: Tensor) -> Tensor:
        flows, factors = operands[: self.count], operands[self.count :]
        result = flows[0] if self.plain else multiply(flows[0], factors[0])
        for flow in flows[1 : self.plain]:
            result = result + flow
        start = max(self.plain, 1)
        for flow, factor in zip(flows[start:], factors[start - self.plain :], strict=True):
            result = torch.addcmul(result, flow, factor.unsqueeze(1))
        return result

    def into(self, position: int, *operands: Tensor) -> Tensor:
        """The same sum, written into the plain register at ``position``."""
        flows, factors = operands[: self.count], operands[self.count :]
        result = flows[position]
        for number, flow in enumerate(flows[: self.plain]):
            if number != position:
                result.add_(flow)
        for flow, factor in zip(flows[self.plain :], factors, strict=True):
            result.addcmul_(flow, factor.unsqueeze(1))
        return result

    def up(self, t: Tensor, *factors: Tensor) -> tuple[Tensor, ...]:
        """The transposed map: what arrives from below, for each summand."""
        return (*[t] * self.plain, *(multiply(t, factor) for factor in factors))
