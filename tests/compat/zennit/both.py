"""One script under both imports, and how far the two results are apart."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.torchvision_models import import_models

import_models()  # zennit imports torchvision

theirs = pytest.importorskip("zennit.attribution", reason="zennit is not installed", exc_type=ImportError)
from zennit.core import Hook  # noqa: E402

from fastlrp.compat import zennit as ours  # noqa: E402

ZENNIT_1 = hasattr(Hook, "_inject_grad_fn")
"""Whether the Zennit that was imported is 1.0.0, or else 0.5.1."""

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}
"""Measured: 3e-15 and 4e-6."""


def difference(got: Tensor, expected: Tensor) -> float:
    """Largest relative difference (2-norm) of a sample; where the expected one is 0, so must be the other."""
    assert got.shape == expected.shape
    got, expected = got.detach().flatten(1), expected.detach().flatten(1)
    assert bool(torch.isfinite(expected).all()), "the oracle has no number here"
    size = expected.norm(dim=1)
    assert bool((size > 0).any()), "the oracle's relevance is zero: nothing is compared"
    assert bool((got[size == 0] == 0).all())
    return float(((got - expected).norm(dim=1)[size > 0] / size[size > 0]).max())


def check(got: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    """Output and relevance of one call agree, in shape, dtype and numbers."""
    for ours_, theirs_ in zip(got, expected, strict=True):
        assert ours_.dtype == theirs_.dtype
        assert difference(ours_, theirs_) <= TOLERANCE[theirs_.dtype]


def attribute(attribution: Any, model: nn.Module, composite: Any, x: Tensor, start: Any) -> tuple[Tensor, Tensor]:
    """One call of that library's attributor."""
    with attribution.Gradient(model, composite) as attributor:
        found: tuple[Tensor, Tensor] = attributor(x, start)
    return found


def agree(model: nn.Module, composite: Any, x: Tensor, start: Any = None) -> Any:
    """Both attributors on the same model and composite must agree; our plan's rules by path, to look at."""
    expected = attribute(theirs, model, composite, x, start)
    attributor = ours.Gradient(model, composite)
    check(attributor(x, start), expected)
    return rules_of(attributor)


def rules_of(attributor: Any) -> dict[str, list[str]]:
    """Module path -> the rules of its operations; operations that only move have none."""
    found: dict[str, list[str]] = {}
    for node, rule in attributor.plan.rules.items():
        found.setdefault(node.path, []).append(repr(rule))
    return found


def seeded(*modules: nn.Module) -> nn.Sequential:
    """In float64 and evaluation mode, with biases and batch-norm statistics that are not those of the start."""
    model = nn.Sequential(*modules).double().eval()
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
        if isinstance(getattr(module, "bias", None), nn.Parameter):
            nn.init.normal_(module.bias, 0, 0.3)
    return model


def state(model: nn.Module) -> Any:
    """What must not change: modules, attributes, modes, hooks; parameters, where they lie, versions and values."""
    modules = [(p, type(m), m.training, set(vars(m)), _hooks(m)) for p, m in model.named_modules()]
    tensors = [(k, v, v.data_ptr(), v._version, v.clone()) for k, v in model.state_dict(keep_vars=True).items()]
    return modules, tensors


def _hooks(module: nn.Module) -> tuple[int, ...]:
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return tuple(len(getattr(module, name)) for name in names)


def same(before: Any, after: Any) -> None:
    """Two states of a model are one."""
    assert before[0] == after[0]
    for (key, tensor, address, version, value), other in zip(before[1], after[1], strict=True):
        assert (key, address, version) == (other[0], other[2], other[3])
        assert tensor is other[1]
        assert torch.equal(value, other[4])
