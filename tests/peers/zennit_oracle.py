"""Relevance as Zennit computes it: one backward pass per target under a composite with canonizers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tests.torchvision_models import import_models

import_models()  # zennit imports torchvision

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@contextmanager
def merged(model: nn.Module, composite: Any) -> Iterator[nn.Module]:
    """The model under the composite. Merged batch norms get eps 0.

    The canonizer of Zennit 0.5.1 makes a merged batch norm the identity but for its eps, which divides by
    ``sqrt(1 + eps)`` once more: the model would then compute something else (5e-6 per layer).
    """
    with _restored(model), composite.context(model) as modified, _without_eps(modified):
        yield modified


@contextmanager
def merged_batch_norm(model: nn.Module) -> Iterator[nn.Module]:
    """The model with its batch norms merged by Zennit, and no hooks."""
    from zennit.canonizers import SequentialMergeBatchNorm

    with _restored(model):
        instances = SequentialMergeBatchNorm().apply(model)
        try:
            with _without_eps(model):
                yield model
        finally:
            for instance in instances:
                instance.remove()


@contextmanager
def _restored(model: nn.Module) -> Iterator[None]:
    """Puts back the tensors of the model: Zennit 1.0.0 leaves merged weights registered, and hides them."""
    before = [(m, table, dict(table)) for m in model.modules() for table in (m._parameters, m._buffers)]
    try:
        yield
    finally:
        for module, table, items in before:
            for name in items:
                vars(module).pop(name, None)
            table.clear()
            table.update(items)


@contextmanager
def _without_eps(model: nn.Module) -> Iterator[None]:
    merged = [m for m in model.modules() if isinstance(m, BATCH_NORMS) and bool((m.running_var == 1).all())]
    before = [module.eps for module in merged]
    for module in merged:
        module.eps = 0.0
    try:
        yield
    finally:
        for module, eps in zip(merged, before, strict=True):
            module.eps = eps


def relevance(model: nn.Module, x: Tensor, targets: Sequence[int], composite: Any, initial: str = "output") -> Tensor:
    """``(B, K, *x.shape[1:])`` for outputs ``(B, C)``, starting from the target's score or from one."""
    results = []
    with merged(model, composite) as modified:
        for target in targets:
            point = x.clone().requires_grad_(True)
            output = modified(point)
            start = torch.zeros_like(output)
            start[:, target] = output[:, target].detach() if initial == "output" else 1.0
            results.append(torch.autograd.grad(output, point, start)[0])
    return torch.stack(results, 1)


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """Largest ``|ours - theirs| / |theirs|`` (2-norm) over samples and targets; where theirs is 0, ours must be too."""
    assert ours.shape == theirs.shape
    difference, size = (ours - theirs).flatten(2).norm(dim=2), theirs.flatten(2).norm(dim=2)
    something = size > 0
    assert float(something.float().mean()) > 0.5, "the oracle's relevance is mostly zero: nothing is compared"
    assert bool((difference[~something] == 0).all())
    return float((difference[something] / size[something]).max())
