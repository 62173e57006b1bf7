"""Filtering by a look at the numbers: where they are even, sample by sample, and with small sums made again."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, conv2d, max_pool2d, pad

import fastlrp
from fastlrp import composites, rules
from fastlrp.backends.extension import loaded
from fastlrp.plan.geometry import ConvGeometry
from fastlrp.plan.products import both, looked, packed, winograd
from fastlrp.plan.products.layouts import Layouts
from tests.reference.cases import relative_error

C = loaded()
pytestmark = pytest.mark.skipif(
    packed._operations() is None or winograd._kernel() is None, reason="no processor or PyTorch that gains by it"
)


def ratios(x: Tensor, padding: tuple[int, int]) -> Tensor:
    """Of each tile ``(N, T, T')``: its largest place over the smallest window that is not zero."""
    (rows, columns), (height, width) = padding, x.shape[2:]
    out = height + 2 * rows - 2, width + 2 * columns - 2
    held = pad(x.double().abs().sum(1, keepdim=True), (columns, columns + 4, rows, rows + 4))
    read = 9 * avg_pool2d(held, 3, 1)[..., : out[0], : out[1]]
    read = pad(read.masked_fill(read == 0, torch.inf), (0, -out[1] % 4, 0, -out[0] % 4), value=torch.inf)
    largest = max_pool2d(held, 6, 4)[..., : read.shape[2] // 4, : read.shape[3] // 4]
    return (largest / -max_pool2d(-read, 4, 4))[:, 0]


@pytest.mark.parametrize("padding", [(1, 1), (0, 2)], ids=str)
def test_even_is_what_the_definition_says(padding, isa):
    torch.manual_seed(0)
    x = torch.randn(6, 32, 9, 14) * torch.logspace(0, -4, 14)
    x[1] *= torch.rand(1, 9, 14).pow(6)
    x[2, :, :, 4:], x[3] = 0, 0
    scale = torch.rand(3, 32, 9, 14)
    for given, times in ((x, None), (x, scale)):
        whole = given if times is None else given * times.repeat_interleave(2, 0)
        right = ratios(whole, padding).flatten(1).amax(1)
        for most in (0.2, *(float(r) * f for r in right if 0 < r < torch.inf for f in (0.999, 1.001))):
            assert C.winograd_even(given, times, list(padding), most) == (right <= most).tolist()
    last = x.contiguous(memory_format=torch.channels_last)
    assert C.winograd_even(last, scale, list(padding), 20.0) == C.winograd_even(x, scale, list(padding), 20.0)
    assert C.winograd_even(x[:0], None, list(padding), 20.0) == []
    x[4, 5, 3, 3], x[5, 5, 3, 3] = torch.nan, torch.inf
    assert C.winograd_even(x, None, list(padding), 1e30)[4:] == [False, False]


def test_small_sums_are_made_again(isa):
    torch.manual_seed(0)
    x, weight, bias = torch.rand(3, 32, 9, 10), torch.rand(48, 32, 3, 3), torch.rand(48)
    right = conv2d(x.double(), weight.double(), bias.double(), padding=1)
    wrong = torch.full_like(right, 1.0).float().contiguous(memory_format=torch.channels_last)
    divided = torch.zeros_like(wrong)
    divided[0, 7, 0, 0], divided[0, 47, 8, 9], divided[1, 3, 4, 4], divided[2] = 9.0, -9.0, 8.0, 9.0
    found = wrong.clone()
    kept = C.winograd_repair(found, x, weight, bias, divided, [1, 1], 8.0)
    assert kept == [True, True, False], "nearly all sums of the third are small"
    huge = divided * torch.tensor([1, 1, 1e4]).view(3, 1, 1, 1)
    assert C.winograd_few_small(x, weight, bias, huge, [1, 1], 8.0) == kept
    again = divided.abs() > 8
    again[2] = False
    assert relative_error(found[again].double(), right[again]) <= 1e-6
    assert torch.equal(found[~again], wrong[~again])
    for words, change in {
        "y must lie channels-last": {"y": wrong.contiguous()},
        "weight must have shape": {"weight": weight[:, :16]},
        "divided must have": {"divided": divided[:, :16]},
        "bias must have": {"bias": bias[:3]},
        "padding must be": {"padding": [3, 1]},
    }.items():
        given = {"y": wrong, "x": x, "weight": weight, "bias": bias, "divided": divided, "padding": [1, 1]}
        with pytest.raises(ValueError, match=words):
            C.winograd_repair(**(given | change), most=8.0)
    with pytest.raises(ValueError, match="channels in multiples of"):
        C.winograd_even(x[:, :17], None, [1, 1], 8.0)


def product(weight: Tensor, down: bool = False) -> looked.Looked:
    geometry = ConvGeometry([1, 1], [1, 1], [1, 1], False, [0, 0], 1)
    found = Layouts("conv", geometry, (3, 3), (12, 12), (12, 12)).looked(weight, down)
    assert isinstance(found, looked.Looked)
    return found


def test_each_sample_and_target_is_looked_at_by_itself():
    torch.manual_seed(0)
    weight = torch.randn(32, 32, 3, 3).contiguous(memory_format=torch.channels_last)
    x = torch.rand(5, 32, 12, 12)
    x[1, ..., 5:] *= 1e-6
    x[3, :, 7:] *= 1e-6
    there, down = product(weight), product(weight, down=True)
    whole = there(x)
    assert torch.equal(whole, torch.cat([there(one) for one in x.split(1)]))
    assert torch.equal(whole[::2], there._filtered(x[::2]))
    assert not torch.equal(whole[1::2], there._filtered(x[1::2]))
    flow, coefficient = x[:4].view(2, 2, *x.shape[1:]), torch.rand(2, *x.shape[1:])
    sent = down.scaled(flow, coefficient)
    alone = [down.scaled(flow[b : b + 1, k : k + 1], coefficient[b : b + 1]) for b in range(2) for k in range(2)]
    assert torch.equal(sent.flatten(0, 1), torch.cat(alone).flatten(0, 1))
    summed = there.sums(x, weight, None, torch.zeros_like(x))
    assert torch.equal(summed[1], there._plain(x[1:2])[0])


def test_sums_that_read_few_channels_are_plain():
    weight = torch.rand(32, 32, 3, 3)
    assert looked.pays(weight)
    weight[3, 27:] *= 1e-3
    assert not looked.pays(weight)
    assert looked.spreads(weight, down=False)
    weight[3, 7:] = 0
    assert not looked.spreads(weight, down=False)
    assert looked.spreads(weight, down=True)
    weight[3] = 0
    assert looked.pays(weight), "nothing is read, and nothing rounded"
    assert not looked.spreads(weight * (torch.rand(32, 32, 3, 3) < 0.1), down=False), "too few terms"
    assert not looked.spreads(weight[:1, :1], down=True), "not in whole groups of channels"


def test_two_networks_in_one_weight_are_plain(monkeypatch):
    """Half of the channels are bright on the left, half on the right, and no sum reads both: places are even."""
    torch.manual_seed(0)
    first, second = (nn.Conv2d(32, 32, 3, padding=1) for _ in range(2))
    for module in (first, second):
        module.weight.data[:16, 16:], module.weight.data[16:, :16] = 0, 0
    first.bias.data.zero_()
    nn.init.constant_(second.bias, 0.7)
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 3))
    model = nn.Sequential(nn.ReLU(), first, nn.ReLU(), second, nn.ReLU(), *head).eval()
    x = torch.rand(1, 32, 24, 24)
    x[:, :16, :, 9:] *= 1e-4
    x[:, 16:, :, :9] *= 1e-4
    composite = composites.uniform(rules.AlphaBeta(2, 1))
    right = fastlrp.Explainer(copy.deepcopy(model).double(), composite)(x.double(), 0)

    def error(precision: str) -> float:
        found = fastlrp.Explainer(copy.deepcopy(model), composite, precision=precision)(x, 0)
        return float(relative_error(found.double(), right))

    plain = error("float32")
    assert error("auto") <= 4 * plain + 1e-6
    monkeypatch.setattr(looked, "pays", lambda weight: True)
    assert error("auto") > 20 * plain


class Opponent(nn.Module):
    """Half of the channels are bright on the left, the others on the right; what raises an output is on the left."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.beside, self.head = nn.Conv2d(32, 32, 3, padding=1), nn.Conv2d(32, 32, 1), nn.Linear(32, 3)
        self.conv.weight.data.uniform_(0.5, 1)[:, 17:] *= -1
        nn.init.constant_(self.beside.bias, 400.0)

    def forward(self, x):
        y = self.conv(torch.relu(x)) + torch.relu(self.beside(x))
        return self.head(torch.relu(y).mean((2, 3)))


def test_denominators_far_below_the_others_of_a_tile_are_exact(monkeypatch):
    model, x = Opponent().eval(), torch.rand(1, 32, 24, 24)
    x[:, :17, :, 9:] *= 1e-5
    x[:, 17:, :, :9] *= 1e-5
    composite = composites.uniform(rules.ZPlus(0.0))
    right = fastlrp.Explainer(copy.deepcopy(model).double(), composite)(x.double(), 0)

    def error(precision: str) -> float:
        found = fastlrp.Explainer(model, composite, precision=precision)(x, 0)
        return float(relative_error(found.double(), right))

    plain = error("float32")
    assert error("auto") <= 4 * plain + 1e-6
    monkeypatch.setattr(looked, "MOST_SHARE", torch.inf)
    assert error("auto") > 20 * plain, "the tiles are even, and only single sums are small"


@pytest.mark.parametrize("decay", [1.5, 3.1])
def test_pictures_that_grow_dark_slowly_lose_little(decay):
    model = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU())
    torch.manual_seed(2)
    for module in (model[0], model[2]):
        module.reset_parameters()
        nn.init.constant_(module.bias, 0.7 if module is model[2] else 0.0)
    model = nn.Sequential(nn.ReLU(), *model, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 3)).eval()
    x, composite = torch.rand(1, 32, 24, 24) * decay ** -torch.arange(24.0), composites.uniform(rules.AlphaBeta(2, 1))
    right = fastlrp.Explainer(copy.deepcopy(model).double(), composite)(x.double(), 0)
    assert relative_error(fastlrp.Explainer(model, composite)(x, 0).double(), right) <= 1e-5  # Measured: 3e-6.


class Residual(nn.Module):
    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.second = nn.Conv2d(32, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1)
        self.head, self.activation = nn.Linear(32, 5), activation

    def forward(self, x):
        x = self.activation(x)
        y = self.activation(x + self.second(self.activation(self.first(x))))
        return self.head(y.mean((2, 3)))


@pytest.mark.parametrize("composite", ["epsilon_plus", "epsilon_alpha2_beta1", "gamma"])
@pytest.mark.parametrize("activation", [nn.ReLU(), nn.LeakyReLU(0.1), nn.SiLU()], ids=str)
def test_residual_sums_and_signed_activations_are_filtered(activation, composite):
    model, x = Residual(activation).eval(), torch.randn(2, 32, 16, 16)
    right = fastlrp.Explainer(copy.deepcopy(model).double(), composite)(x.double(), range(3))
    fast = fastlrp.Explainer(model, composite, paths="dense")
    plain = fastlrp.Explainer(model, composite, paths="dense", precision="float32")
    found = fast(x, range(3))
    assert relative_error(found.double(), right) <= 5e-6  # Measured: 2e-6.
    assert not torch.equal(found, plain(x, range(3)))
    assert relative_error(found[1:], fast(x[1:], range(3))) <= 1e-6, "the products of the last layer have other sizes"
    assert str(fast.plan).count("d?") == 2 - (composite == "gamma" and isinstance(activation, nn.ReLU))


def test_what_rounding_makes_is_compared_with_the_relevance(isa):
    """Reads no weight: the fullest place of each tile, its largest ``times sizes`` and the sum of its shares."""
    torch.manual_seed(0)
    x, scale, y, times = (
        torch.randn(4, 32, 9, 7),
        torch.rand(2, 32, 9, 7),
        torch.randn(4, 48, 9, 7),
        torch.rand(2, 48, 9, 7),
    )
    sizes = torch.rand(48)
    y[1] *= 1e-3
    held = pad((x * scale.repeat_interleave(2, 0)).double().abs().sum(1, keepdim=True), (1, 6, 1, 8))
    share = times.repeat_interleave(2, 0).double()
    by_tile = max_pool2d(held, 6, 4)[..., :3, :2]
    most = max_pool2d(pad((share * sizes.view(-1, 1, 1)).amax(1, keepdim=True), (0, 1, 0, 3)), 4)
    total = 16 * avg_pool2d(pad((y.double() * share).abs().sum(1, keepdim=True), (0, 1, 0, 3)), 4)
    right = (by_tile * most / total).flatten(1).amax(1)
    for limit in (float(r) * f for r in right for f in (0.999, 1.001)):
        assert C.winograd_tells(y, x, scale, times, sizes, [1, 1], limit) == (right <= limit).tolist()
    assert C.winograd_tells(y, x, scale, 0 * times, sizes, [1, 1], 0.0) == [True] * 4, "nothing is multiplied with it"
    assert C.winograd_tells(y * torch.nan, x, scale, times, sizes, [1, 1], 1e30) == [False] * 4
    for words, change in {
        "scale must have shape": {"scale": scale[:, :16]},
        "sizes must have shape": {"sizes": sizes[:3]},
        "y must have": {"y": y[:, :16]},
        "times must have": {"times": times[:1]},
    }.items():
        given = {"y": y, "x": x, "scale": scale, "times": times, "sizes": sizes, "padding": [1, 1], "most": 1.0}
        with pytest.raises(ValueError, match=words):
            C.winograd_tells(**(given | change))


def test_relevance_is_compared_beside_rows_that_are_not_even():
    """Of the first sample too little is left beside its tile, the second is uneven, the third is filtered."""
    torch.manual_seed(0)
    weight = torch.randn(32, 32, 3, 3).contiguous(memory_format=torch.channels_last)
    down = product(weight, down=True)
    flow, coefficient, times = torch.randn(3, 2, 32, 12, 12), torch.rand(3, 32, 12, 12), torch.rand(3, 32, 12, 12)
    sent = down._plain.scaled(flow, coefficient)
    times[0] = sent[0].abs().amax(0) <= 0.02 * sent[0].abs().mean()
    assert times[0].any()
    flow[1, ..., 5:] *= 1e-6
    found = down.scaled(flow, coefficient, times)
    alone = [down.scaled(flow[i : i + 1], coefficient[i : i + 1], times[i : i + 1]) for i in range(3)]
    assert torch.equal(found, torch.cat(alone))
    assert torch.equal(found[:2], down._plain.scaled(flow[:2], coefficient[:2]))
    assert torch.equal(found[2:], down._filtered.scaled(flow[2:], coefficient[2:]))
    for i in range(0, 3, 2):  # Rows that are told, or not told, beside none that is uneven.
        whole = down.scaled(flow[[i, 2]], coefficient[[i, 2]], times[[i, 2]])
        assert torch.equal(whole, found[[i, 2]])


def test_two_products_are_one_where_both_may_be_filtered():
    """As above, and the fourth sample is uneven by its second coefficient alone."""
    torch.manual_seed(0)
    weight = torch.randn(32, 32, 3, 3).contiguous(memory_format=torch.channels_last)
    positives = [weight.clamp(min=0), (-weight).clamp(min=0)]
    each = [product(w, down=True) for w in positives]

    def apart(flow: Tensor, x: None, first: Tensor, second: Tensor, times: Tensor) -> Tensor:
        return each[0].scaled(flow, first, times) + each[1].scaled(flow, second, times)

    geometry = ConvGeometry([1, 1], [1, 1], [1, 1], False, [0, 0], 1)
    layer = SimpleNamespace(layouts=Layouts("conv", geometry, (3, 3), (12, 12), (12, 12)))
    through = both._filtered(layer, positives, apart)
    flow, first, times = torch.rand(4, 2, 32, 12, 12), torch.rand(4, 32, 12, 12), torch.rand(4, 32, 12, 12)
    second = -torch.rand(4, 32, 12, 12)
    sent = apart(flow, None, first, second, times)
    times[0] = sent[0].abs().amax(0) <= 0.02 * sent[0].abs().mean()
    flow[1, ..., 5:] *= 1e-6
    second[3, :, 5:] *= 1e-6
    right = sum(each[i]._plain.scaled(flow, (first, second)[i]) for i in range(2))
    found = through(flow, None, first, second, times)
    assert relative_error(found, right) <= 3e-6  # 1.3e-6
    alone = [through(flow[i : i + 1], None, first[i : i + 1], second[i : i + 1], times[i : i + 1]) for i in range(4)]
    assert torch.equal(found, torch.cat(alone))
    plain = apart(flow, None, first, second, times)
    assert torch.equal(found[[0, 1, 3]], plain[[0, 1, 3]])
    assert not torch.equal(found[2], plain[2])
    assert torch.equal(through(flow[2:3], None, first[2:3], second[2:3], times[2:3]), found[2:3])


class Streams(nn.Module):
    """Two streams that inhibit each other: half of the outputs is raised by half of the inputs, beside a large sum."""

    def __init__(self, signs: Tensor) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.beside, self.head = nn.Conv2d(32, 32, 3, padding=1), nn.Conv2d(32, 32, 1), nn.Linear(32, 3)
        self.conv.weight.data.uniform_(0.5, 1).mul_(signs)
        nn.init.constant_(self.beside.bias, 400.0)

    def forward(self, x):
        y = self.conv(torch.relu(x)) + torch.relu(self.beside(x))
        return self.head(torch.relu(y).mean((2, 3)))


def by_channels() -> tuple[Tensor, Tensor]:
    """Bright on the left in one half of the channels, on the right in the other."""
    signs, x = torch.full((32, 32, 1, 1), -1.0), torch.rand(1, 32, 24, 24)
    signs[:16, :16], signs[16:, 16:] = 1, 1
    x[:, :16, :, :14] *= 1e-5
    x[:, 16:, :, 14:] *= 1e-5
    return signs, x


def by_taps() -> tuple[Tensor, Tensor]:
    """What raises an output is above it or below it, and each third row is dark."""
    signs = torch.ones(32, 32, 3, 3)
    signs[::2, :, 1:], signs[1::2, :, :2] = -1, -1
    return signs, torch.rand(1, 32, 24, 24) * torch.where(torch.arange(24) % 3 == 0, 1e-4, 1.0)[:, None]


@pytest.mark.parametrize("case", [by_channels, by_taps])
def test_sums_that_are_dark_where_the_tile_is_bright_are_plain(case, monkeypatch):
    torch.manual_seed(1)
    signs, x = case()
    model, composite = Streams(signs).eval(), composites.uniform(rules.ZPlus(0.0))
    right = fastlrp.Explainer(copy.deepcopy(model).double(), composite)(x.double(), 0)

    def error() -> float:
        return float(relative_error(fastlrp.Explainer(model, composite)(x, 0).double(), right))

    assert error() <= 2e-6
    monkeypatch.setattr(looked, "MOST_NOISE", torch.inf)
    assert error() > 1e-4


def test_masked_kernels_are_plain():
    weight = torch.randn(32, 32, 3, 3)
    assert looked.pays(weight)
    weight[..., 2, :], weight[..., 1, 1:] = 0, 0
    assert not looked.pays(weight), "below a place its window may be bright"


class Differences(nn.Module):
    """A residual sum that a batch norm passes relevance to as it is, whose entries are of both signs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.first, self.second = (nn.Conv2d(32, 32, 3, padding=1, bias=False) for _ in range(2))
        self.norm, self.head = nn.BatchNorm2d(32), nn.Linear(32, 3)
        nn.init.normal_(self.norm.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(torch.relu(x))
        x = torch.nn.functional.elu(self.norm(x + self.second(x)))
        return self.head(x.mean((2, 3)))


def test_terms_of_a_sum_that_divides_what_is_no_multiple_of_it_are_plain(monkeypatch):
    """Relevance that the norm passes on stands above sums of nearly zero, too."""
    monkeypatch.setattr(packed, "LEAST_WORK", 1)
    model, composite = Differences().eval(), composites.epsilon_alpha2_beta1()
    x = torch.rand(1, 32, 24, 24, generator=torch.Generator().manual_seed(3))
    right = fastlrp.Explainer(copy.deepcopy(model).double(), composite)(x.double(), 0)
    plain = fastlrp.Explainer(model, composite, paths="dense", precision="float32")(x, 0)
    found = fastlrp.Explainer(model, composite, paths="dense")(x, 0)
    error, least = (relative_error(r.double(), right) for r in (found, plain))
    assert error <= 1.5 * least  # Measured: 1.0 times, and 6.7 where these terms are filtered.


def test_what_such_terms_are_made_of_is_plain_too(monkeypatch):
    """An error of a layer far below is as large beside a sum of nearly zero as one of the sum's own terms."""
    monkeypatch.setattr(packed, "LEAST_WORK", 1)
    below = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU())
    sums, x = nn.Sequential(below, Differences()).eval(), torch.rand(1, 32, 24, 24)
    alone = nn.Sequential(below, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 3)).eval()

    def forward_filtered(model: nn.Module) -> list[bool]:
        table = str(fastlrp.Explainer(model, composites.epsilon_plus(), example_inputs=x).plan).splitlines()
        ways = [next(line for line in table if line.startswith(f"{path} ")) for path in ("0.0", "0.2")]
        return ["winograd f" in way for way in ways]

    assert forward_filtered(alone) == [True, True]
    assert forward_filtered(sums) == [False, False]
