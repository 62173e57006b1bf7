"""What was probably meant: errors for mistakes that newcomers make say what to write instead."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import fastlrp
from fastlrp import Composite, Explainer, composites, rules
from fastlrp.targets.class_names import Labels
from tests.api.models import make, relative_error, samples


@pytest.mark.parametrize(
    ("composite", "message"),
    [
        ("epsilonplus", r"expected one of .* or a Composite. Did you mean 'epsilon_plus'"),
        ("EpsilonPlus", r"Did you mean 'epsilon_plus'\?$"),
        ("LRP", r"'LRP': expected one of .*, or a Composite(. Did you mean 'lrp0'|$)"),
        ("xyz", "mamba_lrp, or a Composite$"),
        (composites.gamma, r"got function: call it, gamma\(\), or give its name, 'gamma'"),
        (rules.ZPlus(), r"got ZPlus, a rule: fastlrp.composites.uniform\(ZPlus\(.*\)\) puts it on all layers"),
        (rules.Gamma, r"a rule: fastlrp.composites.uniform\(Gamma\(\)\)"),
        (
            [(nn.Linear, rules.Epsilon())],
            r"got list: of entries \(matcher, rule\), fastlrp.Composite\(tuple\(entries\)\) \|",
        ),
    ],
)
def test_composites(composite, message):
    with pytest.raises((TypeError, ValueError), match=message):
        Explainer(make("mlp"), composite)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (((nn.Linear, rules.Gamma),), r": Gamma is a class, give a rule, Gamma\(…\)"),
        (((nn.Linear, "gamma"),), ": rules are objects of fastlrp.rules, not text, got 'gamma'"),
        ((nn.Linear, rules.Gamma()), "put each matcher and its rule into parentheses of their own"),
        ({nn.Linear: rules.Gamma()}, "parentheses of their own"),
    ],
)
def test_entries(entries, message):
    with pytest.raises(TypeError, match=rf"a composite's entry is \(matcher, rule\), got .*{message}"):
        Composite(entries)


def test_a_composite_beside_a_name():
    mine = Composite(((nn.Linear, rules.Gamma()),))
    with pytest.raises(TypeError, match=r"got 'epsilon_plus': fastlrp.composites.preset\('epsilon_plus'\) makes"):
        mine | "epsilon_plus"
    with pytest.raises(TypeError, match=r"on the right of \| stands a Composite, got ZPlus"):
        mine | rules.ZPlus()


def test_the_text_of_an_own_rule():
    class Scaled(rules.Custom):
        def __init__(self):
            self.factor, self.mask = 2.0, torch.ones(3)

        def propagate(self, forward, inputs, output, relevance):
            return (relevance,)

    composite = composites.epsilon().with_entries((nn.ReLU, Scaled()))
    explainer = Explainer(make("mlp"), composite, example_inputs=samples("mlp"))
    assert "Scaled(factor=2.0) " in str(explainer.plan)


def test_the_text_of_a_rule_has_no_more_digits_than_people_read():
    assert str(rules.Gamma(0.1 + 0.2)) == "Gamma(gamma=0.3, stabilizer=1e-06, zero_bias=False)"
    assert str(rules.ZPlus(9.999950000374997e-07)) == "ZPlus(stabilizer=9.99995e-07, zero_bias=False)"
    assert str(rules.Epsilon(0.1234567)) == "Epsilon(epsilon=0.1234567, zero_bias=False)"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"0.weight": torch.ones(2)}, r"got dict, the weights of a model: .*model.load_state_dict\(weights\)"),
        (nn.ReLU, "got type: ReLU is a class, make a model of it"),
        ("resnet50", "got str: the model is the first argument"),
        (lambda x: x, "got function: write a module whose forward calls it"),
        (3, "got int$"),
    ],
)
def test_models(model, message):
    with pytest.raises(TypeError, match=f"model must be a torch.nn.Module, {message}"):
        Explainer(model)


def test_a_name_where_no_names_are_known():
    with pytest.raises(ValueError, match=r"targets 'cat' is not known: .* by its name where .*labels=\[…\]"):
        fastlrp.explain(make("mlp"), samples("mlp"), "cat")


def test_a_mask_of_floats():
    model, x = nn.Conv2d(1, 2, 1).eval(), torch.rand(2, 1, 4, 4)
    with pytest.raises(ValueError, match=r"at=Tensor \(2, 4, 4\) of torch.float32: .*write mask == 1 or mask > 0.5$"):
        fastlrp.explain(model, x, 0, at=torch.ones(2, 4, 4))
    with pytest.raises(ValueError, match=r"at=Tensor \(4, 3\) of torch.float32: .* a bool mask \(4, 4\)$"):
        fastlrp.explain(model, x, 0, at=torch.ones(4, 3))


def test_layers_that_are_modules():
    model = make("mlp")
    with pytest.raises(TypeError, match=r"such as '0': paths are those of model.named_modules\(\)"):
        Explainer(model)(samples("mlp"), 0, layers=[model[0]])


def test_where_an_input_is_not_finite():
    x = samples("mlp").clone()
    x[1, 0] = torch.nan
    with pytest.raises(ValueError, match=r"x contains 1 NaN or infinite entries: .* They are in sample 1$"):
        fastlrp.explain(make("mlp"), x, 0)
    x[:, 1] = torch.inf
    with pytest.raises(ValueError, match=r"They are in samples 0, 1"):
        fastlrp.explain(make("mlp"), x, 0)


def test_a_composite_without_rules_for_what_presets_know():
    only = Composite(((nn.Linear, rules.Epsilon()),))
    with pytest.raises(fastlrp.UnsupportedOperationError, match=r"composite \| fastlrp.composites.epsilon_plus\(\)"):
        fastlrp.explain(make("mlp"), samples("mlp"), 0, only)


def test_a_rule_for_an_operation_that_no_graph_can_have():
    with pytest.raises(ValueError, match=r"unknown operation 'digama': .*'digamma'"):
        fastlrp.register_rule("digama", rules.Pass())


def test_relevance_of_the_shape_of_the_output(monkeypatch):
    monkeypatch.setattr("fastlrp.targets.spellings._WARNED", set())
    model, x = make("mlp"), samples("mlp")
    rows = torch.eye(model(x).shape[1], dtype=x.dtype)[: len(x)]
    with pytest.warns(UserWarning, match=r"is taken as \d targets for every sample.*targets.unsqueeze\(1\)"):
        found = fastlrp.explain(model, x, rows)
    monkeypatch.setattr("fastlrp.targets.spellings._WARNED", set())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shared = fastlrp.explain(model, x, rows.expand(len(x), *rows.shape))
        own = fastlrp.explain(model, x, rows.unsqueeze(1))
    assert relative_error(found, shared) == 0
    assert relative_error(own[1, 0], shared[1, 1]) == 0


def test_what_topk_returns_in_the_place_of_classes():
    model, x = make("mlp"), samples("mlp")
    with pytest.raises(TypeError, match=r"targets must be .*, got what topk returns: give its .indices"):
        fastlrp.explain(model, x, model(x).detach().topk(2))
    maps, images = nn.Sequential(nn.Conv2d(3, 4, 1)).eval(), torch.rand(2, 3, 5, 6)
    with pytest.raises(ValueError, match=r"at=tensor\(\[\[1, 2\],\n +\[3, 4\]\]\): the output .* a place is a tuple"):
        fastlrp.explain(maps, images, 0, at=torch.tensor([[1, 2], [3, 4]]))


def test_a_batch_of_a_data_loader():
    model, x = make("mlp"), samples("mlp")
    with pytest.raises(
        fastlrp.CaptureError, match=r"give x\[0\]. If x\[1\] are the samples' classes, .*each\(x\[1\]\)"
    ):
        fastlrp.explain(model, [x, torch.arange(len(x))], 0)


def test_names_that_are_close():
    with pytest.raises(ValueError, match=r"no class is called 'taby': did you mean 'tabby'\?"):
        Labels(["tabby", "dog"]).number("taby")
