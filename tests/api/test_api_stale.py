"""A record answers for the weights and the input of its own forward pass, or refuses."""

import pytest
import torch

import fastlrp
from fastlrp.run import lent
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


@pytest.mark.parametrize("lrp_aware", [True, False])
def test_a_small_output_is_the_callers(lrp_aware):
    explainer, x = fastlrp.Explainer(make("convnet")), samples("convnet")
    expected = explainer(x, [0, 1])
    with explainer.forward(x, lrp_aware=lrp_aware) as record:
        output = record.output
        assert record.output is output
        output.mul_(3)
        record.scores.zero_()
        other = record.under("epsilon_plus")
        assert torch.equal(record.relevance([0, 1]), expected)
        assert torch.equal(other.relevance([0, 1]), expected)
    assert bool((record.output == 0).all()), "the closed record keeps what it handed out"


@pytest.mark.parametrize("write", [lambda t: t.mul_(3), lambda t: t.numpy().__imul__(3)])
def test_a_large_output_is_watched(write, monkeypatch):
    monkeypatch.setattr(lent, "COPIED_BYTES", 16)
    explainer, x = fastlrp.Explainer(make("convnet")), samples("convnet")
    for hand in (lambda record, other: record, lambda record, other: other):
        record = explainer.forward(x)
        other = record.under("epsilon")
        record.relevance(0)
        output = hand(record, other).output
        assert record.output is output
        record.relevance(0)
        write(output)
        for asked in (record, other):
            with pytest.raises(RuntimeError, match=r"record.output was changed in place.*record.output.clone\(\)"):
                asked.relevance(0)


def test_every_output_of_the_model_counts():
    class Two(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = torch.nn.Linear(4, 5), torch.nn.Linear(5, 3)

        def forward(self, x):
            hidden = self.a(x).relu()
            return {"logits": self.b(hidden), "hidden": hidden}

    explainer, x = fastlrp.Explainer(Two().double().eval(), output="logits"), samples("mlp")
    expected = explainer(x, [0, 1])
    with explainer.forward(x, lrp_aware=False) as record:
        record.output["hidden"].zero_()
        assert torch.equal(record.relevance([0, 1]), expected)
        assert record.scores is record.output["logits"]


def test_an_input_changed_through_numpy():
    array = samples("convnet").numpy().copy()
    record = fastlrp.Explainer(make("convnet")).forward(torch.from_numpy(array))
    record.relevance([0])
    array[0] = 0
    for _ in range(2):
        with pytest.raises(RuntimeError, match="input was changed in place"):
            record.relevance([0])


def test_what_relevance_gives_is_the_callers():
    explainer, x = fastlrp.Explainer(make("convnet")), samples("convnet")
    with explainer.forward(x) as record:
        first = record.relevance([0, 1], layers="all")
        kept = {name: part.clone() for name, part in first.items()}
        for part in first.values():
            part.zero_()
        again = record.relevance([0, 1], layers="all")
        assert all(torch.equal(again[name], kept[name]) for name in kept)
