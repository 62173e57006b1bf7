"""Explainers and composites go through pickle, deep copies and spawned workers; what stays in one process says so."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import fastlrp
from fastlrp import composites, rules
from fastlrp.composites import Composite, first, kind, last, operation, span


def doubled(out):
    return out * 2


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(18, 4)).eval()


X = torch.linspace(-1, 2, 50).reshape(2, 1, 5, 5)


@pytest.mark.each_value
@pytest.mark.parametrize("again", [copy.deepcopy, copy.copy, lambda e: pickle.loads(pickle.dumps(e))])
@pytest.mark.parametrize("called", [False, True])
def test_a_copy_gives_the_same_numbers(again, called):
    explainer = fastlrp.Explainer(small(), "epsilon_alpha2_beta1_flat", output=doubled, paths="dense", max_memory="1GB")
    expected = fastlrp.explain(small(), X, "all", "epsilon_alpha2_beta1_flat", output=doubled)
    if called:
        explainer(X, 0)
    found = again(explainer)
    assert torch.equal(found(X, "all"), expected)
    assert found.max_memory == 1 << 30
    assert found.backend == "auto"
    assert found.composite == explainer.composite
    assert (found.model is explainer.model) == (again is copy.copy)


def test_a_deep_copy_has_a_model_of_its_own():
    explainer = fastlrp.Explainer(small(), example_inputs=X)
    before = explainer(X, 0)
    copied = copy.deepcopy(explainer)
    with torch.no_grad():
        copied.model[3].weight.mul_(-1)
    assert torch.equal(explainer(X, 0), before)
    assert not torch.equal(copied(X, 0), before)


def test_an_output_that_cannot_be_pickled_is_named():
    explainer = fastlrp.Explainer(small(), output=lambda out: out * 2)
    assert torch.equal(copy.deepcopy(explainer)(X, 0), explainer(X, 0))
    with pytest.raises(pickle.PicklingError, match=r"the function given as output= cannot be pickled.*top of a module"):
        pickle.dumps(explainer)


@pytest.mark.parametrize("name", ["epsilon_plus", "gradient", "guided_backprop", "attnlrp", "cp_lrp", "deep_taylor"])
def test_presets_go_through_pickle(name):
    if name not in composites.PRESETS:
        pytest.skip("no such preset")
    composite = composites.resolve(name)
    found = pickle.loads(pickle.dumps(composite))
    assert found == composite
    assert hash(found) == hash(composite)
    assert str(found) == str(composite)


def test_matchers_mean_the_same_after_pickling():
    entries = (
        (nn.Conv2d, rules.ZPlus()), ((nn.Linear,), rules.Epsilon()), ("3", rules.Epsilon(0.5)),
        (kind("conv"), rules.ZPlus()), (operation("relu"), rules.Pass()), (first("conv"), rules.Flat()),
        (last(), rules.Epsilon(0.1)), (span(1, 2), rules.Epsilon(0.2)), (doubled, rules.Pass()),
    )  # fmt: skip
    composite = Composite(entries)
    assert pickle.loads(pickle.dumps(composite)) == composite
    assert copy.deepcopy(composite) == composite
    assert [str(m) for m, _ in entries[3:8]] == [
        "kind('conv')",
        "operation('relu')",
        "first('conv')",
        "last()",
        "span(1, 2)",
    ]


def test_a_predicate_that_cannot_be_pickled_is_named():
    composite = Composite(((kind("conv"), rules.ZPlus()), (lambda layer: True, rules.Epsilon())), name="mine")
    assert copy.deepcopy(composite) == composite
    with pytest.raises(pickle.PicklingError, match="matcher of entry 1 of the composite 'mine' cannot be pickled"):
        pickle.dumps(composite)


@pytest.mark.parametrize("again", [copy.deepcopy, pickle.dumps])
def test_records_and_plans_say_what_to_send(again):
    explainer = fastlrp.Explainer(small())
    record = explainer.forward(X)
    with pytest.raises(TypeError, match=r"ForwardRecord cannot be .*the explainer and the input"):
        again(record)
    with pytest.raises(TypeError, match=r"Plan cannot be .*its explainer, which captures anew"):
        again(explainer.plan)


def test_a_verification_is_data():
    found = fastlrp.Explainer(small()).verify(X, "all")
    assert pickle.loads(pickle.dumps(found)) == found


class Explained(torch.utils.data.Dataset):
    def __init__(self, explainer):
        self.explainer = explainer

    def __len__(self):
        return len(X)

    def __getitem__(self, i):
        return self.explainer(X[i : i + 1], 1)[0]


@pytest.mark.slow
def test_workers_with_spawn():
    explainer = fastlrp.Explainer(small())
    loader = torch.utils.data.DataLoader(
        Explained(explainer), batch_size=2, num_workers=1, multiprocessing_context="spawn"
    )
    torch.testing.assert_close(next(iter(loader)), explainer(X, 1))
