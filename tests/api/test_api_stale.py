"""A record answers for the weights and the input of its own forward pass, or refuses."""

import pytest
import torch

import fastlrp
from tests.api.models import make, samples


def test_weights_changed_after_the_forward_pass():
    model = make("convnet")
    record = fastlrp.Explainer(model).forward(samples("convnet"))
    before = record.relevance([0])
    with torch.no_grad():
        next(model.parameters()).mul_(1.5)
    with pytest.raises(RuntimeError, match="weights have changed since this record's forward pass"):
        record.relevance([0])
    assert bool(before.isfinite().all())


def test_input_changed_in_place_after_the_forward_pass():
    x = samples("convnet").clone()
    record = fastlrp.Explainer(make("convnet")).forward(x)
    record.relevance([0])
    x.mul_(2)
    with pytest.raises(RuntimeError, match="input was changed in place"):
        record.relevance([0])


def test_refresh_sees_what_leaves_no_trace():
    model, x = make("mlp"), samples("mlp")
    explainer = fastlrp.Explainer(model)
    explainer(x, [0])
    for parameter in model.parameters():
        parameter.data.mul_(-2)
    explainer.refresh()
    assert torch.equal(explainer(x, [0]), fastlrp.explain(model, x, [0]))
