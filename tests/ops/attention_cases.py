"""Shapes, masks and arguments of each operation of attention."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from tests.ops.cases import TOLERANCE, reference

FORWARD, RELEVANCE, VALUE, UP = OPS = (
    "attention_forward", "attention_relevance", "attention_value_relevance", "attention_up",
)  # fmt: skip
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
