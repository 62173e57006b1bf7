"""Models whose outputs have positions, targets at these, and the initial relevance that they stand for."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastlrp
from tests.api.models import samples, shared

B, S, D, V = 3, 6, 4, 9
TIGHT = 1e-12


class Text(nn.Module):
    """(B, 6, 4) -> (B, 6, 9): positions mix before the head."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.mix, self.head = nn.Linear(D, 5), nn.Conv1d(S, S, 1), nn.Linear(5, V)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.mix(F.relu(self.first(x)))))


class WithIds(Text):
    """The same beside ids, which say what is padding."""

    def forward(self, x: Tensor, input_ids: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x.masked_fill((input_ids == 0).unsqueeze(-1), 0))


def text(kind: type[nn.Module] = Text, dtype: torch.dtype = torch.float64) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind().to(dtype).eval()


X = torch.randn(B, S, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = text()(X).detach()


@cache
def explained_text() -> fastlrp.Explainer:
    return fastlrp.Explainer(text(), "epsilon_plus", example_inputs=X)


def segment(targets, **options):
    """Relevance of the pictures of ``samples("segment")``, whose output's axis 1 are classes."""
    return shared("segment", "lrp0")(samples("segment"), targets, **options)


def dense(entries: list[list[dict[tuple[int, int], float]]], values: Tensor = Y) -> Tensor:
    """``(B, K, S, V)`` from, per sample, K dicts of (position, class) -> weight."""
    made = torch.zeros(B, len(entries[0]), S, V, dtype=torch.float64)
    for b, targets in enumerate(entries):
        for k, target in enumerate(targets):
            for (t, c), weight in target.items():
                made[b, k, t, c] += weight * values[b, t, c]
    return made


def shared_by_all(*targets: dict[tuple[int, int], float]) -> list[list[dict[tuple[int, int], float]]]:
    return [list(targets)] * B


def one(*places: tuple[int, int]) -> list[list[dict[tuple[int, int], float]]]:
    return shared_by_all(*({place: 1.0} for place in places))


TOP = Y.topk(2, dim=2).indices

CASES = {
    "one": (7, 2, one((2, 7))),
    "last": (7, -1, one((5, 7))),
    "numpy": (np.int64(7), np.int64(2), one((2, 7))),
    "crossed, positions outermost": ([7, 0], [3, -1], one((3, 7), (3, 0), (5, 7), (5, 0))),
    "range": (range(2), range(2), one((0, 0), (0, 1), (1, 0), (1, 1))),
    "all classes": ("all", 4, one(*((4, c) for c in range(V)))),
    "all positions": (8, "all", one(*((t, 8) for t in range(S)))),
    "everything": ("all", "all", one(*((t, c) for t in range(S) for c in range(V)))),
    "best of the position": (
        "top2", [1, 5], [[{(t, int(TOP[b, t, i])): 1.0} for t in (1, 5) for i in range(2)] for b in range(B)],
    ),
    "classes per sample": (
        torch.tensor([[1, 2], [3, 4], [5, 6]]), 3, [[{(3, c): 1.0} for c in row] for row in ((1, 2), (3, 4), (5, 6))],
    ),
    "each class": (fastlrp.each([8, 0, 4]), 3, [[{(3, c): 1.0}] for c in (8, 0, 4)]),
    "each position": (1, fastlrp.each([0, -2, 5]), [[{(t, 1): 1.0}] for t in (0, 4, 5)]),
    "both each": (
        fastlrp.each(np.array([8, 0, 4])), fastlrp.each(torch.tensor([2, 2, 0])),
        [[{(2, 8): 1.0}], [{(2, 0): 1.0}], [{(0, 4): 1.0}]],
    ),
    "positions per sample": (
        [6], torch.tensor([[0, 1], [2, 3], [4, 5]]), [[{(t, 6): 1.0} for t in row] for row in ((0, 1), (2, 3), (4, 5))],
    ),
    "pairs": ([(3, 7), (5, 8), (-1, 0)], "pairs", one((3, 7), (5, 8), (5, 0))),
    "pairs as a tensor": (torch.tensor([[3, 7], [5, 8]]), "pairs", one((3, 7), (5, 8))),
    "pairs per sample": (
        torch.tensor([[[3, 7]], [[0, 8]], [[1, 1]]]), "pairs", [[{(3, 7): 1.0}], [{(0, 8): 1.0}], [{(1, 1): 1.0}]],
    ),
    "each pair": (
        fastlrp.each([(3, 7), (0, 8), (1, 1)]), "pairs", [[{(3, 7): 1.0}], [{(0, 8): 1.0}], [{(1, 1): 1.0}]],
    ),
    "contrast": ({3: 1.0, 7: -0.5}, 2, shared_by_all({(2, 3): 1.0, (2, 7): -0.5})),
    "contrasts and classes": (
        [4, {3: 1.0, 7: -0.5, 8: 2}, {0: 3}], [0, 2],
        shared_by_all(*(d for t in (0, 2) for d in (
            {(t, 4): 1.0}, {(t, 3): 1.0, (t, 7): -0.5, (t, 8): 2.0}, {(t, 0): 3.0}))),
    ),
    "contrast of each sample": (
        fastlrp.each([{3: 1.0, 7: -0.5}, 2, {0: 2.0}]), -1,
        [[{(5, 3): 1.0, (5, 7): -0.5}], [{(5, 2): 1.0}], [{(5, 0): 2.0}]],
    ),
    "contrast of positions": (
        [{(3, 7): 1.0, (5, 7): -1.0}, (0, 0)], "pairs", shared_by_all({(3, 7): 1.0, (5, 7): -1.0}, {(0, 0): 1.0}),
    ),
    "next tokens": (
        fastlrp.next_tokens([[1, 2, 3, 4, 5, 6], [0, 8, 0, 8, 0, 8], [7, 7, 7, 7, 7, 7]]), None,
        [[{(t, ids[t + 1]): 1.0} for t in range(5)] for ids in ((1, 2, 3, 4, 5, 6), (0, 8, 0, 8, 0, 8), (7,) * 6)],
    ),
    "next tokens of some positions": (
        fastlrp.next_tokens(torch.tensor([[1, 2, 3, 4, 5, 6], [0, 8, 0, 8, 0, 8], [7, 7, 7, 7, 7, 7]])), [4, 0],
        [[{(4, a): 1.0}, {(0, b): 1.0}] for a, b in ((6, 2), (8, 8), (7, 7))],
    ),
}  # fmt: skip
