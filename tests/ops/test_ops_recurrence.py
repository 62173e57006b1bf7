from __future__ import annotations

import pytest
import torch

from fastlrp import functional
from tests.ops.cases import DTYPES, assert_close, backends, bound, reference, reversed_memory, same, with_gaps

OP = "recurrence_relevance"
SHAPES = [  # B, K, T, P, H, blocks of gates
    (2, 3, 5, 7, 7, 1),
    (1, 1, 1, 1, 1, 1),
    (0, 3, 4, 5, 5, 1),
    (2, 0, 4, 5, 5, 3),
    (2, 2, 3, 33, 33, 3),
    (1, 13, 4, 64, 64, 1),
    (2, 3, 4, 5, 17, 1),
]
# What a kind of layer and of gates gives: plain, LSTM, LSTM with uniform gates, GRU, and an LSTM with last memories.
FORMS = {
    "plain": ("scale",),
    "bare": (),
    "lstm": ("scale", "carry", "gates"),
    "lstm_final": ("final", "scale", "carry", "gates"),
    "lstm_output": ("scale", "carry", "gates", "output_entry", "output_scale"),
    "gru": ("scale", "carry", "gates", "reset"),
    "to_input": ("final", "scale", "carry", "gates", "reset", "input_weight"),
    "spread": ("final", "scale", "carry", "reset", "input_weight", "spread"),
    "plain_spread": ("scale", "spread"),
}


def arguments(shape, form, dtype):
    """All arguments in order; a projection where P is not H."""
    B, K, T, P, H, G = shape
    names = set(FORMS[form]) | ({"projection", "output_scale"} if P != H else set())
    G = G if "gates" in names else 1
    C = 37
    O = 2 if P != H and "output_entry" in names else 1
    names -= {"output_entry"} if P != H else set()
    blocks = G + (O - 1 if P != H else "output_scale" in names)
    sizes = {
        "final": (B, K, H), "scale": (B, T, P), "carry": (B, T, H), "gates": (B, T, G, H), "output_entry": (B, T, H),
        "output_scale": (B, T, O, H) if P != H else (B, T, H), "reset": (B, T, H), "projection": (P, H),
        "input_weight": (blocks * H, C), "spread": (B, T, 4 if P != H else 3, H),
    }  # fmt: skip

    small = {"spread": 0.3 / H**0.5}

    def given(name):
        return torch.randn(sizes[name], dtype=dtype) * small.get(name, 1) if name in names else None

    weight = torch.randn(blocks * H, P, dtype=dtype) / (blocks * H) ** 0.5
    rest = [given(n) for n in ("scale", "carry", "gates", "output_entry", "output_scale", "reset", "projection",
                                  "input_weight", "spread")]  # fmt: skip
    relevance, entry = torch.randn(B, K, T, P, dtype=dtype), torch.randn(B, T, P, dtype=dtype)
    return [relevance, given("final"), weight, entry, *rest]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", backends(OP))
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_reference(shape, form, backend, dtype):
    given = arguments(shape, form, dtype)
    expected = reference(OP)(*given)
    for change in (same, with_gaps, reversed_memory):
        got = bound(OP, backend, dtype)(*(None if t is None else change(t) for t in given))
        assert_close(got, expected, change.__name__)


@pytest.mark.parametrize("form", ["lstm_output", "to_input"])
@pytest.mark.parametrize("backend", backends(OP))
def test_result_does_not_depend_on_the_block(backend, form):
    given = arguments((2, 9, 4, 24, 24, 3), form, torch.float32)
    whole = bound(OP, backend, torch.float32)(*given)
    for k in range(9):
        final = None if given[1] is None else given[1][:, k : k + 1]
        one = bound(OP, backend, torch.float32)(given[0][:, k : k + 1], final, *given[2:])
        for got, expected in zip(one[:3], whole[:3], strict=True):
            assert torch.allclose(got[:, 0], expected[:, k], rtol=1e-5, atol=1e-5)


def test_two_steps_by_hand():
    """One unit: d_2 = 2 * 3 = 6, s_2 = 6 / 2 = 3, a_1 = 4 * 3 = 12; d_1 = 1 * 5 + 0.5 * 12 + 0.25 * 6 = 12.5."""
    one = lambda *numbers: torch.tensor(numbers, dtype=torch.float64).view(1, -1, 1)  # noqa: E731
    R, weight = torch.tensor([5.0, 3.0]).double().view(1, 1, 2, 1), torch.full((1, 1), 4.0).double()
    gates, carry = one(1.0, 0.5).unsqueeze(2), one(2.0, 0.25)
    s, a, memory, _ = functional.recurrence_relevance(R, None, weight, one(1.0, 2.0), one(0.5, 9.0), carry, gates)
    assert s.flatten().tolist() == [12.5, 3.0]
    assert (a.item(), memory.item()) == (50.0, 25.0)


def test_spread_by_hand():
    """Two units: d_2 = (1, 2), e = 3 * 1 = 3, s_2 = (1, 2) + 2 * 3 = (7, 8), g_2 = 7 - 8 = -1, a_1 = 15 to each.

    d_1 = (4 - 1 + 15, 5 - 1 + 15) + d_2 + e = (22, 24); e = 66, s_1 = (154, 156), g_1 = -2.
    """
    R = torch.tensor([[4.0, 5.0], [1.0, 2.0]]).double().view(1, 1, 2, 2)
    ones, weight = torch.ones(1, 2, 2).double(), torch.ones(2, 2).double()
    spread = torch.tensor([[3.0, 0.0], [2.0, 2.0], [1.0, -1.0]]).double().expand(1, 2, 3, 2)
    to_input = torch.tensor([[1.0], [0.0]]).double()
    s, a, memory, g = functional.recurrence_relevance(
        R, None, weight, ones, None, ones, input_weight=to_input, spread=spread
    )
    assert s.flatten().tolist() == [154.0, 7.0]
    assert (a.flatten().tolist(), memory.flatten().tolist(), g.flatten().tolist()) == (
        [310.0] * 2,
        [88.0, 90.0],
        [-2.0, -1.0],
    )


@pytest.mark.parametrize(
    ("place", "change", "error", "message"),
    [
        (0, lambda t: t[:, 0], ValueError, "relevance must have shape .B, K, T, P.*unsqueeze"),
        (0, lambda t: t[:, :, :0], ValueError, "at least one step"),
        (2, lambda t: t[:-1], ValueError, r"weight must have shape \(J H, P\) = \(21, 7\)"),
        (3, lambda t: t.double(), TypeError, "entry must have dtype torch.float32"),
        (5, lambda t: t[:, 1:], ValueError, r"carry must have shape \(B, T, H\)"),
        (7, lambda t: t, ValueError, "must be given together"),
    ],
)
def test_errors_name_the_argument(place, change, error, message):
    given = arguments((2, 3, 5, 7, 7, 2), "lstm_output", torch.float32)
    given[place] = None if place == 7 else change(given[place])
    with pytest.raises(error, match=message):
        functional.recurrence_relevance(*given)
