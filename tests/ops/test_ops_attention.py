from __future__ import annotations

import importlib
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastlrp import functional
from fastlrp.aten import _attention as tiles
from fastlrp.backends.dispatch import select
from fastlrp.backends.extension import extension, extension_error
from tests.ops.attention_cases import (
    CASES,
    FORWARD,
    OPS,
    RELEVANCE,
    SHARES,
    UP,
    VALUE,
    arguments,
    assert_equal,
    changed,
    heads_last,
)
from tests.ops.cases import backends, bound, in_dtypes, reference, reversed_memory, same, with_gaps

aten = importlib.import_module("fastlrp.aten.attention")


@pytest.mark.parametrize(("case", "dtype"), in_dtypes(CASES, every=2), ids=str)
@pytest.mark.parametrize("op", OPS)
def test_equals_reference(op, case, dtype):
    given = arguments(case, dtype)[op]
    expected = reference(op)(*given)
    for backend in backends(op):
        call = bound(op, backend, dtype)
        for change in (same, heads_last, with_gaps, reversed_memory):
            assert_equal(call(*changed(given, change)), expected, given)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_small_tiles(monkeypatch, case):
    """Several blocks of heads, query rows, keys and targets."""
    monkeypatch.setattr(tiles, "_WORK", 24)
    monkeypatch.setattr(tiles, "_ROWS", 4)
    monkeypatch.setattr(tiles, "_ROW_BLOCK", 30)
    monkeypatch.setattr(aten, "_flash_takes", lambda *_: False)
    for op, given in arguments(case, torch.float64).items():
        assert_equal(getattr(aten, op)(*given), reference(op)(*given), given)


@pytest.mark.parametrize("case", [CASES[1], CASES[4], CASES[6], CASES[9]], ids=str)
def test_up_is_the_transpose_of_the_way_down(case):
    """<down(g), t> = <g, up(t)>, of all that arrives and of each part alone."""
    given = arguments(case, torch.float64)
    g, down = given[RELEVANCE][0], reference(RELEVANCE)(*given[RELEVANCE])
    fixed, brought, how = given[UP][:5], given[UP][5:8], given[UP][8:]
    for chosen in ((True, True, True), (True, False, False), (False, True, False), (False, False, True)):
        some = [t if here else None for t, here in zip(brought, chosen, strict=True)]
        left = sum(float((c * t).sum()) for c, t in zip(down, some, strict=True) if t is not None)
        for up in (reference(UP), aten.attention_up):
            assert float((g * up(*fixed, *some, *how)).sum()) == pytest.approx(left, rel=1e-11, abs=1e-12)
    values = (None, None, brought[2]), given[UP][8:12], (0.0, 0.0, 1.0, 0.0)
    found = reference(UP)(*fixed, *values[0], *values[1], *values[2])
    expected = float((reference(VALUE)(*given[VALUE]) * brought[2]).sum())
    assert float((g * found).sum()) == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", [CASES[1], CASES[6], (2, 3, 4, 2, 300, 300, 8, 8, True, None, 0.0, 0.0)], ids=str)
def test_half_precision(case, dtype):
    """Against the definition, rounded: worst measured 0.25 of the unit of the dtype. C++ by way of float32."""
    for op, given in arguments(case, dtype).items():
        exact = changed(given, lambda t: t.double() if t.is_floating_point() else t)
        expected = tree_leaves(reference(op)(*exact))
        chosen = select(op, "auto", torch.device("cpu"), dtype)
        assert chosen.backend == ("torch" if op in (FORWARD, UP) or extension_error() else "cpu")
        for call in (getattr(aten, op), chosen.call):
            found = call(*given)
            narrow = [right.to(got.dtype) for got, right in zip(tree_leaves(found), expected, strict=True)]
            assert_equal(found, narrow, given, 0.5 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("isa", extension().available_isas())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_instruction_set(isa, dtype):
    compiled = extension()
    before = compiled.isa()
    try:
        compiled.set_isa(isa)
        for case in (CASES[1], CASES[6], (1, 2, 2, 1, 130, 133, 37, 19, True, "bias", 1.5, 0.1)):
            given = arguments(case, dtype)
            for op in (RELEVANCE, VALUE):
                assert_equal(bound(op, "cpu", dtype)(*given[op]), reference(op)(*given[op]), given[op])
    finally:
        compiled.set_isa(before)


def test_rows_without_relevance_are_skipped():
    """A target at one position alone; blocks of targets of which some bring nothing."""
    given = arguments((1, 5, 2, 1, 140, 140, 8, 8, True, "window", 0.0, 0.0), torch.float32)
    for op in (RELEVANCE, VALUE):
        g, *rest = given[op]
        g = g.clone()
        g[:, 0, :, :-1] = g[:, 1] = g[:, 2, :, :130] = g[:, 3, 1] = g[:, 4, :, 5:] = 0
        assert_equal(bound(op, "cpu", torch.float32)(g, *rest), reference(op)(g, *rest), given[op])


def two_keys(**changes: float) -> list[float]:
    """Scores 0 and ln 2, so that the probabilities are 1/3 and 2/3; values 3 and 6, so that the output is 5."""
    q, k, v = (torch.tensor(t).double() for t in ([1.0], [0, 1.0], [3.0, 6.0]))
    q, k, v = (t.view(1, 1, -1, 1) for t in (q, k * math.log(2), v))
    how = {"mask": None, "causal": False, "scale": 1.0, "cap": 0.0}
    output, log_sum = reference(FORWARD)(q, k, v, **how)
    assert math.isclose(output.item(), 5)
    assert math.isclose(log_sum.item(), math.log(3))
    shares = {"share_query": 1 / 4, "share_key": 1 / 4, "share_value": 1 / 2, "epsilon": 0.0, **changes}
    g = torch.ones(1, 1, 1, 1, 1).double()
    found = reference(RELEVANCE)(g, q, k, v, output, log_sum, **how, **shares)
    return torch.cat([c.flatten() for c in found]).tolist()


def test_fractions():
    """c_s = (1/3 (3 - 5), 2/3 (6 - 5)) = (-2/3, 2/3); a key that is 0 has no share of a product with epsilon."""
    right = [math.log(2) / 6, -1 / 6, 1 / 6, 1 / 6, 1 / 3]
    assert two_keys() == pytest.approx(right, rel=1e-14)
    share = math.log(2) / (math.log(2) + 0.1)
    assert two_keys(epsilon=0.1) == pytest.approx([share * right[0], 0, share / 6, 1 / 6, 1 / 3], rel=1e-14)


def test_heads_of_a_group_add_up():
    """Two heads with the same query and relevance read one key: it has twice the relevance, each query its own."""
    q, k, g = torch.randn(1, 1, 3, 2), torch.randn(1, 1, 4, 2), torch.randn(1, 2, 1, 3, 2)
    how = (None, False, 0.7, 0.0)

    def found(op: str, heads: int) -> list[Tensor]:
        queries, flow = q.expand(1, heads, 3, 2), g.expand(1, 2, heads, 3, 2)
        output, log_sum = reference(FORWARD)(queries, k, k, *how)
        of = {RELEVANCE: (k, output, log_sum, *how, *SHARES, 0.0), VALUE: (log_sum, *how)}[op]
        return tree_leaves(reference(op)(flow, queries, k, *of))

    one, two = found(RELEVANCE, 1), found(RELEVANCE, 2)
    torch.testing.assert_close(two[0], one[0].expand(1, 2, 2, 3, 2))
    for got, single in ((two[1], one[1]), (two[2], one[2]), (found(VALUE, 2)[0], found(VALUE, 1)[0])):
        torch.testing.assert_close(got, 2 * single)


@pytest.mark.parametrize("cap", [0.0, 1.5])
@pytest.mark.parametrize("epsilon", [0.0, 0.2])
def test_equals_autograd(cap, epsilon):
    """The gradient of attention with the soft cap's and the stabilizer's factors held fixed, times the shares."""
    g, q, k, v, output, log_sum, *rest = arguments(
        (2, 3, 4, 2, 6, 6, 4, 5, True, "alibi", cap, epsilon), torch.float64
    )[RELEVANCE]
    mask, _, scale = rest[:3]
    leaves = [t.clone().requires_grad_() for t in (q, k, v)]
    queries, keys, values = leaves
    u = scale * queries @ keys.repeat_interleave(2, 1).mT
    fixed = u.detach()
    if epsilon:
        share = fixed / (fixed + epsilon * torch.where(fixed < 0, -1.0, 1.0).double())
        u = fixed + share * (u - fixed)
    if cap:
        u = u * (cap * torch.tanh(fixed / cap) / fixed)
    s = (u + mask).masked_fill(torch.ones(6, 6).triu(1).bool(), -torch.inf)
    torch.testing.assert_close(s.logsumexp(-1), log_sum)
    o = s.softmax(-1) @ values.repeat_interleave(2, 1)
    for target in range(3):
        gradients = torch.autograd.grad((o * g[:, target]).sum(), leaves, retain_graph=True)
        right = [share * gradient for share, gradient in zip(SHARES, gradients, strict=True)]
        found = reference(RELEVANCE)(g, q, k, v, output, log_sum, *rest)
        for c, expected in zip(found, right, strict=True):
            torch.testing.assert_close(c[:, target], expected, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(reference(VALUE)(g, q, k, log_sum, *rest[:4])[:, 2], 2 * right[2])


def test_a_sink_is_in_the_log_sum():
    """A score without a key: probabilities that do not add up to one, as if there were one more key of value 0."""
    given = arguments((1, 2, 2, 2, 3, 4, 5, 5, False, None, 0.0, 0.0), torch.float64)
    g, q, k, v, *_ = given[RELEVANCE]
    sink, how = torch.randn(2, 1).double(), (None, False, 0.4, 0.0)
    scores = 0.4 * q @ k.mT
    log_sum = torch.logaddexp(scores.logsumexp(-1), sink)
    output = (scores - log_sum.unsqueeze(-1)).exp() @ v
    leaves = [t.clone().requires_grad_() for t in (q, k, v)]
    with_sink = torch.cat([0.4 * leaves[0] @ leaves[1].mT, sink.expand(1, 2, 3).unsqueeze(-1)], -1).softmax(-1)
    right = torch.autograd.grad((with_sink[..., :4] @ leaves[2] * g[:, 1]).sum(), leaves)
    for backend in ("reference", *backends(RELEVANCE)):
        found = bound(RELEVANCE, backend, torch.float64)(g, q, k, v, output, log_sum, *how, 1.0, 1.0, 1.0, 0.0)
        for c, expected in zip(found, right, strict=True):
            torch.testing.assert_close(c[:, 1], expected, rtol=1e-12, atol=1e-13)


def test_a_row_that_attends_to_nothing():
    mask = torch.tensor([[True, False], [False, False], [False, True]])
    given = arguments((1, 2, 2, 1, 3, 2, 4, 4, False, None, 0.0, 0.0), torch.float32)
    q, k, v = given[FORWARD][:3]
    for bias in (mask, torch.zeros(3, 2).masked_fill(~mask, -torch.inf)):
        for backend in ("reference", *backends(FORWARD)):
            output, log_sum = bound(FORWARD, backend, torch.float32)(q, k, v, bias, False, 0.5, 0.0)
            assert output[:, :, 1].eq(0).all()
            assert log_sum.isneginf().nonzero()[:, 2].tolist() == [1, 1]
            g = given[RELEVANCE][0]
            how = (bias, False, 0.5, 0.0)
            c = bound(RELEVANCE, backend, torch.float32)(g, q, k, v, output, log_sum, *how, 1.0, 1.0, 1.0, 0.0)
            assert c[0][:, :, :, 1].eq(0).all()
            assert all(t.isfinite().all() for t in c)


def test_a_score_of_zero_is_no_empty_row():
    """PyTorch's kernel says 0 for the log-sum-exp of an empty row; one key with the score 0 has that too."""
    q, mask = torch.zeros(1, 1, 2, 3), torch.tensor([[True, False], [False, False]])
    output, log_sum = aten.attention_forward(q, q, q + 1, mask, False, 1.0, 0.0)
    assert log_sum.flatten().tolist() == [0, -math.inf]
    assert output[0, 0].tolist() == [[1, 1, 1], [0, 0, 0]]


class Largest(TorchDispatchMode):
    """The largest result of any operation."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        new = [t.untyped_storage().nbytes() // t.element_size() for t in tree_leaves(result) if isinstance(t, Tensor)]
        self.numbers = max(self.numbers, *new, 0)
        return result


@pytest.mark.parametrize("size", [(1, 16, 4, 4, 300, 300, 4, 4), (1, 6, 2, 1, 20, 20000, 4, 4)], ids=str)
def test_scores_of_all_targets_are_never_stored(size):
    (B, K, H, G, S, T, D, E), dtype = size, torch.float32
    q, k, v, g = (torch.randn(s) for s in ((B, H, S, D), (B, G, T, D), (B, G, T, E), (B, K, H, S, E)))
    how = (None, False, 0.5, 0.0)
    output, log_sum = bound(FORWARD, "torch", dtype)(q, k, v, *how)
    with Largest() as largest:
        aten.attention_relevance(g, q, k, v, output, log_sum, *how, *SHARES, 0.0)
    assert tiles._WORK // 4 < largest.numbers <= max(tiles._WORK, T * tiles._ROWS // 4, K * G * T * D)
    assert largest.numbers < K * H * S * T / 3


def test_differentiable():
    """Under autograd the PyTorch operations are functions of all their arguments."""
    given = arguments((1, 2, 2, 1, 3, 3, 2, 2, True, None, 1.5, 0.1), torch.float64)
    g, q, k, v, output, log_sum = (t.requires_grad_() for t in given[RELEVANCE][:6])
    assert torch.autograd.gradcheck(
        lambda *t: aten.attention_relevance(*t, *given[RELEVANCE][6:]), (g, q, k, v, output, log_sum)
    )
    assert torch.autograd.gradcheck(
        lambda *t: aten.attention_value_relevance(*t, *given[VALUE][4:]), (g, q, k, log_sum)
    )


def test_results_lie_as_the_operands_do():
    """A projection has its heads innermost in memory; what goes on to its transpose needs no copy."""
    given = arguments((2, 3, 4, 2, 5, 6, 8, 8, False, None, 0.0, 0.0), torch.float32)[RELEVANCE]
    for backend in backends(RELEVANCE):
        for c in bound(RELEVANCE, backend, torch.float32)(*changed(given, heads_last)):
            assert c.transpose(2, 3).is_contiguous()
        for c in bound(RELEVANCE, backend, torch.float32)(*given):
            assert c.is_contiguous()


def test_public_functions():
    case = (2, 3, 4, 2, 5, 5, 8, 8, True, "keys", 0.0, 0.0)
    for op, given in arguments(case, torch.float32).items():
        for backend in ("auto", "reference", "torch", "cpu"):
            assert_equal(getattr(functional, op)(*given, backend=backend), reference(op)(*given), given)
