"""Which rule a composite gives to which layer."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastlrp import Composite, Explainer, composites, rules
from fastlrp.composites import first, kind, last, span
from tests.api.models import make, relative_error, samples, shared
from tests.api.oracle import one_hot_scores, walk

# Measured: 6e-16.
TIGHT = 1e-12


def rules_of(composite, model=None, x=None):
    """Path -> rule, as the plan has it."""
    model = make("convnet") if model is None else model
    explainer = Explainer(model, composite, example_inputs=samples("convnet") if x is None else x)
    return {node.path: rule for node, rule in explainer.plan.rules.items() if node.kind in ("conv", "linear")}


A, B, C = rules.Gamma(0.1), rules.ZPlus(), rules.AlphaBeta()
REST = composites.epsilon()


def one(matcher, rule=A):
    return REST.with_entries((matcher, rule))


class Wide(nn.Conv2d):
    """A user's own subclass."""


@pytest.mark.parametrize(
    ("matcher", "layers"),
    [
        (nn.Conv2d, "03"),
        (nn.Linear, "6"),
        ((nn.Conv2d, nn.Linear), "036"),
        ((nn.Conv1d, nn.Conv3d), ""),
        (kind("conv"), "03"),
        (kind("conv", "linear"), "036"),
        ("0", "0"),
        ("[03]", "03"),
        ("[!1245]", "036"),
        (first(), "0"),
        (first("conv"), "0"),
        (first("linear"), "6"),
        (first("conv", "linear"), "0"),
        (last(), "6"),
        (span(0), "036"),
        (span(1), "36"),
        (span(0, 2), "03"),
        (span(-1), "6"),
        (span(-3, -1), "03"),
        (span(1, 1), ""),
        (span(0, 100), "036"),
        (lambda layer: layer.index is not None and layer.index % 2 == 0, "06"),
        (lambda layer: layer.path == "3" and layer.module_type is nn.Conv2d and layer.operation == "conv2d", "3"),
        (lambda layer: layer.count == 3 and layer.kind_index == 1 and layer.kind == "conv", "3"),
    ],
)
def test_matching(matcher, layers):
    found = rules_of(one(matcher))
    assert {path for path, rule in found.items() if rule is A} == set(layers)
    assert {path for path, rule in found.items() if rule == rules.Epsilon()} == set("036") - set(layers)


def test_matching_by_type_takes_subclasses_and_functional_calls():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 3, 3, 3))
            self.own = Wide(4, 4, 3)
            self.table = nn.ParameterList([nn.Parameter(torch.randn(5, 64))])

        def forward(self, x):
            x = F.relu(F.conv2d(x, self.weight))
            return F.linear(F.relu(self.own(x)).flatten(1), self.table[0])

    torch.manual_seed(0)
    model, x = Functional().double().eval(), samples("convnet")

    def names(matcher):
        explainer = Explainer(model, one(matcher), example_inputs=x)
        return [(node.path, node.kind) for node, rule in explainer.plan.rules.items() if rule is A]

    with torch.no_grad():
        like = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(),
                             nn.Linear(64, 5, bias=False)).double().eval()  # fmt: skip
        like[0].weight.copy_(model.weight)
        like[2].load_state_dict(model.own.state_dict())
        like[5].weight.copy_(model.table[0])
    composite = Composite(((nn.Conv2d, A), (nn.Linear, C), *composites.epsilon().entries))
    found = Explainer(model, composite)(x, "all")
    expected = walk(like, x, one_hot_scores(like(x)), lambda i, n: A if i < 2 else C)["input"]
    assert relative_error(found, expected) <= TIGHT
    assert names(Wide) == [("own", "conv")]
    assert names(nn.Conv2d) == [("", "conv"), ("own", "conv")]
    assert names(nn.Linear) == [("", "linear")]
    assert names(lambda layer: layer.module_type is Functional and layer.like is nn.Linear) == [("", "linear")]


def test_functional_relu_is_matched_by_its_module():
    """Guided backprop by nn.ReLU, on a model that only calls F.relu."""
    model, x = make("segment"), samples("segment")
    like = nn.Sequential(model.body, nn.ReLU(), model.pool, model.head)
    found = Explainer(model, "guided_backprop")(x, "all", initial="one")
    assert relative_error(found, Explainer(like, "guided_backprop")(x, "all", initial="one")) <= TIGHT
    assert relative_error(found, Explainer(model, "gradient")(x, "all", initial="one")) > 0.01


def test_a_path_that_matches_nothing_is_an_error():
    with pytest.raises(ValueError, match=r"entry \('fc\*', .*matches no layer.*'0'"):
        Explainer(make("convnet"), REST.with_entries(("fc*", A)), example_inputs=samples("convnet"))


def test_a_path_with_a_rule_for_weights_leaves_the_rest_alone():
    explainer = Explainer(make("convnet"), REST.with_entries(("*", A)), example_inputs=samples("convnet"))
    assert {row.rule for row in explainer.plan.rows if row.node.kind in ("conv", "linear")} == {str(A)}


def test_path_globs():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x):
            return F.relu(self.conv2(F.relu(self.conv1(x))))

    class Deep(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer1, self.layer2 = nn.Sequential(Block(), Block()), nn.Sequential(Block())
            self.fc = nn.Linear(192, 2)

        def forward(self, x):
            return self.fc(self.layer2(self.layer1(x)).flatten(1))

    model, x = Deep().double().eval(), samples("convnet")
    composite = Composite((("layer1.0.*", A), ("layer?.*.conv2", B), ("*conv1", C), *composites.epsilon().entries))
    found = rules_of(composite, model, x)
    assert found == {
        "layer1.0.conv1": A, "layer1.0.conv2": A, "layer1.1.conv1": C, "layer1.1.conv2": B,
        "layer2.0.conv1": C, "layer2.0.conv2": B, "fc": rules.Epsilon(),
    }  # fmt: skip


def test_first_is_first_in_execution_order():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(5, 3), nn.Linear(4, 5)

        def forward(self, x):
            return self.a(F.relu(self.b(x)))

    assert rules_of(one(first()), Backwards().double().eval(), samples("mlp")) == {"b": A, "a": rules.Epsilon()}


def test_precedence():
    base = Composite(((nn.Conv2d, A), (nn.Linear, B)))
    assert rules_of(base | REST) == {"0": A, "3": A, "6": B}
    assert rules_of(base.with_entries(("0", C)) | REST) == {"0": C, "3": A, "6": B}
    assert rules_of(base.with_entries((kind("conv", "linear"), C), ("0", A)) | REST) == {"0": C, "3": C, "6": C}
    assert rules_of(Composite(((first(), C),)) | base | REST) == {"0": C, "3": A, "6": B}
    assert rules_of(base | Composite(((first(), C),)) | REST) == {"0": A, "3": A, "6": B}


def test_composites_are_values():
    base = composites.epsilon_plus(max_pool="ties")
    changed = base.with_entries(("0", A), name="mine")
    assert changed.name == "mine"
    assert changed.max_pool == "ties"
    assert len(changed.entries) == len(base.entries) + 1
    assert base.name == "epsilon_plus"
    joined = base | composites.gamma(max_pool="average")
    assert joined.max_pool == "ties", "the left one's"
    assert joined.name == "epsilon_plus | gamma"
    with pytest.raises(AttributeError):
        base.max_pool = "sum"


def test_epsilon_plus_by_hand():
    """The preset, written out with reference rules: the same numbers, and not those of another preset."""
    written = Composite(
        (
            (nn.Conv2d, rules.ZPlus()),
            (nn.Linear, rules.Epsilon()),
            (nn.ReLU, rules.Pass()),
            (nn.MaxPool2d, rules.Norm()),
        )
    )
    x = samples("convnet")
    assert torch.equal(Explainer(make("convnet"), written)(x, "all"), shared("convnet", "epsilon_plus")(x, "all"))
    assert relative_error(shared("convnet", "gamma")(x, "all"), shared("convnet", "epsilon_plus")(x, "all")) > 0.01


def test_gradient_through_a_max_pool():
    model, x = make("convnet"), samples("convnet")
    composite = Composite(((nn.MaxPool2d, rules.Gradient()), *composites.gradient().entries), max_pool="average")
    point = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(model(point)[:, 2].sum(), point)
    assert relative_error(Explainer(model, composite)(x, 2, initial="one")[:, 0], expected) <= TIGHT
