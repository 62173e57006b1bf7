"""A rule that somebody has written as an autograd function."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastlrp.rules.custom import Custom


class AutogradFunction(Custom):
    """A rule written as a ``torch.autograd.Function`` whose backward takes relevance and gives relevance.

    Args:
        apply: of the function, called with the operation's activation inputs, ``MyFunction.apply`` or
            ``lambda x: MyFunction.apply(x, weight)``. It must treat each sample alone: samples and targets are one
            axis.
        linear_in_relevance: whether what backward returns is linear in what it gets; see :class:`Custom`.

    Raises:
        ValueError: when used, if the function's result has another shape than the operation's.
    """

    def __init__(self, apply: Callable[..., Tensor], linear_in_relevance: bool = False) -> None:
        self.apply = apply
        self.linear_in_relevance = linear_in_relevance

    def propagate(
        self, forward: Callable[..., Tensor], inputs: tuple[Tensor, ...], output: Tensor, relevance: Tensor
    ) -> tuple[Tensor | None, ...]:
        """What the function's backward makes of the relevance, all targets at once."""
        batch, targets = relevance.shape[:2]
        with torch.inference_mode(False), torch.enable_grad():
            wide = [x.clone().unsqueeze(1).expand(batch, targets, *x.shape[1:]).flatten(0, 1) for x in inputs]
            wide = [x.clone().requires_grad_() for x in wide]
            y = self.apply(*wide)
            if y.shape != (batch * targets, *output.shape[1:]):
                raise ValueError(
                    f"the autograd function gives {tuple(y.shape[1:])} for each sample, and the operation that it is a "
                    f"rule for {tuple(output.shape[1:])}"
                )
            own = relevance.reshape(y.shape).clone(memory_format=torch.contiguous_format)
            found = torch.autograd.grad(y, wide, own, allow_unused=True)
        return tuple(None if part is None else part.unflatten(0, (batch, targets)) for part in found)
