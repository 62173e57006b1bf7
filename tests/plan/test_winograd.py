"""3x3 convolutions by Winograd's filtering: the numbers of plain ones, and only where small errors stay small."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import fastlrp
from fastlrp.backends.extension import loaded
from fastlrp.plan import coefficients
from fastlrp.plan.geometry import ConvGeometry
from fastlrp.plan.products import packed, winograd
from fastlrp.rules import zplus
from tests.reference.cases import relative_error

C = loaded()
pytestmark = pytest.mark.skipif(
    packed._operations() is None or winograd._kernel() is None, reason="no processor or PyTorch that gains by it"
)


def geometry(*padding: int) -> ConvGeometry:
    return ConvGeometry([1, 1], list(padding), [1, 1], False, [0, 0], 1)


# Samples, channels in and out, input size, padding. Tiles at the right and lower edge are whole, or lack 1 to 3.
SHAPES = [
    (1, 32, 48, (8, 8), (1, 1)), (2, 16, 80, (9, 7), (1, 0)), (3, 48, 16, (5, 14), (2, 2)),
    (1, 64, 128, (3, 3), (0, 0)),
    (2, 32, 32, (1, 2), (2, 1)), (1, 16, 16, (1, 1), (1, 1)), (5, 32, 64, (22, 23), (0, 1)),
]  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products_are_those_of_the_weight_as_it_is(shape, isa):
    samples, inputs, outputs, size, padding = shape
    torch.manual_seed(0)
    weight, bias = torch.randn(outputs, inputs, 3, 3), torch.randn(outputs)
    there = winograd.Winograd(lambda: weight, geometry(*padding))
    down = winograd.Winograd(lambda: weight, geometry(*padding), down=True)
    x, scale = torch.randn(samples, inputs, *size), torch.randn(1, inputs, *size)
    leaf = x.double().requires_grad_()
    exact = torch.nn.functional.conv2d(leaf, weight.double(), bias.double(), padding=padding)
    assert relative_error(there(x, bias).double(), exact.detach()) <= 4e-6  # Measured: 1.2e-6.
    assert there(x).is_contiguous(memory_format=torch.channels_last)
    times = torch.nn.functional.conv2d(x.double() * scale.double(), weight.double(), padding=padding)
    assert relative_error(there(x, scale=scale).double(), times) <= 4e-6
    flow, coefficient = torch.randn(1, samples, *exact.shape[1:]), torch.randn(1, *exact.shape[1:])
    (right,) = torch.autograd.grad(exact, leaf, flow[0].double() * coefficient.double())
    assert relative_error(down.scaled(flow, coefficient)[0].double(), right) <= 4e-6
    least = torch.randn(exact.shape)
    bounded = there(x, bias, least=least, not_negative=True)
    assert torch.equal(bounded, torch.maximum(there(x, bias), least).clamp_(min=0))


def test_numbers_do_not_depend_on_samples_layout_or_threads(isa):
    torch.manual_seed(0)
    weight, x = torch.randn(96, 32, 3, 3), torch.randn(7, 32, 18, 21)
    product = winograd.Winograd(lambda: weight, geometry(1, 1))
    whole, threads = product(x), torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert torch.equal(product(x.contiguous(memory_format=torch.channels_last)), whole)
            assert torch.equal(torch.cat([product(row) for row in x.split(2)]), whole)
    finally:
        torch.set_num_threads(threads)


def test_what_is_not_a_number_stays_so():
    weight, x = torch.randn(32, 32, 3, 3), torch.randn(1, 32, 8, 8)
    x[0, 3, 2, 2] = float("nan")
    product = winograd.Winograd(lambda: weight, geometry(1, 1))
    found = product(x, least=torch.zeros(1, 32, 8, 8), not_negative=True)
    assert found[:, :, 1:4, 1:4].isnan().all()
    assert not found[:, :, 4:].isnan().any(), "tiles beside it do not read it"


def test_arguments_that_do_not_fit():
    pack, run = C.winograd_pack, C.winograd_convolution
    weight, x = pack(torch.randn(32, 16, 3, 3)), torch.randn(2, 16, 8, 8)
    with pytest.raises(ValueError, match=r"weight must have shape \(Co, Ci, 3, 3\) with channels in multiples of 16"):
        pack(torch.randn(32, 17, 3, 3))
    with pytest.raises(ValueError, match=r"weight must have shape"):
        pack(torch.randn(32, 16, 5, 5))
    with pytest.raises((TypeError, ValueError), match="weight"):
        pack(torch.randn(32, 16, 3, 3).double())
    wrong = {
        "what winograd_pack makes for 8 channels": (torch.randn(2, 8, 8, 8), weight, None, None, None, [1, 1]),
        "weight must be": (x, weight[:, :, :8], None, None, None, [1, 1]),
        "padding must have one entry per spatial axis": (x, weight, None, None, None, [1]),
        "padding must be 0, 1 or 2 with a result that is not empty": (x, weight, None, None, None, [3, 1]),
        "bias must have shape": (x, weight, torch.randn(16), None, None, [1, 1]),
        "scale must have shape": (x, weight, None, torch.randn(3, 16, 8, 8), None, [1, 1]),
        "least must have shape": (x, weight, None, None, torch.randn(2, 32, 7, 8), [1, 1]),
        "x must have shape": (x[0], weight, None, None, None, [1, 1]),
    }
    for words, arguments in wrong.items():
        with pytest.raises(ValueError, match=words):
            run(*arguments)
    with pytest.raises(ValueError, match="not empty"):
        run(x[:, :, :2], weight, None, None, None, [0, 0])
    assert run(x[:0], weight, None, None, None, [1, 1]).shape == (0, 32, 8, 8)


def network(bias: bool = True) -> nn.Sequential:
    torch.manual_seed(1)
    first, second, third = (nn.Conv2d(*c, 3, padding=1, bias=bias) for c in ((3, 32), (32, 64), (64, 64)))
    layers = (first, nn.ReLU(), second, nn.ReLU(), nn.MaxPool2d(2), third, nn.ReLU(), nn.Flatten(), nn.Linear(6400, 12))
    return nn.Sequential(*layers).eval()


X = (2, 3, 20, 20)


def shown(explainer: fastlrp.Explainer) -> dict[str, str]:
    """What the plan's table says of the filtering, layer by layer: ``f``, ``z``, ``d``."""
    rows = [line.split() for line in str(explainer.plan).splitlines() if "+winograd " in line]
    return {row[0]: row[[cell.endswith("+winograd") for cell in row].index(True) + 1] for row in rows}


@pytest.mark.parametrize("count", [1, 12])
@pytest.mark.parametrize("composite", ["epsilon_plus", "gamma", "epsilon_alpha2_beta1", "gradient", "epsilon"])
def test_explanations_are_those_of_float64(composite, count):
    model, x = network(), torch.randn(X)
    fast = fastlrp.Explainer(model, composite, paths="dense")
    plain = fastlrp.Explainer(model, composite, paths="dense", precision="float32")
    right = fastlrp.Explainer(copy.deepcopy(model).double(), composite)(x.double(), range(count))
    errors = [float(relative_error(each(x, range(count)).double(), right)) for each in (fast, plain)]
    # Measured: 1e-6 to 5e-6; 1.3e-5 under epsilon, which decides by the sign of sums of 1e-6 as a ReLU does.
    assert errors[0] <= (3e-5 if composite == "epsilon" else 1e-5), errors
    assert errors[1] <= 1e-5, errors
    assert not torch.equal(fast(x, 0), plain(x, 0)), "one goes by the filtering, the other does not"
    assert "winograd" not in str(plain.plan)
    assert "d" in "".join(shown(fast).values())
    fast.verify(x, range(count))


def test_layers_that_gain_are_taken():
    explainer = fastlrp.Explainer(network(), "epsilon_plus", example_inputs=torch.randn(X))
    assert sorted(shown(explainer)) == ["2", "5"], "with 3 channels, or none, there is no such product"
    assert "winograd: 3x3 products by the filtering, f = of the forward pass, z = of denom" in str(explainer.plan)
    saving = fastlrp.Explainer(network(), "epsilon_plus", example_inputs=torch.randn(X), max_memory="1GB")
    assert "winograd" not in str(saving.plan), "the parts of its weights are not in the propagation's budget"
    small = fastlrp.Explainer(network(), "epsilon_plus", example_inputs=torch.randn(X), precision="bf16")
    assert "winograd" in str(small.plan)

    def pays(kernel=3, stride=1, padding=1, dilation=1, groups=1, channels=(64, 64), size=(20, 20)) -> bool:
        shape = ConvGeometry([stride] * 2, [padding] * 2, [dilation] * 2, False, [0, 0], groups)
        return winograd.pays(shape, torch.ones(*channels, kernel, kernel), size)

    assert pays()
    others = [{"kernel": 5}, {"stride": 2}, {"padding": 3}, {"dilation": 2}, {"groups": 2}, {"channels": (64, 24)}]
    assert not any(pays(**given) for given in others)
    assert not pays(size=(7, 7)), "four tiles"
    assert pays(size=(28, 28), channels=(512, 512))
    assert not pays(size=(14, 14), channels=(512, 512)), "38 MB of weights for 16 tiles"


LAST = {"epsilon_plus": "fzd", "gamma": "fzd", "epsilon": "fd", "gradient": "d", "epsilon_alpha2_beta1": "fzd"}


@pytest.mark.parametrize("name", LAST)
def test_the_table_says_which_products_are_made_so(name, monkeypatch):
    heard, right = {}, winograd.Winograd.__call__

    def listened(self, x, *rest, **how):
        weight = self._make()
        sums = how.get("least") is not None or bool((weight >= 0).all())
        letter = "d" if how.get("scale") is not None else "z" if sums else "f"
        heard.setdefault("2" if weight.shape[1] == 32 else "5", set()).add(letter)
        return right(self, x, *rest, **how)

    monkeypatch.setattr(winograd.Winograd, "__call__", listened)
    explainer = fastlrp.Explainer(network(), name, paths="dense")
    explainer(torch.randn(X), 0)
    said = {layer: letters.replace("?", "") for layer, letters in shown(explainer).items()}
    assert said == {layer: "".join(sorted(found, key="fzd".index)) for layer, found in heard.items()}
    assert shown(explainer)["5"] == LAST[name]


def test_switched_or_traced_operands_take_the_plain_way():
    model, x = network(), torch.randn(X)
    explainer = fastlrp.Explainer(model, "epsilon_plus")
    plain = fastlrp.Explainer(model, "epsilon_plus", precision="float32")
    with torch.backends.mkldnn.flags(enabled=False):
        assert relative_error(explainer(x, 1), plain(x, 1)) <= 2e-6
    leaf = x.clone().requires_grad_()
    record = explainer.forward(leaf)
    assert relative_error(record.relevance(1).detach(), plain(x, 1)) <= 5e-6


@pytest.mark.parametrize("composite", ["epsilon_plus", "epsilon_alpha2_beta1", "zplus", "gradient"])
def test_outputs_that_one_input_holds_down_are_plain(composite):
    """Where it is zero they are alive, and next to where it is not: a thousand times further below zero than that."""
    model, x = network(), torch.randn(X)
    model[5].weight.data[3:9, 4, 1, 1] = -1e4
    right = fastlrp.Explainer(copy.deepcopy(model).double(), composite)(x.double(), 0)
    explainer = fastlrp.Explainer(model, composite, paths="dense")
    # Measured: 6e-7 to 6e-6, and filtered 8e-4 to 2e-3.
    assert relative_error(explainer(x, 0).double(), right) <= 2e-5
    assert "5" not in shown(explainer)
    assert "2" in shown(explainer)


def test_which_outputs_are_held_down():
    torch.manual_seed(0)
    weight = torch.randn(32, 64, 3, 3)
    heavy = weight * torch.exp(4 * torch.randn_like(weight))
    assert winograd.rises(weight)
    assert winograd.rises(heavy / heavy.abs().amax((1, 2, 3), keepdim=True)), "of all sizes, below zero and above"
    weight[:9] = 0
    weight[9] = -1e-6 * weight[9].abs()
    assert winograd.rises(weight), "outputs that are dead, or far below others in size"
    weight[10, 3] *= 100
    assert winograd.rises(weight), "some lower it and others raise it"
    weight[11, 5, 0, 2] = -200
    assert not winograd.rises(weight)
    assert not winograd.rises(-torch.rand(32, 64, 3, 3)), "biases alone raise these"


class Shaded(nn.Module):
    """Where the picture is dark a layer's outputs come from its bias alone, and all that raises them is tiny."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.conv, self.other = (nn.Conv2d(32, 32, 3, padding=1) for _ in range(2))
        self.conv.bias.data.uniform_(0.5, 1)
        self.head = nn.Linear(32, 3)

    def forward(self, x):
        return self.head(torch.relu(self.other(torch.relu(self.conv(torch.relu(x))))).mean((2, 3)))


def shaded() -> torch.Tensor:
    x = torch.rand(1, 32, 24, 24)
    x[..., 12:] *= 1e-6
    return x


RULES = {
    "z+": fastlrp.rules.ZPlus(0.0), "z+ of weights alone": fastlrp.rules.ZPlus(0.0, zero_bias=True),
    "epsilon of weights alone": fastlrp.rules.Epsilon(1e-12, zero_bias=True), "gamma": fastlrp.rules.Gamma(0.5, 0.0),
    "alpha-beta": fastlrp.rules.AlphaBeta(2, 1, stabilizer=0.0),
}  # fmt: skip


def errors_of_shaded(rule: fastlrp.rules.Rule) -> list[float]:
    """The relative errors, with the filtering and without, for a picture half of which is nearly dark."""
    model, x = Shaded().eval(), shaded()
    composite = fastlrp.composites.uniform(rule)
    right = fastlrp.Explainer(copy.deepcopy(model).double(), composite)(x.double(), 0)
    explainers = [fastlrp.Explainer(model, composite, precision=name) for name in ("auto", "float32")]
    return [float(relative_error(explainer(x, 0).double(), right)) for explainer in explainers]


@pytest.mark.parametrize("name", RULES)
def test_small_denominators_are_as_exact_as_without(name):
    filtered, plain = errors_of_shaded(RULES[name])
    assert filtered <= 4 * plain + 1e-6, (filtered, plain)


def test_that_fails_where_every_sum_goes_by_the_filtering(monkeypatch):
    for module in (coefficients, zplus):
        monkeypatch.setattr(module, "is_bounded", lambda b, layer, flow, zero_bias: True)
    filtered, plain = errors_of_shaded(RULES["z+ of weights alone"])
    assert filtered > 100 * plain


def test_sums_of_zeros_alone_are_zero(isa):
    torch.manual_seed(0)
    weight, bias = torch.randn(32, 32, 3, 3), torch.randn(32)
    x = torch.zeros(2, 32, 11, 13)
    x[0, 17, 4, 5], x[1, 31, 9, 12] = 3.0, -2.0
    product = winograd.Winograd(lambda: weight, geometry(1, 1))
    right = torch.nn.functional.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    found = product(x, bias)
    assert torch.equal(product(x) == 0, right == bias.double().view(1, -1, 1, 1))
    assert relative_error(found.double(), right) <= 2e-6
    scale = torch.ones(1, 32, 11, 13)
    scale[..., 4, 5] = 0
    assert torch.equal(product(x, scale=scale)[0], torch.zeros(32, 11, 13))


@pytest.mark.parametrize("name", ["one place", "dirac"])
def test_neurons_that_are_zero_have_the_gradient_of_zero(name):
    torch.manual_seed(0)
    layers = (nn.Conv2d(32, 32, 3, padding=1, bias=False), nn.ReLU()) * 2
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 256, 2)).eval()
    x = torch.zeros(1, 32, 16, 16)
    x[:, :, 5, 5] = torch.rand(32)
    if name == "dirac":
        x = torch.randn(1, 32, 16, 16).relu()
        nn.init.dirac_(model[2].weight)
        nn.init.dirac_(model[0].weight)
    right = fastlrp.Explainer(copy.deepcopy(model).double(), "gradient")(x.double(), 0)
    assert relative_error(fastlrp.Explainer(model, "gradient")(x, 0).double(), right) <= 1e-5


def test_numbers_that_plain_sums_alone_hold_are_told() -> None:
    """One sample overflows in the parts, and not in plain sums."""
    torch.manual_seed(0)
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 3)]
    model = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), *head)
    with torch.no_grad():
        model[0].weight.mul_(1e-3)
    x = torch.rand(2, 32, 24, 24)
    x[1] *= 1e38
    assert model(x).isfinite().all()
    message = (
        r"too large for sample 1 of the batch in conv2d \(0\), whose plain sums would hold them.*precision='float32'"
    )
    with pytest.raises(fastlrp.NotFiniteError, match=message):
        fastlrp.explain(model.eval(), x, 0, "epsilon")
    found = fastlrp.Explainer(model, "epsilon", precision="float32")(x, 0)
    exact = fastlrp.Explainer(copy.deepcopy(model).double(), "epsilon")(x.double(), 0)
    assert relative_error(found.double(), exact) <= 1e-5  # Measured: 4e-7.
    model[0].weight.data.mul_(1e8)
    with pytest.raises(fastlrp.NotFiniteError, match=r"first layer whose output is not finite is conv2d \(0\)"):
        fastlrp.explain(model, x, 0, "epsilon")
