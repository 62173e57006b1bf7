"""A rule of one's own, for any function of degree one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fastlrp import rules

pytestmark = pytest.mark.usefixtures("own_registry")


class Proportional(rules.Custom):
    """Input times gradient times relevance over output: right for a function of degree one, as ``f(2 x) = 2 f(x)``."""

    def propagate(
        self, forward: Callable[..., Tensor], inputs: tuple[Tensor, ...], output: Tensor, relevance: Tensor
    ) -> tuple[Tensor | None, ...]:
        found = []
        for k in range(relevance.shape[1]):
            points = [x.detach().requires_grad_(True) for x in inputs]
            with torch.enable_grad():
                y = forward(*points)
            s = torch.where(output == 0, 0.0, relevance[:, k] / output)
            gradients = torch.autograd.grad(y, points, s)
            found.append([x * g for x, g in zip(inputs, gradients, strict=True)])
        return tuple(torch.stack(parts, 1) for parts in zip(*found, strict=True))
