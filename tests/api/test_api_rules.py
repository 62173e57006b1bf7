"""Stabilizers, which rule a composite gives to which layer, and rules of the user's own."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastlrp
import fastlrp.plan
from fastlrp import Composite, Explainer, Stabilizer, UnsupportedOperationError, composites, register_rule, rules
from fastlrp.composites import first, kind, last, span
from tests.api.models import gradient_times_input, make, relative_error, samples, shared
from tests.api.oracle import one_hot_scores, walk

# Measured: 6e-16.
TIGHT = 1e-12


# Stabilizers

Z = torch.tensor([[3.0, -4.0], [0.0, 1.0]], dtype=torch.float64)
RMS = [math.sqrt(12.5), math.sqrt(0.5)]
RMS_ALL = math.sqrt(26 / 4)


@pytest.mark.parametrize(
    ("stabilizer", "expected"),
    [
        (Stabilizer(0.1), [[3.1, -4.1], [0.1, 1.1]]),
        (Stabilizer(0.1, signed=False), [[3.1, -3.9], [0.1, 1.1]]),
        (Stabilizer(0.1, relative="sample"), [[3 + 0.1 * RMS[0], -4 - 0.1 * RMS[0]], [0.1 * RMS[1], 1 + 0.1 * RMS[1]]]),
        (
            Stabilizer(0.1, relative="tensor", signed=False),
            [[3 + 0.1 * RMS_ALL, -4 + 0.1 * RMS_ALL], [0.1 * RMS_ALL, 1 + 0.1 * RMS_ALL]],
        ),
        (Stabilizer(3.5, clip=True), [[3.5, -4.0], [3.5, 3.5]]),
        (Stabilizer(1.0, relative="sample", clip=True), [[RMS[0], -4.0], [RMS[1], 1.0]]),
        (Stabilizer(0.0), [[3.0, -4.0], [0.0, 1.0]]),
    ],
)
def test_stabilized_denominators(stabilizer, expected):
    expected = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(stabilizer(Z), expected, rtol=1e-15, atol=0)
    inverse = stabilizer.reciprocal(Z)
    torch.testing.assert_close(inverse[expected != 0], 1 / expected[expected != 0], rtol=1e-15, atol=0)
    assert bool((inverse[expected == 0] == 0).all()), "1/0 := 0"


@pytest.mark.parametrize("stabilizer", [Stabilizer(0.1), Stabilizer(0.1, relative="sample"), Stabilizer(1, clip=True)])
def test_the_sign_of_zero_is_plus(stabilizer):
    z = torch.tensor([[0.0, -0.0, 2.0]])
    assert bool((stabilizer(z)[:, :2] > 0).all())


def test_the_tutorials_stabilizer():
    """Montavon's tutorial: z + 1e-9 + 0.25 * sqrt(mean(z²)) for one image, over the whole map."""
    model, x = make("convnet"), samples("convnet", 1)
    rule = rules.PlainGamma(0.25, Stabilizer(0.25, relative="tensor", signed=False), zero_bias=True)
    found = Explainer(model, composites.uniform(rule))(x, "all", initial="one")
    activations = [x]
    for layer in model:
        activations.append(layer(activations[-1]).detach())
    relevance = []
    for c in range(5):
        R = torch.zeros(1, 5, dtype=torch.float64)
        R[0, c] = 1.0
        for layer, a in zip(reversed(model), reversed(activations[:-1]), strict=True):
            if isinstance(layer, nn.ReLU):
                continue
            if isinstance(layer, nn.MaxPool2d):
                a = a.clone().requires_grad_()
                (R,) = torch.autograd.grad(layer(a), a, R)
            elif isinstance(layer, nn.Flatten):
                R = R.reshape(a.shape)
            else:
                a = a.clone().requires_grad_()
                w = layer.weight.detach()
                w = w + 0.25 * w.clamp(min=0)
                z = F.linear(a, w) if isinstance(layer, nn.Linear) else F.conv2d(a, w, padding=layer.padding)
                z = z + 0.25 * (z**2).mean().sqrt().detach()
                (gradient,) = torch.autograd.grad((z * (R / z).detach()).sum(), a)
                R = (a * gradient).detach()
        relevance.append(R)
    assert relative_error(found, torch.stack(relevance, 1)) <= TIGHT


@pytest.mark.parametrize("composite", ["lrp0", "epsilon", "gamma", "alpha_beta", "zplus"])
def test_dead_neurons(composite):
    """A hidden layer that never fires, and a score of exactly zero: nothing arrives, and nothing is NaN."""
    model = make("mlp")
    x = samples("mlp")
    with torch.no_grad():
        model[0].bias.fill_(-100.0)
        model[2].bias.copy_(torch.tensor([1.0, 0.0, -1.0]))
    found = Explainer(model, composite)(x, "all", layers="all")
    assert torch.equal(found["input"], torch.zeros(2, 3, 4, dtype=torch.float64))
    assert all(bool(torch.isfinite(relevance).all()) for relevance in found.values())


def test_lrp0_with_some_dead_neurons_is_still_gradient_times_input():
    model, x = make("convnet"), samples("convnet")
    with torch.no_grad():
        model[0].weight[::2] = 0.0
        model[0].bias[::2] = 0.0
        model[3].bias[1] = -100.0
    found = Explainer(model, "lrp0")(x, "all")
    assert bool((model[:2](x)[:, ::2] == 0).all())
    assert relative_error(found, gradient_times_input(model, x)) <= TIGHT


# Which rule on which layer


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


# Rules of one's own


def test_identity_weights_are_epsilon():
    x = samples("convnet")
    own = composites.uniform(rules.ModifiedWeights(lambda w: w, 0.1), 0.1)
    expected = Explainer(make("convnet"), composites.epsilon(0.1))(x, "all")
    assert relative_error(Explainer(make("convnet"), own)(x, "all"), expected) <= TIGHT


def test_positive_weights_are_plain_gamma():
    x = samples("convnet")
    own = rules.ModifiedWeights(lambda w: w + 0.3 * w.clamp(min=0), name="mine")
    expected = Explainer(make("convnet"), composites.uniform(rules.PlainGamma(0.3)))(x, "all")
    explainer = Explainer(make("convnet"), composites.uniform(own, name="all"))
    assert torch.equal(explainer(x, "all"), expected)
    assert str(explainer.plan).count("mine") == 3, "the plan shows the rule's name"


class OwnEpsilon(rules.Custom):
    """Epsilon in a few lines: one backward pass for each target."""

    def propagate(self, forward, inputs, output, relevance):
        (x,) = inputs
        with torch.enable_grad():
            x = x.detach().clone().requires_grad_()
            z = forward(x)
        s = relevance / Stabilizer(0.1)(z.detach()).unsqueeze(1)
        c = [torch.autograd.grad(z, x, s[:, k], retain_graph=True)[0] for k in range(s.shape[1])]
        return (x.detach().unsqueeze(1) * torch.stack(c, 1),)


@pytest.mark.each_value
@pytest.mark.parametrize("lrp_aware", [True, False])
@pytest.mark.parametrize("name", ["convnet", "segment", "mlp"])
def test_a_written_out_epsilon(name, lrp_aware):
    own = REST.with_entries((kind("conv", "linear"), OwnEpsilon()))
    expected = REST.with_entries((kind("conv", "linear"), rules.Epsilon(0.1)))
    x = samples(name)
    with Explainer(make(name), own).forward(x, lrp_aware=lrp_aware) as record:
        found = record.relevance("all", layers="all")
    for layer, relevance in Explainer(make(name), expected)(x, "all", layers="all").items():
        assert relative_error(found[layer], relevance) <= TIGHT, layer


def test_a_written_out_rule_with_a_folded_batch_norm():
    """``forward`` is the convolution with its batch norm, as the rule sees one layer."""
    own = REST.with_entries((kind("conv"), OwnEpsilon()))
    expected = REST.with_entries((kind("conv"), rules.Epsilon(0.1)))
    x = samples("residual")
    assert (
        relative_error(Explainer(make("residual"), own)(x, "all"), Explainer(make("residual"), expected)(x, "all"))
        <= 1e-10
    )


class Wrong(rules.Custom):
    def __init__(self, answer):
        self.answer = answer

    def propagate(self, forward, inputs, output, relevance):
        return self.answer(relevance)


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        (
            lambda r: r,
            TypeError,
            r"Wrong.propagate must return a tuple with one entry for each of the 1 inputs of linear",
        ),
        (lambda r: (r, r), TypeError, "one entry for each of the 1 inputs of linear .*, got a tuple of 2"),
        (lambda r: (r[:, :, :2],), ValueError, r"relevance of shape \(2, 1, 2\) for input 0 of linear .*\(2, 1, 4\)"),
    ],
)
def test_a_written_out_rule_that_returns_nonsense(answer, error, message):
    composite = REST.with_entries((first(), Wrong(answer)))
    with pytest.raises(error, match=message):
        Explainer(make("mlp"), composite)(samples("mlp"), 0)


def test_a_written_out_rule_may_give_nothing():
    composite = REST.with_entries((first(), Wrong(lambda r: (None,))))
    found = Explainer(make("mlp"), composite)(samples("mlp"), "all")
    assert torch.equal(found, torch.zeros(2, 3, 4, dtype=torch.float64))


def test_custom_without_propagate():
    class Forgotten(rules.Custom):
        pass

    with pytest.raises(
        NotImplementedError, match=r"Forgotten must define propagate\(forward, inputs, output, relevance"
    ):
        Explainer(make("mlp"), REST.with_entries((first(), Forgotten())))(samples("mlp"), 0)


class Digamma(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.wave, self.b = nn.Linear(4, 5), Wave(), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.wave(self.a(x)))


class Wave(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.digamma()


def test_an_operation_without_a_rule_names_the_ways_out(monkeypatch):
    monkeypatch.setattr(fastlrp.plan.assign, "_REGISTERED", {})
    torch.manual_seed(0)
    model, x = Digamma().double().eval(), samples("mlp")
    with pytest.raises(
        UnsupportedOperationError, match=r"no rule for operation 'digamma' in module 'wave' \(Wave\)"
    ) as error:
        Explainer(model, "epsilon", example_inputs=x)
    assert "with_entries((fastlrp.composites.operation('digamma'), rule))" in str(error.value)
    assert "fastlrp.register_rule('digamma', rule)" in str(error.value)
    by_entry = Explainer(model, REST.with_entries(("wave", rules.Pass())))(x, "all")
    by_operation = Explainer(model, REST.with_entries((composites.operation("digamma"), rules.Pass())))(x, "all")
    assert torch.equal(by_operation, by_entry)
    with pytest.raises(ValueError, match=r"knows 'cumsum' \(kind 'linear_map'\), so its rule comes from the composite"):
        register_rule("cumsum", rules.Pass())
    by_type = Explainer(model, REST.with_entries((Wave, rules.Pass())))(x, "all")
    gradient = Explainer(model, "gradient")(x, 1, initial="one")
    point = x.clone().requires_grad_()
    (plain,) = torch.autograd.grad(model(point)[:, 1].sum(), point)
    assert relative_error(gradient[:, 0], plain) <= TIGHT
    register_rule("aten::digamma", rules.Pass())
    registered = Explainer(model, "epsilon")(x, "all")
    assert torch.equal(by_entry, registered)
    assert torch.equal(by_type, registered)
    hidden = model.a(x).detach()
    head = walk(nn.Sequential(model.b), hidden.digamma(), one_hot_scores(model(x)), lambda i, n: rules.Epsilon())[
        "input"
    ]
    expected = walk(nn.Sequential(model.a), x, head, lambda i, n: rules.Epsilon())["input"]
    assert relative_error(registered, expected) <= TIGHT
    with pytest.raises(TypeError, match="register_rule needs a fastlrp rule, got str"):
        register_rule("digamma", "pass")


# What makes no sense


@pytest.mark.parametrize(
    ("make_it", "error", "message"),
    [
        (lambda: rules.AlphaBeta(2, 0.5), ValueError, r"alpha - beta = 1 .*got alpha=2, beta=0.5"),
        (lambda: rules.AlphaBeta(-0.5, -1.5), ValueError, r"alpha >= 0 and .*got alpha=-0.5, beta=-1.5"),
        (lambda: rules.AlphaBeta(math.nan, 1), ValueError, "got alpha=nan, beta=1"),
        (lambda: rules.Gamma(-1), ValueError, "Gamma: gamma must be >= 0 and finite, got -1"),
        (lambda: rules.Gamma(math.nan), ValueError, "Gamma: gamma must be >= 0 and finite, got nan"),
        (lambda: rules.PlainGamma(-0.1), ValueError, "PlainGamma: gamma must be >= 0 and finite, got -0.1"),
        (lambda: rules.ZBox(1.0, 0.0), ValueError, r"ZBox: low must not exceed high, got low=1.0, high=0.0"),
        (lambda: rules.ZBox(torch.tensor([0.0, 2.0]), 1.0), ValueError, "ZBox: low must not exceed high"),
        (lambda: rules.ZBox(math.nan, 1.0), ValueError, "ZBox: low and high must be finite"),
        (lambda: rules.ZBox(torch.zeros(2), torch.ones(3)), ValueError, "low and high do not broadcast"),
        (lambda: rules.Epsilon(-1e-6), ValueError, "epsilon must be a finite number >= 0, got -1e-06"),
        (lambda: rules.Epsilon("tiny"), TypeError, "expected a number or a Stabilizer, got str"),
        (lambda: rules.ZPlus(-1.0), ValueError, "epsilon must be a finite number >= 0, got -1.0"),
        (lambda: rules.Flat(None), TypeError, "expected a number or a Stabilizer, got NoneType"),
        (lambda: rules.Gamma(0.1, math.nan), ValueError, "epsilon must be a finite number >= 0, got nan"),
        (lambda: rules.Norm(True), TypeError, "expected a number or a Stabilizer, got bool"),
        (lambda: rules.ModifiedWeights(0.25), TypeError, "modify must be a function of a tensor, got float"),
        (lambda: Stabilizer(-1), ValueError, "Stabilizer: epsilon must be a finite number >= 0, got -1"),
        (lambda: Stabilizer(math.nan), ValueError, "Stabilizer: epsilon must be a finite number >= 0, got nan"),
        (lambda: Stabilizer(1e-6, relative="batch"), ValueError, "None, 'sample' or 'tensor', got 'batch'"),
        (lambda: Composite(((nn.Conv2d, "epsilon"),)), TypeError, r"entry is \(matcher, rule\), got \(.*'epsilon'\)"),
        (lambda: Composite(((nn.Conv2d, rules.Epsilon),)), TypeError, r"entry is \(matcher, rule\), got"),
        (lambda: Composite((nn.Conv2d, A)), TypeError, r"entry is \(matcher, rule\), got <class"),
        (lambda: Composite(((nn.Conv2d, A, B),)), TypeError, r"entry is \(matcher, rule\), got"),
        (lambda: Composite(((3, A),)), TypeError, "matcher is a module type, a tuple of types, a module path or a pre"),
        (lambda: Composite((), max_pool="mean"), ValueError, "'winner', 'ties', 'average' or 'sum', got 'mean'"),
        (lambda: composites.epsilon_plus(max_pool="max"), ValueError, "max_pool must be 'winner', 'ties', 'average'"),
        (lambda: composites.epsilon_plus(epsilon=-1), ValueError, "epsilon must be a finite number >= 0, got -1"),
        (lambda: composites.gamma(-1), ValueError, "Gamma: gamma must be >= 0 and finite, got -1"),
        (lambda: composites.alpha_beta(2, 2), ValueError, "got alpha=2, beta=2"),
        (lambda: composites.epsilon_gamma_box(1, -1), ValueError, "ZBox: low must not exceed high"),
        (lambda: composites.kind("convolution"), ValueError, "unknown kind 'convolution': expected conv, linear"),
        (lambda: composites.first("conv", "add"), ValueError, r"first\(\) takes one kind, or 'conv' and 'linear'"),
    ],
)
def test_nonsense_is_refused_when_it_is_made(make_it, error, message):
    with pytest.raises(error, match=message):
        make_it()


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ((nn.Conv2d, rules.Norm()), r"Norm\(.*\) is not defined for conv2d \(0\)|is not defined for conv2d \(3\)"),
        ((nn.Linear, rules.GuidedBackprop()), r"GuidedBackprop\(\) is not defined for linear \(6\)"),
        ((nn.ReLU, rules.Epsilon()), r"is not defined for relu .*use Pass, Gradient, Deconvnet or GuidedBackprop"),
    ],
)
def test_a_rule_for_another_kind_of_layer(entry, message):
    with pytest.raises(TypeError, match=message):
        Explainer(make("convnet"), REST.with_entries(entry), example_inputs=samples("convnet"))


def test_a_composite_without_a_rule_for_a_layer():
    with pytest.raises(UnsupportedOperationError, match=r"no rule for operation 'linear' in module '6' \(Linear\)"):
        Explainer(make("convnet"), Composite(((nn.Conv2d, A),)), example_inputs=samples("convnet"))


@pytest.mark.parametrize("shape", [(1, 4, 1, 1), (2, 1, 1, 1, 1), (5,), (3, 8, 7)])
def test_box_bounds_of_another_shape(shape):
    composite = composites.epsilon_gamma_box(torch.full(shape, -9.0), 9.0)
    with pytest.raises(ValueError, match=r"ZBox: bounds of shape .* do not broadcast to the layer's input"):
        Explainer(make("convnet"), composite)(samples("convnet"), 0)


@pytest.mark.parametrize("shape", [(), (1,), (8,), (3, 1, 1), (1, 3, 1, 1), (1, 3, 8, 8), (3, 8, 8)])
def test_box_bounds_that_broadcast(shape):
    x = samples("convnet")
    expected = Explainer(make("convnet"), composites.epsilon_gamma_box(-9.0, 9.0))(x, "all")
    composite = composites.epsilon_gamma_box(torch.full(shape, -9.0), torch.full(shape, 9.0))
    assert torch.equal(Explainer(make("convnet"), composite)(x, "all"), expected)
