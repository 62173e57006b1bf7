"""Models whose batch axis leaves axis 0 and comes back, as people write attention, windows, frames and tokens."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.models.cases import Written, linear

Model = Callable[[], tuple[nn.Module, Tensor]]


def _attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.bmm((q @ k.transpose(-2, -1) if q.dim() != 3 else torch.bmm(q, k.transpose(1, 2))).softmax(-1), v)


def sequence_first() -> tuple[nn.Module, Tensor]:
    """``nn.MultiheadAttention`` on ``(S, B, D)`` written out: heads are folded into the batch."""

    def body(m: Written, x: Tensor) -> Tensor:
        h = x.transpose(0, 1)
        S, B, D = h.shape
        q, k, v = (t.contiguous().view(S, B * 2, D // 2).transpose(0, 1) for t in m.qkv(h).chunk(3, -1))
        attended = _attention(q / 2, k, v).transpose(0, 1).contiguous().view(S * B, D)
        return m.head((m.out(attended).view(S, B, D) + h).mean(0))

    return Written(body, qkv=nn.Linear(8, 24), out=nn.Linear(8, 8), head=linear(8)), torch.randn(3, 5, 8)


def time_first() -> tuple[nn.Module, Tensor]:
    """``(T, B, C)``: norm, softmax over time, and an entry of each sample."""

    def body(m: Written, x: Tensor) -> Tensor:
        h = m.norm(m.a(x.permute(1, 0, 2))).relu()
        h = h * m.gate(h).softmax(0)
        return m.head(torch.cat([h.sum(0), h[-1], h.amax(0)], 1))

    return (
        Written(body, a=nn.Linear(6, 8), norm=nn.LayerNorm(8), gate=nn.Linear(8, 1), head=linear(24)),
        torch.randn(3, 4, 6),
    )


def windows() -> tuple[nn.Module, Tensor]:
    """Swin: rolled, cut into windows that are folded into the batch, attention with a mask, and back."""
    mask = torch.zeros(4, 4, 4).masked_fill(torch.arange(4).view(1, 4, 1) > torch.arange(4).view(4, 1, 1), -100.0)

    def body(m: Written, x: Tensor) -> Tensor:
        B, H, W, C = x.shape
        h = m.norm(x).roll((-1, -1), (1, 2))
        h = h.view(B, H // 2, 2, W // 2, 2, C).permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, 4, C)
        q, k, v = m.qkv(h).reshape(-1, 4, 3, 2, C // 2).permute(2, 0, 3, 1, 4).unbind(0)
        scores = q @ k.transpose(-2, -1) + m.bias
        scores = scores.view(-1, 4, 2, 4, 4) + m.mask.unsqueeze(1).unsqueeze(0)
        h = (scores.view(-1, 2, 4, 4).softmax(-1) @ v).transpose(1, 2).reshape(-1, 4, C)
        h = m.out(h).view(B, H // 2, W // 2, 2, 2, C).permute(0, 1, 3, 2, 4, 5).contiguous().view(B, H, W, C)
        return m.head((x + h.roll((1, 1), (1, 2))).mean((1, 2)))

    model = Written(body, norm=nn.LayerNorm(6), qkv=nn.Linear(6, 18), out=nn.Linear(6, 6), head=linear(6))
    model.register_buffer("mask", mask)
    model.bias = nn.Parameter(torch.randn(2, 4, 4))
    return model, torch.randn(3, 4, 4, 6)


def tokens() -> tuple[nn.Module, Tensor]:
    """GPT-2: a matrix product on all tokens of all samples."""

    def body(m: Written, x: Tensor) -> Tensor:
        h = torch.addmm(m.c, x.view(-1, x.size(-1)), m.w).view(*x.shape[:-1], 7)
        h = F.gelu(h, approximate="tanh").reshape(-1, 7) @ m.v
        return m.head((h.view(x.shape) + x)[:, -1])

    model = Written(body, head=linear(5))
    model.c, model.w, model.v = (nn.Parameter(torch.randn(*s)) for s in ((7,), (5, 7), (7, 5)))
    return model, torch.randn(3, 4, 5)


def frames() -> tuple[nn.Module, Tensor]:
    """Video: each frame through a network for images, then the mean."""

    def body(m: Written, x: Tensor) -> Tensor:
        B, T = x.shape[:2]
        h = F.max_pool2d(m.norm(m.conv(x.flatten(0, 1))).relu(), 2)
        h = F.avg_pool2d(m.second(F.pad(h, (1, 1, 1, 1), mode="replicate")), 2)
        return m.head(h.mean((2, 3)).view(B, T, -1).mean(1))

    model = Written(
        body, conv=nn.Conv2d(3, 4, 3, padding=1), norm=nn.BatchNorm2d(4),
        second=nn.Conv2d(4, 6, 3, padding="same", groups=2), head=linear(6),
    )  # fmt: skip
    return model, torch.randn(3, 2, 3, 8, 8)


def signals() -> tuple[nn.Module, Tensor]:
    """One-dimensional convolutions, both ways, with groups and group norms, of channels folded into the batch."""

    def body(m: Written, x: Tensor) -> Tensor:
        B, C, L = x.shape
        h = m.norm(m.a(x.reshape(B * C, 1, L))).tanh()
        h = F.avg_pool1d(m.instance(m.b(h)), 2)
        return m.head(h.view(B, C, 4, -1).permute(1, 0, 3, 2).sum(2).mean(0))

    model = Written(
        body, a=nn.Conv1d(1, 4, 3, stride=2, dilation=2), norm=nn.GroupNorm(2, 4),
        b=nn.ConvTranspose1d(4, 4, 3, stride=2, output_padding=1, groups=2), instance=nn.InstanceNorm1d(4, affine=True),
        head=linear(4),
    )  # fmt: skip
    return model, torch.randn(3, 2, 12)


def volumes() -> tuple[nn.Module, Tensor]:
    """Three-dimensional convolutions of halves folded into the batch."""

    def body(m: Written, x: Tensor) -> Tensor:
        h = F.max_pool3d(m.b(m.a(torch.cat(x.chunk(2, 1), 0)).relu()), 2)
        first, second = h.chunk(2, 0)
        return m.head(torch.cat([first, second], 1).flatten(1))

    model = Written(body, a=nn.Conv3d(2, 4, 2), b=nn.ConvTranspose3d(4, 2, 2, groups=2), head=linear(4 * 8))
    return model, torch.randn(3, 4, 4, 4, 4)


def flattened_norm() -> tuple[nn.Module, Tensor]:
    """LeViT: a linear layer and a batch norm on all tokens of all samples."""

    def body(m: Written, x: Tensor) -> Tensor:
        h = m.a(x)
        return m.head(m.norm(h.flatten(0, 1)).reshape_as(h).relu().mean(1))

    return Written(body, a=nn.Linear(5, 6), norm=nn.BatchNorm1d(6), head=linear(6)), torch.randn(3, 4, 5)


def packed() -> tuple[nn.Module, Tensor]:
    """timm: queries, keys and values in front of the batch."""

    def body(m: Written, x: Tensor) -> Tensor:
        B, N, C = x.shape
        qkv = m.qkv(x).reshape(B, N, 3, 2, C // 2).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        h = (q @ k.transpose(-2, -1)).softmax(-1) @ v
        return m.head(m.out(h.transpose(1, 2).reshape(B, N, C))[:, 0])

    return Written(body, qkv=nn.Linear(8, 24), out=nn.Linear(8, 8), head=linear(8)), torch.randn(3, 4, 8)


def halves() -> tuple[nn.Module, Tensor]:
    """Two halves stacked in front of the batch."""

    def body(m: Written, x: Tensor) -> Tensor:
        h = m.a(torch.stack(x.split(4, 1))).relu()
        return m.head(torch.einsum("hbi,h->bi", h, m.weights) + (h[0] * h[1].sigmoid()))

    model = Written(body, a=nn.Linear(4, 5), head=linear(5))
    model.weights = nn.Parameter(torch.randn(2))
    return model, torch.randn(3, 8)


def masked() -> tuple[nn.Module, Tensor]:
    """Masks from the input, a class token, positions and a causal mask, all with the sequence in front."""

    def body(m: Written, x: Tensor) -> Tensor:
        h = torch.cat([m.token.expand(-1, x.shape[0], -1), m.a(x).transpose(0, 1)]) + m.positions[:, None]
        scores = torch.einsum("sbd,tbd->bst", h, h).masked_fill(m.later, float("-inf"))
        h = torch.einsum("bst,tbd->sbd", scores.softmax(-1), torch.where(h > 0.2, h, h * 0.1))
        return m.head(
            h.gather(0, h.argmax(0, keepdim=True)).squeeze(0) + h[1:].flip(0)[0] + h.permute(1, 2, 0).tril(1).sum(-1)
        )

    model = Written(body, a=nn.Linear(5, 6), head=linear(6))
    model.token, model.positions = nn.Parameter(torch.randn(1, 1, 6)), nn.Parameter(torch.randn(5, 6))
    model.register_buffer("later", torch.ones(5, 5, dtype=torch.bool).triu(1))
    return model, torch.randn(3, 4, 5)


def experts() -> tuple[nn.Module, Tensor]:
    """Aria: tokens of all samples, each with the weights that it chooses, beside the same tokens, back in front."""

    def body(m: Written, x: Tensor) -> Tensor:
        flat = m.a(x).view(-1, 6)
        first = flat * m.weights[flat.argmax(-1)]
        second = m.b(first)
        third = (second * m.weights[second.argmax(-1)]).view(*x.shape[:2], 6)
        return m.head((flat.view(third.shape) + second.view(third.shape) * 2 + third)[:, -1])

    model = Written(body, a=nn.Linear(5, 6), b=nn.Linear(6, 6), head=linear(6))
    model.weights = nn.Parameter(torch.randn(6, 6))
    return model, torch.randn(3, 4, 5)


def written() -> tuple[nn.Module, Tensor]:
    """Slices overwritten in place while the batch is second, and an operation that has no form of its own."""

    def body(m: Written, x: Tensor) -> Tensor:
        h = m.a(x).transpose(0, 1).clone()
        h[1:3] = h[0:2] * 2
        h[:, :, 0] = 1.0
        zeros = h.new_zeros(4, x.shape[0], 6)
        zeros[:2, :, 1:3] += h[:2, :, 3:5]
        return m.head((h + zeros).logcumsumexp(0)[-1])

    return Written(body, a=nn.Linear(5, 6), head=linear(6)), torch.randn(3, 4, 5)


MODELS: dict[str, Model] = {
    f.__name__: f
    for f in (
        sequence_first,
        time_first,
        windows,
        tokens,
        frames,
        signals,
        volumes,
        flattened_norm,
        packed,
        halves,
        masked,
        experts,
        written,
    )
}
