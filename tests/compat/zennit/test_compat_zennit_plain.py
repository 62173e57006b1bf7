"""``fastlrp.Explainer`` on a model that Zennit has explained before.

Zennit 1.0.0 leaves merged weights in ``state_dict()`` and ``parameters()``, and the originals as attributes that hide
them, with which ``forward`` computes.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from fastlrp import Explainer
from tests.compat.zennit.both import attribute, seeded, theirs

pytest.importorskip("zennit.rules")
from zennit.canonizers import SequentialMergeBatchNorm
from zennit.composites import EpsilonPlus

TARGET = torch.eye(4, dtype=torch.float64)[[1, 3]]


@pytest.mark.slow
@pytest.mark.parametrize("composite", ["epsilon_plus", "epsilon", "gradient"])
def test_a_model_that_zennit_has_explained(composite: str) -> None:
    with torch.random.fork_rng():
        model = seeded(nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(),
                       nn.Linear(96, 5, bias=False), nn.BatchNorm1d(5), nn.Linear(5, 4))  # fmt: skip
        x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    for layer in (model[1], model[5]):
        nn.init.uniform_(layer.weight, 0.5, 1.5)
    fresh = copy.deepcopy(model)
    before = Explainer(model, composite)
    before(x, 0)
    attribute(theirs, model, EpsilonPlus(canonizers=[SequentialMergeBatchNorm()]), x, TARGET)
    for scale in (1, -2):
        with torch.no_grad():  # The second time it is the weight that forward computes with that changes.
            model[0].weight.mul_(scale)
            fresh[0].weight.mul_(scale)
        torch.testing.assert_close(model(x), fresh(x), rtol=0, atol=0)
        expected = Explainer(fresh, composite)(x, "all")
        for explainer in (Explainer(model, composite), before, Explainer(copy.deepcopy(model), composite)):
            torch.testing.assert_close(explainer(x, "all"), expected, rtol=1e-12, atol=1e-12)
            assert explainer.verify(x, "all").ok
