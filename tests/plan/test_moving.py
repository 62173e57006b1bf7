"""Moves that become one copy, results written where they are wanted: the numbers stay the same, samples apart."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fastlrp
from fastlrp.backends import extension
from fastlrp.capture.graph import Constant
from fastlrp.capture.translate import folding
from fastlrp.plan.passes import moving, placing
from fastlrp.run import runner

SIDE, WIDE, HEADS, WINDOW = 4, 16, 2, 2


class Windows(nn.Module):
    """Attention within shifted windows that a model writes out, its queries scaled, and then patches merged."""

    def __init__(self, scaled_by_division: bool = False) -> None:
        super().__init__()
        self.divides = scaled_by_division
        self.all, self.out = nn.Linear(WIDE, 3 * WIDE), nn.Linear(WIDE, WIDE)
        self.merged, self.head = nn.Linear(4 * WIDE, WIDE), nn.Linear(WIDE, 5)
        self.bias = nn.Parameter(torch.randn(HEADS, WINDOW**2, WINDOW**2))

    def forward(self, x: Tensor) -> Tensor:
        n, rest = SIDE // WINDOW, (WINDOW, SIDE // WINDOW, WINDOW)
        y = torch.roll(x, (-1, -1), (1, 2)).reshape(-1, n, *rest, WIDE).permute(0, 1, 3, 2, 4, 5)
        y = y.reshape(-1, WINDOW**2, WIDE)
        all_ = self.all(y).reshape(-1, WINDOW**2, 3, HEADS, WIDE // HEADS).permute(2, 0, 3, 1, 4)
        q, k, v = all_[0], all_[1], all_[2]
        q = q / 3.0 if self.divides else q * 0.5
        mixed = ((q @ k.transpose(-2, -1) + self.bias).softmax(-1) @ v).transpose(1, 2).reshape(-1, WINDOW**2, WIDE)
        y = self.out(mixed).reshape(-1, n, n, WINDOW, WINDOW, WIDE).permute(0, 1, 3, 2, 4, 5)
        x = x + torch.roll(y.reshape(-1, SIDE, SIDE, WIDE), (1, 1), (1, 2))
        parts = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
        return self.head(self.merged(torch.cat(parts, -1)).mean((1, 2)))


def made(**options) -> tuple[nn.Module, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Windows(**options).double().eval(), torch.randn(2, SIDE, SIDE, WIDE, dtype=torch.float64)


@pytest.mark.parametrize(("backend", "divides"), [("auto", False), ("auto", True), ("torch", False)])
def test_moves_and_places_change_nothing(backend, divides, monkeypatch):
    model, x = made(scaled_by_division=divides)
    explainer = fastlrp.Explainer(model, "attnlrp", example_inputs=x, backend=backend)
    found = explainer(x, range(5))
    explainer.plan.check()
    (fused,) = explainer.plan.fusions
    for sample in (0, 1):
        alone = explainer(x[sample : sample + 1], range(5))[0]
        torch.testing.assert_close(found[sample], alone, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(found[:, 3], explainer(x, 3)[:, 0], rtol=1e-12, atol=1e-14)
    monkeypatch.setattr(runner, "economize", lambda steps, known: steps)
    plain = fastlrp.Explainer(model, "attnlrp", example_inputs=x, backend=backend)
    torch.testing.assert_close(found, plain(x, range(5)), rtol=1e-12, atol=1e-14)
    (unfused,) = plain.plan.fusions
    written = backend == "auto" and extension.why_not_loaded() is None
    assert (len(unfused), len(fused)) == (38, 13 if written else 14)  # What moves nothing is no step.
    assert explainer.verify(x, [1, 4]).ok


def test_layers_in_between_are_given():
    model, x = made()
    explainer = fastlrp.Explainer(model, "attnlrp", example_inputs=x)
    with explainer.forward(x) as record:
        every = record.relevance([2], layers="all")
        torch.testing.assert_close(every["input"], record.relevance([2]), rtol=1e-12, atol=1e-14)
        alone = record.relevance([2], layers=["all"])["all"]
        torch.testing.assert_close(every["all"], alone, rtol=1e-12, atol=1e-14)


def test_a_sum_of_one_value_twice_is_no_move():
    """It was looked for the first move of the group, which has none."""

    class Doubled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 64), nn.Linear(128, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x).view(-1, 8, 8)
            h = h + h
            return self.b(torch.cat([h.flatten(1) * 0.2, h.transpose(1, 2).flatten(1) * 0.3], 1))

    torch.manual_seed(0)
    model, x = Doubled().double().eval(), torch.randn(2, 4, dtype=torch.float64)
    found = fastlrp.explain(model, x, [0, 1], "gradient", initial="one")
    torch.testing.assert_close(found, torch.func.vmap(torch.func.jacrev(lambda row: model(row[None])[0]))(x).detach())


@pytest.mark.parametrize("sizes", [(4, 3), (8, 8), (5, 16)])
def test_rows_stay_together(sizes):
    count, row = sizes
    order = torch.randperm(count, generator=torch.Generator().manual_seed(1))
    source = (order.unsqueeze(1) * row + torch.arange(row)).flatten()
    assert moving.row_length(source) % row == 0
    assert moving.row_length(torch.arange(count * row)) == count * row


def test_parts_that_do_not_lie_as_they_are_wanted_stay():
    whole = torch.empty(1, 1, 2, 3)

    class Move:
        moves_from = (6,)
        up = staticmethod(lambda t: t.transpose(2, 3).reshape(1, 1, 6))

    assert placing._view(whole, [Move]) is None
    Move.up = staticmethod(lambda t: t.reshape(1, 1, 6))
    assert placing._view(whole, [Move]) is not None


needs_extension = pytest.mark.skipif(extension.why_not_loaded() is not None, reason="needs the compiled kernels")


@needs_extension
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("keys", "size"), [(5, 3), (17, 16), (49, 32), (64, 40)])
def test_attention_into_memory_is_attention(dtype, keys, size):
    module = extension.extension()
    g = torch.randn(2, 3, keys, 2, size, dtype=dtype).transpose(2, 3)
    g[1, 2, :, : keys // 2] = 0
    g[0, 1] = 0
    q, k, v = (torch.randn(2, 2, keys, size, dtype=dtype) for _ in range(3))
    scores = q @ k.mT
    output, log_sum = scores.softmax(-1) @ v, scores.logsumexp(-1)
    rest = (g, q, k, v, output, log_sum, None, False, 1.0, 0.0, 0.25, 0.25, 0.5, 0.0)
    expected = module.attention_relevance(*rest)
    whole = torch.full((2, 3, keys, 3, 2, size), torch.nan, dtype=dtype)
    rooms = whole.permute(3, 0, 1, 4, 2, 5)
    module.attention_relevance_into(*rooms, *rest)
    for room, right in zip(rooms, expected, strict=True):
        assert torch.equal(room, right)
    with pytest.raises(ValueError, match=r"c_key must have shape|c_key"):
        module.attention_relevance_into(rooms[0], rooms[1][..., :-1], rooms[2], *rest)
    with pytest.raises(ValueError, match="the last axis of c_value must be contiguous"):
        module.attention_relevance_into(rooms[0], rooms[1], torch.empty(2, 3, 2, size, keys, dtype=dtype).mT, *rest)


def test_what_reads_no_numbers_of_the_model_is_remembered():
    weight, table = nn.Parameter(torch.randn(3)), torch.arange(3.0)
    empty = torch.empty(2, 2, device="meta")
    zeros = folding.fold("z", torch.ops.aten.new_zeros.default, (Constant("w", weight), [2, 2]), {}, empty)
    ones = folding.fold("o", torch.ops.aten.add.Scalar, (zeros, 1.0), {}, empty)
    assert ones.tensor() is ones.tensor()
    assert ones.tensor().tolist() == [[1, 1], [1, 1]]
    weight.data = weight.data.double()
    assert ones.tensor().dtype == torch.float64
    read = folding.fold("r", torch.ops.aten.add.Scalar, (Constant("t", table), 1.0), {}, torch.empty(3, device="meta"))
    assert read.tensor().tolist() == [1, 2, 3]
    table += 1
    assert read.tensor().tolist() == [2, 3, 4]
