"""Layouts in which models cut queries, keys and values from one product: attention writes where the product reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

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


class ByAnotherWay(Model):
    """Parts of which some come to attention by way of other layers, or from another product."""

    def __init__(self, form: str) -> None:
        super().__init__("timm", fused=True)
        self.form, self.normed = form, nn.LayerNorm(EACH)
        self.few, self.query = nn.Linear(WIDE, WIDE + 2 * EACH), nn.Linear(WIDE, WIDE)
        self.two = nn.Linear(WIDE, 2 * WIDE)
        self.register_buffer("cos", torch.randn(S, EACH))
        self.register_buffer("sin", torch.randn(S, EACH))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = getattr(self, self.form)(self.norm(x))
        mixed = F.scaled_dot_product_attention(q, k, v)
        x = x + self.proj(mixed.transpose(1, 2).reshape(x.shape[0], S, WIDE))
        return self.head(x[:, 0])

    def normed_parts(self, y: Tensor) -> Sequence[Tensor]:
        q, k, v = self.cut(self.qkv(y))
        return self.normed(q), self.normed(k), v

    def rotated_pairs(self, y: Tensor) -> Sequence[Tensor]:
        q, k, v = self.cut(self.qkv(y))
        return self.turned(q), self.turned(k), v

    def turned(self, t: Tensor) -> Tensor:
        other = torch.stack([-t[..., 1::2], t[..., ::2]], -1).flatten(-2)
        return torch.cat([t[:, :, :1], (t * self.cos + other * self.sin)[:, :, 1:]], 2)

    def rotated_halves(self, y: Tensor) -> Sequence[Tensor]:
        q, k, v = _heads(self.qkv(y).chunk(3, -1))
        turned = [torch.cat([-t[..., EACH // 2 :], t[..., : EACH // 2]], -1) for t in (q, k)]
        return *(t * self.cos + other * self.sin for t, other in zip((q, k), turned, strict=True)), v

    def keys_for_several_heads(self, y: Tensor) -> Sequence[Tensor]:
        q, k, v = self.few(y).split([WIDE, EACH, EACH], -1)
        k, v = (t.unsqueeze(1).expand(-1, HEADS, -1, -1) for t in (k, v))
        return *_heads([q]), k, v

    def queries_of_another_product(self, y: Tensor) -> Sequence[Tensor]:
        k, v = self.two(y).reshape(y.shape[0], S, 2, HEADS, EACH).permute(2, 0, 3, 1, 4).unbind(0)
        return *_heads([self.query(y)]), k, v

    def values_twice(self, y: Tensor) -> Sequence[Tensor]:
        q, k, v = self.cut(self.qkv(y))
        return q, v, v + k


class Copied(TorchDispatchMode):
    """Counts entries of registers that are copied, or filled with zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.entries = 0

    def __torch_dispatch__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = call(*args, **(kwargs or {}))
        if call.overloadpacket.__name__ in ("copy_", "clone", "cat", "new_zeros", "index_add_") and result.dim() > 3:
            self.entries += result.numel()
        return result


# By form: how many times as many entries as queries have are copied. Two of them are the zeros around the class token.
OTHER_WAYS = {
    "normed_parts": 2 + 2,
    "rotated_pairs": 2 + 2 + 2 * 1.8,  # And around all tokens but the first, which alone are rotated.
    "rotated_halves": 2 + 2,
    "keys_for_several_heads": 2 + 1,
    "queries_of_another_product": 2,
    "values_twice": 2 + 2,
}


@pytest.mark.parametrize("form", OTHER_WAYS)
def test_parts_that_come_by_another_way_are_copied_once(form):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x = ByAnotherWay(form).double().eval(), torch.randn(2, S, WIDE, dtype=torch.float64)
    explainer = fastlrp.Explainer(model, "attnlrp", example_inputs=x)
    found = explainer(x, "all")
    exact: Any = fastlrp.explain(model, x, "all", "attnlrp", backend="reference")
    torch.testing.assert_close(found, exact, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(found[1], explainer(x[1:], "all")[0], rtol=1e-12, atol=1e-15)
    explainer.plan.block_bytes = 2 * 8 * 3 * S * WIDE  # One target after the other from the product on.
    torch.testing.assert_close(explainer(x, "all"), exact, rtol=1e-12, atol=1e-15)
    assert explainer.verify(x, [1, 2]).ok
    explainer.plan.block_bytes = 1 << 20
    with explainer.forward(x) as record:
        every = record.relevance("all", layers="all")
        with Copied() as copied:
            record.relevance("all")
    if extension.why_not_loaded() is None:
        assert copied.entries == OTHER_WAYS[form] * 2 * CLASSES * S * WIDE
    torch.testing.assert_close(every["input"], exact, rtol=1e-12, atol=1e-15)


class ByMaps(nn.Module):
    """Attention between the positions of maps, channels before them, or between those of windows."""

    def __init__(self, form: str, fused: bool) -> None:
        super().__init__()
        self.form, self.fused = form, fused
        self.qkv, self.all = nn.Conv2d(WIDE, 3 * WIDE, 1), nn.Linear(WIDE, 3 * WIDE)
        self.proj, self.head = nn.Linear(WIDE, WIDE), nn.Linear(WIDE, CLASSES)
        self.bias = nn.Parameter(torch.randn(HEADS, 4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.proj(getattr(self, self.form)(x)).mean((1, 2)))

    def attended(self, parts: Sequence[Tensor], mask: Tensor | None) -> Tensor:
        q, k, v = parts
        if self.fused:
            return F.scaled_dot_product_attention(q, k, v, mask)
        scores = q @ k.transpose(-2, -1) * EACH**-0.5
        return (scores if mask is None else scores + mask).softmax(-1) @ v

    def channels_first(self, x: Tensor) -> Tensor:
        parts = self.qkv(x).reshape(x.shape[0], 3, HEADS, EACH, -1).permute(1, 0, 2, 4, 3).unbind(0)
        mixed = self.attended(parts, None).permute(0, 1, 3, 2).reshape(x.shape[0], WIDE, 4, 4)
        return mixed.permute(0, 2, 3, 1)

    def windows(self, x: Tensor) -> Tensor:
        batch = x.shape[0]
        rows = x.permute(0, 2, 3, 1).view(batch, 2, 2, 2, 2, WIDE).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, WIDE)
        parts = self.all(rows).reshape(-1, 4, 3, HEADS, EACH).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = self.attended(parts, self.bias).transpose(1, 2).reshape(batch, 2, 2, 2, 2, WIDE)
        return mixed.permute(0, 1, 3, 2, 4, 5).reshape(batch, 4, 4, WIDE)


@pytest.mark.parametrize("form", ["channels_first", "windows"])
@pytest.mark.parametrize("fused", [True, False])
def test_maps_and_windows(form, fused):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x = ByMaps(form, fused).double().eval(), torch.randn(2, WIDE, 4, 4, dtype=torch.float64)
    explainer = fastlrp.Explainer(model, "attnlrp", example_inputs=x)
    found = explainer(x, "all")
    exact: Any = fastlrp.explain(model, x, "all", "attnlrp", backend="reference")
    torch.testing.assert_close(found, exact, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(found[1], explainer(x[1:], "all")[0], rtol=1e-12, atol=1e-15)
    (first, *_) = explainer.plan.fusions
    if extension.why_not_loaded() is None:
        assert not any("sum for 3 readers" in step.name for step, _ in first), "attention fills the whole"
