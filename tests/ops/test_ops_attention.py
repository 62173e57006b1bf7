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
from tests.ops.cases import TOLERANCE, backends, bound, in_dtypes, reference, reversed_memory, same, with_gaps

FORWARD, RELEVANCE, VALUE, UP = OPS = (
    "attention_forward", "attention_relevance", "attention_value_relevance", "attention_up",
)  # fmt: skip
aten = importlib.import_module("fastlrp.aten.attention")
SHARES = (0.25, 0.3, 0.5)
# B, K, H, G, S, T, D, E; causal, mask, cap, epsilon
CASES = [
    (2, 3, 4, 4, 5, 5, 16, 16, False, None, 0.0, 0.0),
    (2, 3, 4, 2, 7, 7, 5, 5, True, None, 0.0, 0.0),
    (1, 2, 6, 1, 4, 9, 3, 3, True, None, 0.0, 0.1),
    (2, 2, 3, 3, 9, 4, 7, 5, True, "bool", 0.0, 0.0),
    (2, 2, 4, 2, 6, 8, 4, 6, False, "keys", 1.5, 0.0),
    (2, 1, 4, 2, 13, 11, 8, 8, False, "bias", 0.0, 0.0),
    (2, 5, 2, 2, 6, 6, 8, 8, True, "alibi", 2.0, 0.05),
    (1, 3, 2, 1, 8, 8, 4, 4, False, "window", 0.0, 0.0),
    (2, 2, 2, 2, 6, 5, 4, 4, False, "rows", 0.0, 0.0),
    (2, 2, 2, 2, 6, 5, 4, 3, True, "rows", 2.0, 0.0),
    (2, 3, 2, 1, 1, 1, 4, 4, True, None, 0.0, 0.0),
    (1, 2, 2, 2, 1, 17, 1, 1, False, None, 0.0, 0.0),
    (1, 1, 1, 1, 31, 37, 64, 64, False, None, 0.0, 0.0),
    (1, 2, 2, 1, 65, 65, 33, 33, True, None, 0.0, 0.0),
    (1, 2, 1, 1, 3, 4, 256, 256, False, "bias", 0.0, 0.0),
    (1, 2, 2, 1, 270, 300, 4, 5, True, None, 0.0, 0.1),
    (1, 2, 1, 1, 257, 523, 4, 4, False, "window", 1.5, 0.0),
    (0, 2, 2, 1, 3, 4, 5, 5, False, None, 0.0, 0.0),
    (2, 0, 2, 1, 3, 4, 5, 5, True, "bool", 0.0, 0.0),
    (2, 2, 2, 1, 3, 0, 5, 5, False, None, 0.0, 0.0),
    (2, 2, 2, 1, 0, 4, 5, 5, False, None, 0.0, 0.0),
]  # fmt: skip


def mask_of(kind: str | None, B: int, H: int, S: int, T: int, dtype: torch.dtype) -> Tensor | None:
    rows, columns = torch.arange(S).unsqueeze(1), torch.arange(T)
    masks = {
        "bool": lambda: torch.rand(S, T) < 0.6,
        "keys": lambda: torch.rand(B, 1, 1, T) < 0.7,
        "bias": lambda: torch.randn(B, H, S, T, dtype=dtype),
        "alibi": lambda: -torch.rand(H, 1, 1, dtype=dtype) * (rows - columns).abs().to(dtype),
        "window": lambda: torch.where((rows - columns).abs() <= 2, 0.0, -torch.inf).to(dtype),
        "rows": lambda: (torch.rand(B, 1, S, T) < 0.7) & (torch.arange(S) % 3 != 1).unsqueeze(1),
    }
    return None if kind is None else masks[kind]()


def arguments(case: tuple[Any, ...], dtype: torch.dtype) -> dict[str, tuple[Any, ...]]:
    """The arguments of each operation for a case."""
    B, K, H, G, S, T, D, E, causal, kind, cap, epsilon = case
    q, k, v = (torch.randn(size, dtype=dtype) for size in ((B, H, S, D), (B, G, T, D), (B, G, T, E)))
    g = torch.randn(B, K, H, S, E, dtype=dtype)
    how = (mask_of(kind, B, H, S, T, dtype), causal, 1.3 / math.sqrt(D), cap)
    output, log_sum = reference(FORWARD)(q, k, v, *how)
    return {
        FORWARD: (q, k, v, *how),
        RELEVANCE: (g, q, k, v, output, log_sum, *how, *SHARES, epsilon),
        VALUE: (g, q, k, log_sum, *how),
        UP: (q, k, v, output, log_sum, *_brought(q, k, v, K), *how, *SHARES, epsilon),
    }


def _brought(q: Tensor, k: Tensor, v: Tensor, groups: int) -> tuple[Tensor, ...]:
    """What groups bring to queries, keys and values."""
    return tuple(torch.randn(len(t), groups, *t.shape[1:], dtype=t.dtype) for t in (q, k, v))


def assert_equal(got: Any, expected: Any, given: tuple[Any, ...], tolerance: float | None = None) -> None:
    """Up to rounding, relative to the result or, where that is rounding alone (one key), to the first argument."""
    got, expected = tree_leaves(got), tree_leaves(expected)
    assert len(got) == len(expected)
    for found, right in zip(got, expected, strict=True):
        assert found.shape == right.shape
        assert found.dtype == right.dtype
        assert torch.equal(found.isneginf(), right.isneginf())
        found, right = (t.double().masked_fill(t.isneginf(), 0) for t in (found, right))
        most = tolerance or TOLERANCE[given[0].dtype]
        assert found.isfinite().all()
        assert (found - right).norm() <= most * max(right.norm(), given[0].double().norm())


def heads_last(t: Tensor) -> Tensor:
    """The same values in memory (…, S, H, D), as a projection makes them."""
    return t.transpose(-2, -3).contiguous().transpose(-2, -3) if t.dim() > 3 else t


def changed(given: tuple[Any, ...], change: Any) -> tuple[Any, ...]:
    return tuple(change(a) if isinstance(a, Tensor) else a for a in given)


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


GOOD = {
    "relevance": torch.zeros(2, 3, 4, 5, 7), "query": torch.zeros(2, 4, 5, 8), "key": torch.zeros(2, 2, 6, 8),
    "value": torch.zeros(2, 2, 6, 7), "output": torch.zeros(2, 4, 5, 7), "log_sum": torch.zeros(2, 4, 5),
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"relevance": torch.zeros(2, 4, 5, 7)}, ValueError, r"relevance must have shape \(B, K, H, S, E\), got"),
        ({"relevance": torch.zeros(2, 3, 4, 5, 8)}, ValueError, r"relevance must have shape .* = \(2, 3, 4, 5, 7\)"),
        ({"query": torch.zeros(4, 5, 8)}, ValueError, r"query must have shape \(B, H, S, D\), got \(4, 5, 8\)"),
        ({"query": torch.zeros(2, 4, 5, 8).int()}, TypeError, "query must have a floating-point dtype"),
        ({"key": torch.zeros(2, 3, 6, 8)}, ValueError, "heads of query must be a multiple of that of key, got 4 and 3"),
        ({"key": torch.zeros(2, 2, 6, 9)}, ValueError, r"key must have shape \(B, G, T, D\) = \(2, 2, 6, 8\)"),
        ({"value": torch.zeros(2, 2, 5, 7)}, ValueError, r"value must have shape \(B, G, T, E\) = \(2, 2, 6, 7\)"),
        ({"value": torch.zeros(2, 2, 6, 7).double()}, TypeError, "value must have dtype torch.float32"),
        ({"output": None}, TypeError, "output must be a tensor, got None; attention_forward makes it"),
        ({"output": torch.zeros(2, 4, 5, 8)}, ValueError, r"output must have shape \(B, H, S, E\) = \(2, 4, 5, 7\)"),
        ({"log_sum": torch.zeros(2, 4, 6)}, ValueError, r"log_sum must have shape \(B, H, S\) = \(2, 4, 5\)"),
        ({"log_sum": torch.zeros(2, 4, 5).double()}, TypeError, "log_sum must have dtype torch.float32"),
        ({"mask": torch.zeros(2, 6)}, ValueError, r"mask must broadcast to \(B, H, S, T\) = .*, got \(2, 6\)"),
        ({"mask": torch.zeros(5, 6).long()}, TypeError, "mask must be bool .* got torch.int64"),
        ({"mask": [True]}, TypeError, "mask must be a tensor or None, got list"),
        ({"mask": torch.zeros(5, 6, device="meta")}, ValueError, "mask must be on cpu, got meta; move it"),
        ({"cap": -1.0}, ValueError, r"cap must be at least 0 \(0 is none\), got -1.0"),
        ({"epsilon": math.nan}, ValueError, "epsilon must be at least 0"),
        ({"backend": "fast"}, ValueError, "backend: expected 'auto' or one of"),
    ],
)  # fmt: skip
def test_errors(change, error, message):
    with pytest.raises(error, match=message):
        functional.attention_relevance(**{**GOOD, **change})
    for op, names in ((FORWARD, ("query", "key", "value")), (VALUE, ("relevance", "query", "key", "log_sum"))):
        shared = next(iter(change)) in (*names, "mask", "cap", "backend")
        if shared and not (op == VALUE and "relevance" in change and change["relevance"].dim() == 5):
            with pytest.raises(error, match=message):
                getattr(functional, op)(**{**{name: GOOD[name] for name in names}, **change})
