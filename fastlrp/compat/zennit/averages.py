"""Zennit's attributors that average relevance over variations of the input: SmoothGrad and integrated gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fastlrp.compat.zennit.attribution import Gradient
from fastlrp.compat.zennit.question import Question, Start


class _Iterated(Gradient):
    """An average of relevance over variations of the input."""

    def __init__(self, *arguments: Any, n_iter: int = 20, **options: Any) -> None:
        super().__init__(*arguments, **options)
        if not isinstance(n_iter, int) or n_iter < 1:
            raise ValueError(f"n_iter must be a whole number >= 1, got {n_iter!r}")
        self.n_iter = n_iter

    def _average(self, inputs: Iterator[Tensor], attr_output_fn: Start) -> tuple[Tensor, Tensor]:
        """The last input's output, and the mean of all relevance."""
        if isinstance(attr_output_fn, Question) and attr_output_fn.layers is not None:
            raise TypeError(f"{type(self).__name__} averages the input's relevance: layers= is for Gradient")
        result: Tensor | None = None
        for point in inputs:
            output, relevance = self.grad(point, attr_output_fn)
            result = relevance / self.n_iter if result is None else result + relevance / self.n_iter
        assert result is not None
        return output, result


class SmoothGrad(_Iterated):
    """The mean over noisy copies of the input, the last of them the input itself.

    Args:
        model, composite, attr_output, create_graph, retain_graph: see :class:`Gradient`.
        noise_level: standard deviation of the noise as a share of each sample's range.
        n_iter: number of copies.

    Example::

        from fastlrp.compat.zennit import SmoothGrad

        with SmoothGrad(model, n_iter=4) as attributor:
            output, gradients = attributor(x, torch.eye(10)[[3, 3]])

    Source: Smilkov et al. 2017.
    """

    def __init__(
        self,
        model: nn.Module,
        composite: Any = None,
        attr_output: Tensor | Start | None = None,
        create_graph: bool = False,
        retain_graph: bool | None = None,
        noise_level: float = 0.1,
        n_iter: int = 20,
    ) -> None:
        super().__init__(model, composite, attr_output, create_graph, retain_graph, n_iter=n_iter)
        self.noise_level = noise_level

    def forward(self, input: Tensor, attr_output_fn: Start) -> tuple[Tensor, Any]:
        """See :meth:`Gradient.forward`; draws from torch's global generator as Zennit does."""
        x = input.detach()
        axes = tuple(range(1, x.dim()))
        spread = self.noise_level * (x.amax(axes, keepdim=True) - x.amin(axes, keepdim=True))

        def noisy() -> Iterator[Tensor]:
            for _ in range(self.n_iter - 1):
                yield x + torch.randn_like(x) * spread
            yield x

        return self._average(noisy(), attr_output_fn)


class IntegratedGradients(_Iterated):
    """The mean along the straight path from a baseline to the input, times their difference.

    Args:
        model, composite, attr_output, create_graph, retain_graph: see :class:`Gradient`.
        baseline_fn: input -> baseline; zeros by default.
        n_iter: number of steps; the last is the input.

    Example::

        from fastlrp.compat.zennit import IntegratedGradients

        with IntegratedGradients(model, n_iter=4) as attributor:
            output, gradients = attributor(x, torch.eye(10)[[3, 3]])

    Source: Sundararajan et al. 2017.
    """

    def __init__(
        self,
        model: nn.Module,
        composite: Any = None,
        attr_output: Tensor | Start | None = None,
        create_graph: bool = False,
        retain_graph: bool | None = None,
        baseline_fn: Callable[[Tensor], Tensor] | None = None,
        n_iter: int = 20,
    ) -> None:
        super().__init__(model, composite, attr_output, create_graph, retain_graph, n_iter=n_iter)
        self.baseline_fn = torch.zeros_like if baseline_fn is None else baseline_fn

    def forward(self, input: Tensor, attr_output_fn: Start) -> tuple[Tensor, Any]:
        """See :meth:`Gradient.forward`."""
        x = input.detach()
        baseline = self.baseline_fn(x).detach()
        # Single precision whatever the input is, as in Zennit.
        shares = torch.linspace(1 / self.n_iter, 1.0, self.n_iter)
        steps = (baseline + share * (x - baseline) for share in shares)
        output, mean = self._average(steps, attr_output_fn)
        return output, mean * (x - baseline)
