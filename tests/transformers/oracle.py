"""AttnLRP and CP-LRP by autograd: gradient times input with what the rules hold fixed detached, in float64.

The formulas stand in every function; nothing of the package is used.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def divided(x: Tensor, by: float) -> Tensor:
    """x itself; its gradient is that of x divided."""
    return x / by + (x * (1 - 1 / by)).detach()


def layer_norm(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    """Sigma detached."""
    centred = x - x.mean(-1, keepdim=True)
    y = centred / (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt().detach()
    return y * norm.weight + norm.bias


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The factor detached."""
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt().detach() * weight


def act(x: Tensor, function) -> Tensor:
    """``act(u) / u`` detached, its limit at 0."""
    with torch.enable_grad():
        point = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(function(point).sum(), point)
    factor = torch.where(x == 0, slope, function(x) / torch.where(x == 0, 1.0, x)).detach()
    # exp(-inf), where a scan does not look back, is 0 and passes nothing. exp(0) is 1 and passes nothing either: no
    # factor times 0 is 1, and the value has to be the model's.
    value = function(x).detach()
    linear = torch.where(x.isinf() | ((x == 0) & (value != 0)), 0.0, factor) * torch.where(x.isinf(), 0.0, x)
    return linear + (value - linear.detach())


def attention(q, k, v, mask=None, causal=False, scale=None, mode="attnlrp", shares=(4, 4, 2)) -> Tensor:
    """``softmax(scale q k^T + mask) v`` written out; rows that attend to nothing give 0."""
    if mode == "attnlrp":
        q, k, v = (divided(t, by) for t, by in zip((q, k, v), shares, strict=True))
    elif mode == "cp_lrp":
        q, k = q.detach(), k.detach()
    times = q.shape[-3] // k.shape[-3] if q.dim() > 3 else 1
    k, v = (t.repeat_interleave(times, -3) if times > 1 else t for t in (k, v))
    scores = q @ k.transpose(-1, -2) * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    if causal:
        scores = scores.masked_fill(~torch.ones(scores.shape[-2:], dtype=torch.bool).tril(), -1e300)
    if mask is not None:
        scores = scores.masked_fill(~mask, -1e300) if mask.dtype == torch.bool else scores + mask
    nothing = (scores <= -1e299).all(-1, keepdim=True)
    return scores.softmax(-1).masked_fill(nothing, 0.0) @ v


def relevance(forward, x: Tensor, targets: list[int]) -> Tensor:
    """Gradient times input of the chosen outputs, ``(B, K, *x)``."""
    point = x.detach().clone().requires_grad_()
    y = forward(point)
    found = [torch.autograd.grad(y[:, k].sum(), point, retain_graph=True)[0] * x for k in targets]
    return torch.stack(found, 1).detach()


class Block(nn.Module):
    """A transformer block of either family: layer norm and GELU, or RMS norm written out and a gated MLP."""

    def __init__(self, width: int, heads: int, groups: int, gated: bool, eager: bool, causal: bool) -> None:
        super().__init__()
        self.heads, self.groups, self.gated, self.eager, self.causal = heads, groups, gated, eager, causal
        self.head = width // heads
        self.q, self.k = nn.Linear(width, width), nn.Linear(width, groups * self.head)
        self.v, self.o = nn.Linear(width, groups * self.head), nn.Linear(width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.gate, self.up, self.down = (
            nn.Linear(width, 2 * width),
            nn.Linear(width, 2 * width),
            nn.Linear(2 * width, width),
        )

    def split(self, x: Tensor, heads: int) -> Tensor:
        return x.unflatten(-1, (heads, -1)).transpose(1, 2)

    def norm(self, x: Tensor, norm: nn.LayerNorm) -> Tensor:
        if not self.gated:
            return norm(x)
        return norm.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + norm.eps))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if not self.eager:
            return F.scaled_dot_product_attention(q, k, v, is_causal=self.causal, enable_gqa=self.heads != self.groups)
        times = self.heads // self.groups
        k, v = k.repeat_interleave(times, 1), v.repeat_interleave(times, 1)
        scores = torch.matmul(q, k.transpose(-1, -2)) * self.head**-0.5
        if self.causal:
            hidden = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).triu(1)
            scores = scores.masked_fill(hidden, float("-inf"))
        return torch.matmul(F.dropout(scores.softmax(-1), 0.1, training=False), v)

    def mlp(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x) if self.gated else F.gelu(self.up(x)))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x, self.norm1)
        q, k, v = (
            self.split(self.q(h), self.heads),
            self.split(self.k(h), self.groups),
            self.split(self.v(h), self.groups),
        )
        x = x + self.o(self.attend(q, k, v).transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm(x, self.norm2))

    def by_autograd(self, x: Tensor, mode: str) -> Tensor:
        """The same output; its gradient times x is relevance."""

        def norm(x: Tensor, norm: nn.LayerNorm) -> Tensor:
            return rms_norm(x, norm.weight, norm.eps) if self.gated else layer_norm(x, norm)

        h = norm(x, self.norm1)
        q, k, v = (
            self.split(self.q(h), self.heads),
            self.split(self.k(h), self.groups),
            self.split(self.v(h), self.groups),
        )
        x = x + self.o(attention(q, k, v, causal=self.causal, mode=mode).transpose(1, 2).flatten(2))
        h = norm(x, self.norm2)
        if not self.gated:
            return x + self.down(act(self.up(h), F.gelu))
        gate, up = act(self.gate(h), F.silu), self.up(h)
        product = gate.detach() * up if mode == "cp_lrp" else divided(gate * up, 2)
        return x + self.down(product)


class Transformer(nn.Module):
    """Blocks, mean over positions, classes."""

    def __init__(self, gated: bool, eager: bool, causal: bool, blocks: int = 2) -> None:
        super().__init__()
        groups = 2 if gated else 4
        self.blocks = nn.ModuleList(Block(16, 4, groups, gated, eager, causal) for _ in range(blocks))
        self.classes = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.classes(x.mean(1))

    def by_autograd(self, x: Tensor, mode: str) -> Tensor:
        for block in self.blocks:
            x = block.by_autograd(x, mode)
        return self.classes(x.mean(1))


def transformer(gated: bool, eager: bool, causal: bool, seed: int = 0) -> Transformer:
    """With weights large enough that attention is not flat, in float64."""
    torch.manual_seed(seed)
    model = Transformer(gated, eager, causal).double().eval()
    for name, parameter in model.named_parameters():
        with torch.no_grad():
            parameter.copy_(torch.randn_like(parameter) * 0.5 + ("norm" in name and "weight" in name))
    return model
