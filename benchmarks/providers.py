"""Who is measured: fastlrp per backend, Zennit in its two ways, the plain gradient. Same call for all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import fastlrp

LOW, HIGH = -3.0, 3.0
"""Bounds of the box rule, for both libraries."""


@dataclass(frozen=True)
class Provider:
    """``run(x, targets) -> (B, K, *x.shape[1:])``, forward pass included. ``limit``: most targets per measurement."""

    name: str
    run: Callable[[Tensor, list[int]], Tensor]
    limit: int | None = None
    comparable: bool = True


def composite(name: str) -> fastlrp.Composite:
    """fastlrp's preset with the benchmark's parameters."""
    if name == "epsilon_gamma_box":
        return fastlrp.composites.epsilon_gamma_box(LOW, HIGH)
    return fastlrp.composites.resolve(name)


def ours(model: nn.Module, name: str, backend: str) -> Provider:
    """fastlrp; capture happened before."""
    explainer = fastlrp.Explainer(model, composite(name), backend=backend)
    return Provider(f"fastlrp {backend}", lambda x, targets: explainer(x, targets))


def gradient(model: nn.Module) -> Provider:
    """One forward pass, then one backward pass per target."""

    def run(x: Tensor, targets: list[int]) -> Tensor:
        x = x.detach().requires_grad_()
        y = model(x)
        found = [torch.autograd.grad(y[:, t].sum(), x, retain_graph=True)[0] for t in targets]
        return torch.stack(found, 1)

    return Provider("gradient", run, limit=8, comparable=False)


@contextmanager
def _exact_batch_norms(model: nn.Module) -> Iterator[None]:
    norms = [(m, m.eps) for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm, _ in norms:
        norm.eps = 0.0
    try:
        yield
    finally:
        for norm, eps in norms:
            norm.eps = eps


def zennit(model: nn.Module, name: str, family: str, expanded: bool) -> Provider:
    """Zennit with its canonizers: the graph retained over targets, or the batch expanded by them.

    Its canonizers merge a batch norm and leave one behind that still divides by ``sqrt(1 + eps)``, 53 times in a
    ResNet-50. That is taken out for the comparison of outputs; it costs or saves no time.
    """
    import zennit.composites
    import zennit.torchvision

    canonizer = zennit.torchvision.ResNetCanonizer if family == "resnet" else zennit.torchvision.VGGCanonizer
    options: dict[str, Any] = {"canonizers": [canonizer()]}
    if name == "epsilon_gamma_box":
        options.update(low=LOW, high=HIGH)
    rules = zennit.composites.COMPOSITES[name](**options)

    def run(x: Tensor, targets: list[int]) -> Tensor:
        with rules.context(model) as modified, _exact_batch_norms(model):
            if expanded:
                wide = x.expand(len(targets), *x.shape[1:]).clone().requires_grad_()
                y = modified(wide)
                index = torch.tensor(targets).unsqueeze(1)
                initial = torch.zeros_like(y).scatter_(1, index, y.detach().gather(1, index))
                return torch.autograd.grad(y, wide, initial)[0].unsqueeze(0)
            leaf = x.clone().requires_grad_()
            y = modified(leaf)
            found = []
            for t in targets:
                initial = torch.zeros_like(y)
                initial[:, t] = y[:, t].detach()
                found.append(torch.autograd.grad(y, leaf, initial, retain_graph=True)[0])
            return torch.stack(found, 1)

    return Provider("zennit " + ("expanded" if expanded else "retained"), run, limit=4)
