"""Parts put side by side, sums in place, positions that carry relevance alone: the numbers stay the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastlrp
from fastlrp import composites, rules
from fastlrp.aten import _product
from fastlrp.backends import extension
from fastlrp.plan.passes import joining
from fastlrp.run import descent, reach, runner
from fastlrp.targets.one_hot import AtPositions
from tests.transformers.oracle import transformer

S, D, V = 6, 8, 10


class Block(nn.Module):
    """Queries, keys and values of one product, as GPT-2 has them."""

    def __init__(self, order: tuple[int, int, int] = (0, 1, 2)) -> None:
        super().__init__()
        self.order = order
        self.all, self.out = nn.Linear(D, 3 * D), nn.Linear(D, D)
        self.up, self.down = nn.Linear(D, 2 * D), nn.Linear(2 * D, D)
        self.first, self.second = nn.LayerNorm(D), nn.LayerNorm(D)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.all(self.first(x)).split(D, -1)
        q, k, v = (parts[i].unflatten(-1, (2, D // 2)).transpose(1, 2) for i in self.order)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(nn.functional.gelu(self.up(self.second(x))))


class Model(nn.Module):
    def __init__(self, order: tuple[int, int, int] = (0, 1, 2)) -> None:
        super().__init__()
        self.blocks, self.norm = nn.Sequential(Block(order), Block(order)), nn.LayerNorm(D)
        self.head = nn.Linear(D, V)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(x)))


def made(order: tuple[int, int, int] = (0, 1, 2), dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Model(order).to(dtype).eval(), torch.randn(2, S, D, dtype=dtype)


@pytest.mark.slow
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_fused_steps_give_the_same(order, backend, monkeypatch):
    model, x = made(order)
    explainer = fastlrp.Explainer(model, "attnlrp", example_inputs=x, backend=backend)
    found = explainer(x, [1, 4, 4, 7], at=[3])
    explainer.plan.check()
    (fused,) = explainer.plan.fusions
    written = backend == "auto" and extension.why_not_loaded() is None
    names = [step.name for step, _ in fused]
    assert not any("split" in name for name in names)
    inner = explainer(x, [1, 4, 4, 7], at=[3], layers=["blocks.0.all", "blocks.0.first", "blocks.1.down"])
    monkeypatch.setattr(runner, "economize", lambda steps, known: steps)
    plain = fastlrp.Explainer(model, "attnlrp", example_inputs=x, backend=backend)
    torch.testing.assert_close(found, plain(x, [1, 4, 4, 7], at=[3]), rtol=1e-12, atol=1e-14)
    (unfused,) = plain.plan.fusions
    # Three parts of each block are no steps of their own; by C++ neither their moves, nor the sum.
    assert len(unfused) == len(fused) + (20 if written else 6)
    again = plain(x, [1, 4, 4, 7], at=[3], layers=["blocks.0.all", "blocks.0.first", "blocks.1.down"])
    for name, relevance in again.items():
        torch.testing.assert_close(inner[name], relevance, rtol=1e-12, atol=1e-14)


def test_a_part_that_is_asked_for_stays():
    model, x = made()
    explainer = fastlrp.Explainer(model, "attnlrp", example_inputs=x)
    with explainer.forward(x) as record:
        every = record.relevance([2], at=2, layers="all")
        for name in ("blocks.0.all", "blocks.1"):
            alone = record.relevance([2], at=2, layers=[name])[name]
            torch.testing.assert_close(every[name], alone, rtol=1e-12, atol=1e-15)


def test_side_by_side_in_one_memory_is_a_view():
    whole = torch.arange(2 * 3 * 12.0).view(2, 3, 12)
    parts = whole.split([4, 2, 6], 2)
    found = joining.already_side_by_side(parts, 2)
    assert found is not None
    assert found.data_ptr() == whole.data_ptr()
    torch.testing.assert_close(found, whole)
    assert joining.already_side_by_side((parts[1], parts[0]), 2) is None
    assert joining.already_side_by_side((parts[0], parts[1].clone()), 2) is None
    assert joining.already_side_by_side((parts[0], parts[2]), 2) is None


@pytest.mark.parametrize("at", [-1, 0, [2, 5], fastlrp.each([1, 4])])
@pytest.mark.parametrize("composite", ["attnlrp", "cp_lrp"])
def test_positions_alone_give_the_same(at, composite, monkeypatch):
    model, x = made()
    explainer = fastlrp.Explainer(model, composite, example_inputs=x)
    seen: list[Any] = []
    run = descent.Descent._run_at_positions

    def spied(self, step, registers, few, state):
        seen.append((step.name, len(few.positions)))
        return run(self, step, registers, few, state)

    monkeypatch.setattr(descent.Descent, "_run_at_positions", spied)
    monkeypatch.setattr(reach, "LEAST_SAVED", 2.0)  # Else positions after the targets are left out below, too.
    few = explainer(x, [1, 4, 7], at=at)
    assert "norm (layer_norm, FixedSigma)" in [name for name, _ in seen]
    assert "blocks.1.out (linear, Epsilon)" in [name for name, _ in seen]
    assert not any("blocks.0" in name for name, _ in seen)
    monkeypatch.setattr("fastlrp.targets.one_hot.OneHot._few_positions", lambda self, position: None)
    seen.clear()
    torch.testing.assert_close(few, explainer(x, [1, 4, 7], at=at), rtol=1e-12, atol=1e-14)
    assert not seen


def test_positions_in_blocks_of_targets_and_in_verify():
    model, x = made()
    explainer = fastlrp.Explainer(model, "attnlrp", example_inputs=x)
    whole = explainer(x, list(range(9)), at=4)
    explainer.plan.block_bytes = 2 * 2 * S * 2 * D * 8
    torch.testing.assert_close(explainer(x, list(range(9)), at=4), whole, rtol=1e-12, atol=1e-14)
    for k in (0, 8):
        torch.testing.assert_close(explainer(x, [k], at=4)[:, 0], whole[:, k], rtol=1e-12, atol=1e-14)
    assert explainer.verify(x, [1, 2], at=4).ok


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_positions_in_lower_precision(dtype):
    model, x = made(dtype=dtype)
    explainer = fastlrp.Explainer(model, "attnlrp", example_inputs=x)
    found = explainer(x, [1, 7], at=2).double()
    exact_model, _ = made()
    exact_model.load_state_dict({k: v.double() for k, v in model.state_dict().items()})
    exact = fastlrp.explain(exact_model, x.double(), [1, 7], "attnlrp", at=2)
    far = {torch.float16: 0.02, torch.bfloat16: 0.15, torch.float32: 1e-5}[dtype]
    assert (found - exact).norm() < far * exact.norm()


def test_at_positions_stands_for_a_dense_register():
    few = AtPositions(torch.tensor([[[[1.0], [2.0]]]]), torch.tensor([1, 3]), 4)
    assert few.shape == (1, 1, 4, 1)
    assert few.dense().flatten().tolist() == [0, 1, 0, 2]
    slot = torch.arange(4.0).view(1, 4, 1)
    assert few.of(slot).flatten().tolist() == [1, 3]
    assert few.of(False) is False


@pytest.mark.parametrize("transposed", [False, True])
def test_products_by_the_other_library(transposed):
    torch.manual_seed(0)
    x, weight = torch.randn(2, 32, 256), torch.randn(256, 300)
    weight = weight.t().contiguous().t() if transposed else weight
    with torch.no_grad():
        assert _product._fits(x, weight.t()) is (_product.onednn_linear() is not None)
        for given in (x, x.transpose(0, 1), x[:, ::2]):
            exact = given.double() @ weight.double()
            assert (_product.product(given, weight) - exact).norm() < 1e-6 * exact.norm()
            shift = torch.randn(300)
            moved = _product.linear(given, weight.t(), shift)
            assert (moved - exact - shift).norm() < 1e-6 * exact.norm()


def test_products_that_stay_with_the_usual_operation():
    x, weight = torch.randn(64, 256), torch.randn(256, 256)
    with torch.no_grad():
        assert not _product._fits(x.double(), weight.double())
        assert not _product._fits(x[:4], weight)
        assert not _product._fits(x[:, :16], weight[:16, :16])
        assert not _product._fits(x, torch.randn(256, 512)[:, ::2][::2])
        torch.testing.assert_close(torch.vmap(lambda row: _product.product(row, weight))(x), x @ weight)
    leaf = weight.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(_product.product(x, leaf).sum(), leaf)
    torch.testing.assert_close(gradient, x.sum(0).unsqueeze(1).expand(-1, 256))


class ClassToken(nn.Module):
    """The first token's scores, after attention whose parts were stacked, not split."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(D, 2, batch_first=True)
        self.norm, self.up, self.head = nn.LayerNorm(D), nn.Linear(D, D), nn.Linear(D, V)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x, x, x, need_weights=False)[0]
        x = x + nn.functional.gelu(self.up(self.norm(x)))
        return self.head(x[:, 0])


@pytest.mark.slow
@pytest.mark.parametrize("composite", ["attnlrp", "cp_lrp", "epsilon_plus"])
def test_a_class_token_and_stacked_parts_give_the_same(composite, monkeypatch):
    torch.manual_seed(0)
    model, x = ClassToken().double().eval(), torch.randn(2, S, D, dtype=torch.float64)
    seen: list[str] = []
    run = descent.Descent._run_at_positions

    def spied(self, step, registers, few, state):
        seen.append(step.name)
        return run(self, step, registers, few, state)

    monkeypatch.setattr(descent.Descent, "_run_at_positions", spied)
    explainer = fastlrp.Explainer(model, composite, example_inputs=x)
    found = explainer(x, [1, 4, 7])
    explainer.plan.check()
    assert any(name.startswith("up (") for name in seen)
    (fused,) = explainer.plan.fusions
    assert any("attention (select)" in step.name for step, _ in fused) is (
        composite == "cp_lrp"
    )  # One part alone gets some.
    every = explainer(x, [1, 4, 7], layers="all")
    monkeypatch.setattr(runner, "economize", lambda steps, known: steps)
    monkeypatch.setattr("fastlrp.kinds.places.at_positions", lambda inverse, window: inverse)
    plain = fastlrp.Explainer(model, composite, example_inputs=x)
    again = plain(x, [1, 4, 7], layers="all")
    torch.testing.assert_close(found, again["input"], rtol=1e-12, atol=1e-14)
    for name, relevance in again.items():
        torch.testing.assert_close(every[name], relevance, rtol=1e-12, atol=1e-14)
    assert explainer.verify(x, [1, 4]).ok


def test_columns_that_are_zero_are_left_out_of_a_product():
    torch.manual_seed(0)
    x, weight = torch.randn(2, 40, 96), torch.randn(96, 600)
    assert _product.alive_columns(x) is None
    for alive in (slice(64, 96), slice(0, 32), slice(20, 50)):
        part = torch.zeros_like(x)
        part[..., alive] = x[..., alive]
        assert _product.alive_columns(part) == alive
        torch.testing.assert_close(_product.product(part, weight), part @ weight, rtol=1e-5, atol=1e-5)
    most = x.clone()
    most[..., :8] = 0
    assert _product.alive_columns(most) is None
    assert not _product.product(torch.zeros_like(x), weight).any()


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.7, 1.0])
def test_one_row_reads_only_the_rows_that_it_multiplies(share, threads, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    weight = torch.randn(1500, 1407)  # In three parts where there are five threads, else whole.
    x = torch.zeros(1, 1, 1500)
    alive = torch.randperm(1500)[: int(share * 1500)]
    x[..., alive] = torch.randn(len(alive))
    unread = weight.clone()
    if share < _product.MOST_ALIVE:
        unread[x.flatten() == 0] = torch.nan
    expected = (x.double() @ weight.double()).float()
    for row in (x, x[0], x[0, 0]):
        found = _product.product(row, unread)
        assert found.shape == (row @ weight).shape
        torch.testing.assert_close(found, expected.view_as(found), rtol=1e-5, atol=1e-4)
    for other in (x.double(), x.requires_grad_()):
        found = _product.product(other, weight.to(other.dtype))
        torch.testing.assert_close(found, other @ weight.to(other.dtype))


def test_a_record_for_later_keeps_no_more_than_one_for_now():
    """``lrp_aware=False``: sigmas and slopes in the place of the larger values that they alone are made of."""
    model = transformer(False, False, True)
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    explainer = fastlrp.Explainer(model, "attnlrp")
    sizes, found = {}, {}
    for aware in (True, False):
        with explainer.forward(x, lrp_aware=aware) as record:
            tensors = [t for t in record.state() if isinstance(t, torch.Tensor)]
            sizes[aware] = sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())
            found[aware] = record.relevance([0, 3])
    assert sizes[False] <= sizes[True]
    assert torch.equal(found[False], found[True])


class CutAndJoined(nn.Module):
    """A sum, of which one summand was cut in two and put together again."""

    def __init__(self) -> None:
        super().__init__()
        self.cut, self.other, self.head = nn.Linear(5, 6), nn.Linear(5, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        other = self.other(x)
        return self.head(torch.cat(self.cut(x).chunk(2, -1), -1) + other)


def test_what_lies_side_by_side_in_the_memory_of_another_step_is_not_written_over():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x = CutAndJoined().double().eval(), torch.randn(2, 5, dtype=torch.float64)
    composite = composites.attnlrp().with_entries(("cut", rules.Epsilon(1e-2)))
    found = fastlrp.explain(model, x, "all", composite)
    with torch.no_grad():
        c, z = model.head.weight, model.cut(x).unsqueeze(1)  # What a unit of the sum gets, of the summand that was cut.
        share = c * z / (z + 1e-2 * z.sign())
        expected = x.unsqueeze(1) * (share @ model.cut.weight + c @ model.other.weight)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_verify_sees_a_fault_of_joined_steps(monkeypatch):
    """Asked for every layer, steps are not joined: verify also asks for the input alone, as users do."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x = CutAndJoined().double().eval(), torch.randn(2, 5, dtype=torch.float64)
    composite = composites.attnlrp().with_entries(("cut", rules.Epsilon(1e-2)))
    assert fastlrp.Explainer(model, composite).verify(x, "all").ok
    monkeypatch.setattr(joining, "is_own", lambda register, ways: True)
    found = fastlrp.Explainer(model, composite).verify(x, "all")
    assert not found.ok
    assert found.joined > 0.1
    assert "the input asked for alone 2" in str(found)
