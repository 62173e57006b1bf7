"""Networks computed for alive neurons only, against the dense way and against the definitions."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastlrp import Explainer, composites, rules
from fastlrp.run import basis, runner
from tests.api.models import MODELS
from tests.api.models import make as make_api
from tests.api.models import samples as api_samples
from tests.api.oracle import one_hot_scores, walk
from tests.api.test_api_oracle import FIRST, NETWORKS, RULES
from tests.models import oracle
from tests.models.cases import EPSILON_PLUS, Written, chain, conv, prepared, vector, volume
from tests.models.test_models_functional import BODIES, TOKENS, VECTORS
from tests.models.test_models_pools import POOLS
from tests.sparse.nets import CLASSES, COMPOSITES, NETS, assert_same, make, samples, sparse_layers

# Measured: 6e-16 against the dense way, 2.6e-7 in float32.
TIGHT = 1e-13
FLOAT32 = 2e-6
# Against the definitions. Measured: 4e-13 (gamma with a relative stabilizer).
DEFINED = 1e-10
GRADIENTS = ("gradient", "deconvnet", "guided_backprop")

pytestmark = pytest.mark.usefixtures("captured_once")


def initials(output, count):
    """Initial relevance of random signs, most of it zero."""
    made = torch.randn(output.shape[0], count, *output.shape[1:], dtype=output.dtype)
    return made * (torch.rand(made.shape) < 0.3)


def both(model, composite, **options):
    """The same explainer twice: sparse wherever that is possible, and dense."""
    return [Explainer(model, composite, paths=paths, **options) for paths in ("sparse", "dense")]


@pytest.mark.each_value(3)
@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("composite", COMPOSITES)
def test_composites(name, composite):
    rule, model = COMPOSITES[composite](), make(name)
    sparse, dense = both(model, rule)
    options = {"initial": "one"} if composite in GRADIENTS else {}
    for nonnegative in (False, True):
        x = samples(name, nonnegative=nonnegative)
        with sparse.forward(x) as ours, dense.forward(x) as theirs:
            given = initials(theirs.scores, 40)
            assert_same(ours.relevance(given), theirs.relevance(given), TIGHT)
            for targets in (3, [i % CLASSES for i in range(40)]):
                assert_same(ours.relevance(targets, **options), theirs.relevance(targets, **options), TIGHT)
            if nonnegative:
                continue
            given = given[:, :9]
            found, expected = (record.relevance(given, layers="all") for record in (ours, theirs))
            assert_same(found, expected, TIGHT)
            defined = Explainer(model, rule, backend="reference")(x, given)
            assert_same(ours.relevance(given), defined, DEFINED)
    # Flat layers are sums and box filters, which have no sparse form.
    assert bool(sparse_layers(sparse)) == (composite != "flat")
    assert not sparse_layers(dense)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize(
    "composite",
    ["epsilon_plus", "epsilon_gamma_box", "epsilon_alpha2_beta1", "gamma_max_pool_ties", "excitation_backprop"],
)
def test_float32(name, composite):
    sparse, dense = both(make(name, torch.float32), COMPOSITES[composite]())
    for nonnegative in (False, True):
        x = samples(name, 2, torch.float32, nonnegative)
        with sparse.forward(x) as ours, dense.forward(x) as theirs:
            given = initials(theirs.scores, 40)
            assert ours.relevance(given).dtype == torch.float32
            assert_same(ours.relevance(given), theirs.relevance(given), FLOAT32)
            assert_same(ours.relevance(3), theirs.relevance(3), FLOAT32)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("batch", [0, 1, 3])
def test_batches(name, batch):
    sparse, dense = both(make(name), "epsilon_plus")
    x = samples(name, batch)
    with sparse.forward(x) as ours, dense.forward(x) as theirs:
        for targets in (1, list(range(CLASSES))):
            assert_same(ours.relevance(targets), theirs.relevance(targets), TIGHT)


def test_samples_have_patterns_of_their_own():
    """One sample without a living neuron in the first layer, one with all of them alive."""
    model = nn.Sequential(nn.Conv2d(1, 5, 3, bias=False), nn.ReLU(), nn.Conv2d(5, 6, 3), nn.ReLU(), nn.Flatten(),
                          nn.Linear(24, CLASSES)).double().eval()  # fmt: skip
    nn.init.uniform_(model[0].weight, 0.1, 1.0)
    x = torch.rand(3, 1, 6, 6, dtype=torch.float64)
    x[1] *= -1
    sparse, dense = both(model, "epsilon_plus")
    found = sparse(x, list(range(CLASSES)))
    assert_same(found, dense(x, list(range(CLASSES))), TIGHT)
    assert not found[1].any()
    assert found[0].any()
    for sample in range(3):
        assert_same(sparse(x[sample : sample + 1], list(range(CLASSES))), found[sample : sample + 1], TIGHT)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize(
    "options", [{"reduce": "channels"}, {"layers": "all", "reduce": "channels"}, {"lrp_aware": False}], ids=str
)
def test_options(name, options):
    sparse, dense = both(make(name), "epsilon_plus")
    aware = {key: value for key, value in options.items() if key == "lrp_aware"}
    rest = {key: value for key, value in options.items() if key != "lrp_aware"}
    x = samples(name)
    with sparse.forward(x, **aware) as ours, dense.forward(x) as theirs:
        for targets in (2, [i % CLASSES for i in range(17)]):
            assert_same(ours.relevance(targets, **rest), theirs.relevance(targets, **rest), TIGHT)


@pytest.mark.parametrize("name", ["vgg", "residual", "shared_sums", "joined"])
def test_some_layers(name):
    """Each alone: what is emitted is dense there, and sparse below and above."""
    sparse, dense = both(make(name), "epsilon_plus")
    x = samples(name)
    with sparse.forward(x) as ours, dense.forward(x) as theirs:
        for layer in theirs.relevance(0, layers="all"):
            found, expected = (record.relevance([1, 5, 2] * 4, layers=[layer]) for record in (ours, theirs))
            assert_same(found, expected, TIGHT, layer)


@pytest.mark.each_value
@pytest.mark.parametrize("reduced", ["sum", "mean", "amax", "first"])
@pytest.mark.parametrize("axis", [1, 2, 3])
def test_what_one_axis_hands_down(axis, reduced):
    """The same numbers along an axis, as sums and means send them."""
    reduce = {
        "sum": lambda y: y.sum(axis), "mean": lambda y: y.mean(axis), "first": lambda y: y.select(axis, 0),
        "amax": lambda y: F.adaptive_max_pool2d(y, [None if axis == 3 else 1, None if axis == 2 else 1]),
    }[reduced]  # fmt: skip
    model = Written(
        lambda m, x: m.last(reduce(F.relu(m.b(F.relu(m.a(x))))).flatten(1)),
        a=conv(3, 8), b=conv(8, 6), last=nn.LazyLinear(CLASSES),
    )  # fmt: skip
    x = volume(2).double()
    sparse, dense = both(prepared(model, x.float()), "epsilon_plus")
    assert_same(sparse(x, "all"), dense(x, "all"), TIGHT)


# Against the definitions


@pytest.mark.each_value
@pytest.mark.parametrize("seed", [1, 3])
@pytest.mark.parametrize("name", RULES)
def test_one_rule_everywhere(name, seed):
    model, x = NETWORKS[seed]
    explainer = Explainer(model, composites.uniform(RULES[name], 1e-6), paths="sparse")
    expected = walk(model, x, one_hot_scores(model(x)), lambda i, n: RULES[name])
    with explainer.forward(x) as record:
        assert_same(record.relevance("all"), expected["input"], DEFINED)
        found = record.relevance("all", layers="all")
    assert_same(dict(sorted(found.items())), dict(sorted(expected.items())), DEFINED)


@pytest.mark.parametrize("name", ["zplus", "gamma", "alpha2beta1"])
@pytest.mark.parametrize("first", FIRST)
def test_another_rule_first(first, name):
    model, x = NETWORKS[3]
    composite = composites.uniform(RULES[name], 1e-6).with_entries((composites.first(), FIRST[first]))
    found = Explainer(model, composite, paths="sparse")(x, "all")
    expected = walk(model, x, one_hot_scores(model(x)), lambda i, n: FIRST[first] if i == 0 else RULES[name])
    assert_same(found, expected["input"], DEFINED)


@pytest.mark.parametrize("max_pool", ["winner", "ties", "average", "sum"])
@pytest.mark.parametrize("seed", NETWORKS)
def test_max_pool_modes(max_pool, seed):
    model, x = NETWORKS[seed]
    found = Explainer(model, composites.epsilon_plus(max_pool=max_pool), paths="sparse")(x, "all")
    rule_of = lambda i, n: rules.ZPlus() if i < 2 else rules.Epsilon()  # noqa: E731
    assert_same(found, walk(model, x, one_hot_scores(model(x)), rule_of, max_pool)["input"], DEFINED)


def check(model, x):
    """Under EpsilonPlus, against the dense way and against the oracle of whole models."""
    model, x = prepared(model, x), x.double()
    targets = [0, 2, 1, 3] * 3
    expected = oracle.relevance(model, x, targets[:4], EPSILON_PLUS, epsilon=1e-6)
    sparse, dense = both(model, "epsilon_plus")
    found = sparse(x, targets)
    assert_same(found[:, :4], expected, 1e-12)  # As in tests/models; measured: 5e-14.
    assert_same(found, dense(x, targets), TIGHT)
    sparse, dense = (explainer(x, targets[:4], layers="all") for explainer in (sparse, dense))
    assert_same(sparse, dense, TIGHT)


@pytest.mark.parametrize("name", BODIES)
def test_functions_of_images(name):
    body, members = BODIES[name]
    check(Written(lambda m, x: m.last(torch.flatten(body(m, x), 1)), last=nn.LazyLinear(4), **members()), volume(2))


@pytest.mark.parametrize("name", [*VECTORS, *TOKENS])
def test_functions_of_vectors_and_sequences(name):
    if name in VECTORS and name != "columns":  # It has three outputs.
        check(VECTORS[name](), vector())
    elif name in TOKENS:
        check(TOKENS[name](), volume(1))


@pytest.mark.parametrize("pool", POOLS, ids=str)
def test_pools(pool):
    dims = int(type(pool).__name__[-2])
    layer = [nn.Conv1d, nn.Conv2d, nn.Conv3d][dims - 1]
    check(chain(layer(3, 4, 3, padding=1), nn.ReLU(), pool, layer(4, 3, 3, padding=1), nn.ReLU()), volume(dims))


@pytest.mark.each_value
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("composite", ["epsilon_plus", "gamma", "zplus"])
def test_models_of_the_api(name, composite):
    sparse, dense = both(make_api(name), composite)
    for x in (api_samples(name), api_samples(name).abs()):
        assert_same(sparse(x, "all"), dense(x, "all"), TIGHT)
        assert_same(sparse(x, "all", layers="all"), dense(x, "all", layers="all"), TIGHT)


# Inputs and tops


def test_several_inputs():
    model = Written(
        lambda m, left, right: m.head(F.relu(m.c(F.relu(m.a(left) + m.b(right)))).flatten(1)),
        a=conv(3, 6), b=conv(2, 6, 1, 0), c=conv(6, 5), head=nn.Linear(280, CLASSES),
    ).double().eval()  # fmt: skip
    x = torch.randn(2, 3, 7, 8, dtype=torch.float64), torch.rand(2, 2, 7, 8, dtype=torch.float64)
    for composite in ("epsilon_plus", "gamma", "alpha_beta"):
        sparse, dense = both(model, composite)
        assert_same(sparse(x, "all"), dense(x, "all"), TIGHT)
        named = {"left": x[0], "right": x[1]}
        assert_same(sparse(named, "all", layers="all"), dense(named, "all", layers="all"), TIGHT)
        assert set(sparse_layers(sparse)) >= {"a", "b", "c"}


def test_bounds_of_the_box_by_channel():
    low, high = torch.tensor([-4.0, -5.0, -6.0]).view(1, 3, 1, 1), torch.tensor([4.0, 5.0, 6.0]).view(1, 3, 1, 1)
    for name in ("vgg", "residual"):
        sparse, dense = both(make(name), composites.epsilon_gamma_box(low, high))
        assert_same(sparse(samples(name), "all"), dense(samples(name), "all"), TIGHT)


def test_pixels_of_a_map_as_targets():
    sparse, dense = both(make("segmentation"), "epsilon_plus")
    x = samples("segmentation")
    given = torch.zeros(16, CLASSES, 4, 4, dtype=torch.float64)
    given[torch.arange(16), torch.arange(16) % CLASSES, torch.arange(16) // 4, torch.arange(16) % 4] = 1
    for targets in (given, "all", 3):
        assert_same(sparse(x, targets), dense(x, targets), TIGHT)


@pytest.mark.parametrize("options", [{}, {"reduce": "channels"}, {"layers": "all"}], ids=str)
def test_basis_of_a_narrow_layer(monkeypatch, options):
    """More targets than a layer is wide: a basis of it goes down through sparse layers."""
    monkeypatch.setattr(basis, "_LEAST_WORK", 0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 20, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 96),
    ).double().eval()  # fmt: skip
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    sparse, dense = both(model, "epsilon_plus")
    with sparse.forward(x) as ours:
        values = ours.plan.explained_inputs()
        assert runner.neck(ours.plan, ours.plan.schedule(values), values, 96) is not None
        found = ours.relevance("all", **options)
        assert {"0", "3"} <= set(sparse_layers(sparse))
        assert_same(found, dense(x, "all", **options), TIGHT)
        monkeypatch.setattr(runner, "neck", lambda *args: None)
        assert_same(ours.relevance("all", **options), found, TIGHT)


def test_inference_mode_and_gradients():
    sparse, dense = both(make("vgg"), "epsilon_plus")
    x = samples("vgg")
    with torch.inference_mode():
        found = sparse(x.clone(), "all")
    assert_same(found.clone(), dense(x, "all"), TIGHT)
    found = sparse(x.clone().requires_grad_(), "all")
    assert not found.requires_grad


def test_inputs_in_any_memory():
    sparse, dense = both(make("vgg"), "gamma")
    x = samples("vgg")
    expected = dense(x, "all")
    for other in (x.contiguous(memory_format=torch.channels_last), x.transpose(2, 3).contiguous().transpose(2, 3)):
        assert_same(sparse(other, "all"), expected, TIGHT)
    assert_same(sparse(x[:1].expand(3, -1, -1, -1), "all"), expected[:1].expand(3, -1, -1, -1, -1), TIGHT)
    flat = x[..., :1].expand(-1, -1, -1, 8)
    assert_same(sparse(flat, "all"), dense(flat.contiguous(), "all"), TIGHT)
