"""Transformers recorded once and repeated for other texts, masks and routes to experts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fastlrp import Explainer
from tests.api.replays import replay_of
from tests.transformers import zoo, zoo_checks

pytestmark = pytest.mark.usefixtures("captured_once")
SLOW = [pytest.param(name, marks=pytest.mark.full) for name in ("t5", "opt", "mamba", "gemma3", "swin", "gpt_oss")]


@pytest.mark.parametrize("name", ["mixtral", *SLOW])
def test_other_texts_take_other_ways(name: str) -> None:
    model, x = zoo.built(name)
    family = zoo.ALL[name]
    explainer = Explainer(model, "attnlrp", output=family.output, backend="torch")
    replay = replay_of(explainer, x, len(family.targets))
    for seed in range(3):
        other, targets = _other(x, seed), [*family.targets[seed % 2 :], *family.targets[: seed % 2]]
        _, relevance = replay(other, targets)
        zoo_checks.equal(zoo_checks.named(relevance), zoo_checks.named(explainer(other, targets)), 1e-12)


def _other(x: Any, seed: int) -> Any:
    if isinstance(x, dict):
        return {name: t.flip(1) if name == "attention_mask" and seed == 1 else _other(t, seed) for name, t in x.items()}
    generator = torch.Generator().manual_seed(seed)
    if x.is_floating_point():
        return torch.randn(x.shape, generator=generator, dtype=x.dtype)
    found: Tensor = torch.randint(3, int(x.max()) + 1, x.shape, generator=generator) if int(x.max()) > 1 else x
    return found
