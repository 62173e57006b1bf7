"""Layouts in which models cut queries, keys and values from one product: attention writes where the product reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastlrp
from fastlrp.backends import extension

S, WIDE, HEADS, CLASSES = 5, 16, 2, 4
EACH = WIDE // HEADS


def _heads(parts: Sequence[Tensor]) -> list[Tensor]:
    return [part.view(part.shape[0], S, HEADS, EACH).transpose(1, 2) for part in parts]


def _of_five_axes(y: Tensor) -> Tensor:
    return y.reshape(y.shape[0], S, 3, HEADS, EACH).permute(2, 0, 3, 1, 4)


def _each(whole: Tensor, part: Callable[[Tensor, int], Tensor]) -> list[Tensor]:
    return [part(whole, i) for i in range(3)]


def _by_head(y: Tensor) -> Tensor:
    return y.view(y.shape[0], S, HEADS, 3 * EACH)


LAYOUTS: dict[str, Callable[[Tensor], Sequence[Tensor]]] = {
    "timm": lambda y: _of_five_axes(y).unbind(0),
    "DINO": lambda y: _each(_of_five_axes(y), lambda t, i: t[i]),
    "einops": lambda y: list(_of_five_axes(y)),
    "nanoGPT": lambda y: _heads(y.chunk(3, dim=-1)),
    "GPT-2": lambda y: _heads(y.split(WIDE, 2)),
    "CLIP": lambda y: [t.transpose(1, 2) for t in y.view(y.shape[0], S, 3, HEADS, EACH).unbind(2)],
    "third axis": lambda y: _each(_of_five_axes(y).permute(1, 2, 0, 3, 4), lambda t, i: t[:, :, i]),
    "GPT-NeoX": lambda y: _by_head(y).transpose(1, 2).chunk(3, dim=-1),
    "BLOOM": lambda y: _each(y.view(y.shape[0], S, HEADS, 3, EACH).transpose(1, 2), lambda t, i: t[..., i, :]),
}


class Model(nn.Module):
    """One layer of attention on a class token, fused or written out."""

    def __init__(self, layout: str, fused: bool) -> None:
        super().__init__()
        self.cut, self.fused = LAYOUTS[layout], fused
        self.norm, self.qkv = nn.LayerNorm(WIDE), nn.Linear(WIDE, 3 * WIDE)
        self.proj, self.head = nn.Linear(WIDE, WIDE), nn.Linear(WIDE, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.cut(self.qkv(self.norm(x)))
        if self.fused:
            mixed = F.scaled_dot_product_attention(q, k, v)
        else:
            mixed = ((q * EACH**-0.5) @ k.transpose(-2, -1)).softmax(-1) @ v
        x = x + self.proj(mixed.transpose(1, 2).reshape(x.shape[0], S, WIDE))
        return self.head(x[:, 0])


def made(layout: str, fused: bool = True) -> tuple[nn.Module, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Model(layout, fused).double().eval(), torch.randn(2, S, WIDE, dtype=torch.float64)


def between(explainer: fastlrp.Explainer) -> list[str]:
    """The steps between attention and the product below it."""
    (fused,) = explainer.plan.fusions
    names = [step.name for step, _ in fused]
    first = max(i for i, name in enumerate(names) if "scaled_dot" in name or "matmul" in name)
    return names[first + 1 : next(i for i, name in enumerate(names) if name.startswith("qkv (linear, Epsilon"))]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("fused", [True, False])
def test_parts_are_written_where_the_product_reads_them(layout, fused):
    model, x = made(layout, fused)
    explainer = fastlrp.Explainer(model, "attnlrp", example_inputs=x)
    found = explainer(x, "all")
    exact: Any = fastlrp.explain(model, x, "all", "attnlrp", backend="reference")
    torch.testing.assert_close(found, exact, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(found[1], explainer(x[1:], "all")[0], rtol=1e-12, atol=1e-15)
    if extension.why_not_loaded() is None:
        assert between(explainer) == []
