"""Moves that fill in values of their own: relevance goes to copied entries, and none to what was filled in."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastlrp
from fastlrp import UnsupportedOperationError
from tests.models.cases import Written, conv
from tests.models.oracle import input_times_gradient

TOLERANCE = {torch.float64: 1e-14, torch.float32: 1e-6, torch.float16: 5e-3, torch.bfloat16: 2e-2}
"""Largest measured: 1.4e-16, 7.3e-8, 6.0e-4, 4.7e-3."""

MOVES: dict[str, tuple[tuple[int, ...], Callable[[Tensor], Tensor]]] = {
    "two": ((6,), lambda x: F.pad(x, (1, 1), value=2.0)),
    "an_index_that_exists": ((2, 6), lambda x: F.pad(x, (1, 2), value=3.0)),
    "negative": ((2, 3, 4), lambda x: F.pad(x, (1, 2, 0, 1), value=-3.5)),
    "large": ((2, 2, 3, 3), lambda x: F.pad(x, (1, 1, 1, 1, 1, 1), value=1e4)),
    "cropped_and_filled": ((6,), lambda x: F.pad(x, (-1, 2), value=1.0)),
    "cropped": ((6,), lambda x: F.pad(x, (-1, -1), value=1.0)),
    "reflected": ((2, 6), lambda x: F.pad(x, (2, 1), mode="reflect")),
    "replicated": ((2, 6), lambda x: F.pad(x, (3, 1), mode="replicate")),
    "wrapped": ((2, 6), lambda x: F.pad(x, (3, 1), mode="circular")),
    "after_a_roll": ((1, 1, 1), lambda x: F.pad(x.roll(3, 1), (1, 0), value=1.0)),
    "nothing_but_fill": ((4,), lambda x: torch.cat([F.pad(x[:, :0], (2, 3), value=4.0), x], 1)),
    "empty": ((4,), lambda x: torch.cat([x.flip(1)[:, :0], x], 1)),
    "masked": ((2, 6), lambda x: x[..., torch.tensor([True, False, True, True, False, True])]),
    "every_second": ((7,), lambda x: x[:, 1::2]),
    "broadcast": ((1, 6), lambda x: torch.broadcast_tensors(x, torch.ones(3, 6, dtype=x.dtype))[0]),
    "more_entries_than_float16_counts": ((3, 40, 50), lambda x: F.pad(x.roll(1, -1), (1, 1), value=7.0)),
}


@pytest.mark.each_value
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("name", list(MOVES))
def test_linear_layer_behind_a_move(name: str, dtype: torch.dtype) -> None:
    sizes, move = MOVES[name]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, *sizes, generator=generator, dtype=torch.float64).to(dtype)
    torch.manual_seed(1)
    last = nn.Linear(move(x)[0].numel(), 4, dtype=dtype)
    model = Written(lambda m, x: m.last(move(x).flatten(1)), last=last).eval()
    explainer = fastlrp.Explainer(model, "lrp0")
    relevance = explainer(x, [0, 2]).double()
    report = explainer.verify(x, [0, 2])
    assert report.ok, str(report)
    expected = input_times_gradient(model.double(), x.double())
    assert float((relevance - expected).norm()) <= TOLERANCE[dtype] * float(expected.norm())


@pytest.mark.each_value
@pytest.mark.parametrize("mode", ["winner", "ties"])
@pytest.mark.parametrize("targets", [4, 64])
def test_infinity_before_a_max_pool(mode: str, targets: int) -> None:
    """As NASNet pads: no window takes the padding, which has no relevance."""

    def padded(value: float) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(
            conv(3, 4), nn.ReLU(), nn.ConstantPad2d((0, 1, 1, 1), value), nn.MaxPool2d(3, 2), conv(4, 3), nn.ReLU(),
            nn.Flatten(), nn.Linear(108, 4),
        ).eval()  # fmt: skip

    x = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    composite = fastlrp.composites.epsilon_plus(max_pool=mode)
    asked = list(range(4)) * (targets // 4)
    explainer = fastlrp.Explainer(padded(-math.inf), composite)
    found = explainer(x, asked, layers="all")
    expected = fastlrp.explain(padded(-1e4), x, asked, composite, layers="all")
    assert bool((expected["input"] != 0).any())
    for path, relevance in found.items():
        assert bool(relevance.isfinite().all()), path
        torch.testing.assert_close(relevance, expected[path], msg=path)
    assert explainer.verify(x, [0, 1]).ok


def test_what_computes_is_no_move() -> None:
    """Nothing is taken for a copy that is none."""
    model = Written(lambda m, x: m.last(x.view(torch.int64).view(torch.float64).flip(1) * 1.0), last=nn.Linear(4, 2))
    with pytest.raises(UnsupportedOperationError):
        fastlrp.explain(model.double().eval(), torch.rand(3, 4, dtype=torch.float64), [0])


@pytest.mark.parametrize("composite", ["epsilon_plus", "gradient"])
def test_no_samples_at_all_through_a_write(composite: str) -> None:
    """Sizes that are inferred have no answer for a tensor of no entries."""

    def written(m: nn.Module, x: Tensor) -> Tensor:
        h = x.clone()
        h[:, 0] = x[:, 1] * 2
        return m.last((h + torch.ones(4, dtype=x.dtype)).flatten(1))

    explainer = fastlrp.Explainer(Written(written, last=nn.Linear(12, 3)).double().eval(), composite)
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    assert explainer(x, "all").shape == (2, 3, 3, 4)
    assert explainer(x[:0], "all").shape == (0, 3, 3, 4)
    assert explainer.verify(x[:0], "all").ok
