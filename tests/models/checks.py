"""What must hold for every model, whatever it is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

import fastlrp
from fastlrp import Explainer
from fastlrp.run import plans
from tests.models.oracle import relative_error


@contextmanager
def unmodified(model: nn.Module) -> Iterator[None]:
    """The model's tensors, modules, hooks and modes are the same afterwards."""

    def look() -> list[Any]:
        hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        return [
            (name, type(m), m.training, *(len(getattr(m, h)) for h in hooks), sorted(k for k in vars(m) if k[0] != "_"))
            for name, m in model.named_modules()
        ]

    tensors = [(key, t, t.detach().clone(), t.requires_grad) for key, t in model.state_dict(keep_vars=True).items()]
    before = look()
    yield
    assert look() == before
    now = model.state_dict(keep_vars=True)
    assert list(now) == [key for key, *_ in tensors]
    for key, tensor, copied, requires_grad in tensors:
        assert now[key] is tensor, key
        assert torch.equal(tensor, copied), key
        assert tensor.requires_grad == requires_grad, key
        assert tensor.grad is None, key


@contextmanager
def captures() -> Iterator[list[Any]]:
    """A list that gets one entry for every capture."""
    made: list[Any] = []
    original = plans.capture

    def counting(*args: Any, **kwargs: Any) -> Any:
        made.append(args)
        return original(*args, **kwargs)

    with mock.patch.object(plans, "capture", counting):
        yield made


def other_layout(x: Tensor) -> Tensor:
    """The same numbers, strided differently: channels-last, or the last axis outermost of a sample."""
    if x.dim() in (4, 5):
        return x.to(memory_format=torch.channels_last if x.dim() == 4 else torch.channels_last_3d)
    return x.movedim(-1, 1).contiguous().movedim(1, -1) if x.dim() == 3 else x.t().contiguous().t()


def equal_outputs(ours: Any, theirs: Any) -> None:
    """Bit for bit, tensor by tensor."""
    ours, theirs = (torch.utils._pytree.tree_leaves(vars(o) if hasattr(o, "__dict__") else o) for o in (ours, theirs))
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.equal(mine, other) if isinstance(other, Tensor) else mine == other


def check_model(
    model: nn.Module,
    x: Tensor,
    targets: Any = (0, 2),
    composite: Any = "epsilon_plus",
    tolerance: float = 1e-5,
    verify: bool = True,
    **options: Any,
) -> tuple[Explainer, Tensor]:
    """One model under one composite, in every way that must not matter.

    Args:
        x: at least two samples.
        targets: classes, the same for all samples.
        tolerance: relative, between computations in another order or memory layout; nothing else may differ.

    Returns:
        the explainer and ``(B, K, *x.shape[1:])``.
    """
    targets = list(targets)
    with unmodified(model), captures() as made:
        explainer = fastlrp.Explainer(model, composite, **options)
        with explainer.forward(x) as record:
            with torch.no_grad():
                equal_outputs(record.output, model(x))
            relevance = record.relevance(targets)
            single = torch.cat([record.relevance(target) for target in targets], 1)
        assert relevance.shape == (x.shape[0], len(targets), *x.shape[1:])
        assert relevance.dtype == x.dtype
        assert bool(torch.isfinite(relevance).all())
        assert not relevance.requires_grad
        assert bool((relevance != 0).any())
        assert relative_error(single, relevance) <= tolerance
        with explainer.forward(x, lrp_aware=False) as record:
            assert relative_error(record.relevance(targets), relevance) <= tolerance
        assert relative_error(explainer(other_layout(x), targets), relevance) <= tolerance
        assert relative_error(explainer(x[:1], targets), relevance[:1]) <= tolerance
        more = explainer(torch.cat([x, x.flip(0), x]), targets)
        assert relative_error(more[: len(x)], relevance) <= tolerance
        assert relative_error(more[len(x) : 2 * len(x)], relevance.flip(0)) <= tolerance
        if verify:
            report = explainer.verify(x, targets)
            assert report.ok, str(report)
            print(report)
        assert len(made) == 1
    return explainer, relevance


def new_weights_are_followed(
    explainer: Explainer, x: Tensor, composite: str, changes: list[tuple[Callable[[float], Any], float]]
) -> None:
    """Relevance after the changes in place is another than before, and that of a new explainer."""
    before = explainer(x, [0])
    with torch.no_grad():
        for change, number in changes:
            change(number)
    after = explainer(x, [0])
    assert relative_error(before, after) > 0.1
    assert relative_error(after, Explainer(explainer.model, composite)(x, [0])) < 1e-14
