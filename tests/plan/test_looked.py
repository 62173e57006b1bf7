"""Filtering by a look at the numbers: where they are even, sample by sample, and with small sums made again."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d, max_pool2d, pad

from fastlrp.backends.extension import loaded
from fastlrp.plan.geometry import ConvGeometry
from fastlrp.plan.products import both, packed, winograd
from fastlrp.plan.products.layouts import Layouts
from tests.plan.looked_cases import product
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
