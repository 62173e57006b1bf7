"""Masks of fused attention that are computed from the input get what they get where attention is written out."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastlrp
from fastlrp import composites
from tests.transformers.oracle import divided

PRESETS = [
    *("attnlrp", "cp_lrp", "mamba_lrp", "epsilon", "epsilon_plus", "lrp0", "zplus", "gradient", "gamma", "alpha_beta"),
    *("deconvnet", "guided_backprop", "excitation_backprop", "deep_taylor"),
]


def written(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float | None = None, grouped: bool = False) -> Tensor:
    """As models have it that do not call the fused function."""
    times = q.shape[1] // k.shape[1] if grouped else 1
    k, v = (t.repeat_interleave(times, 1) if times > 1 else t for t in (k, v))
    scores = (q * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)) @ k.transpose(-1, -2)
    return (scores + mask).softmax(-1) @ v


def fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float | None = None, grouped: bool = False) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=grouped)


class Relative(nn.Module):
    """Self-attention over five positions with four heads, and a bias from the queries as SAM has it."""

    def __init__(self, attend: Callable[..., Tensor], keys: int = 4, **options: Any) -> None:
        super().__init__()
        self.attend, self.keys, self.options = attend, keys, options
        self.first = nn.Linear(6, 8)
        self.qkv = nn.Linear(8, 8 + 4 * keys)
        self.places = nn.Parameter(torch.randn(5, 5, 2))
        self.last = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.first(x).relu()).split([8, 2 * self.keys, 2 * self.keys], -1)
        q, k, v = (t.unflatten(-1, (-1, 2)).transpose(1, 2) for t in (q, k, v))
        out = self.attend(q, k, v, self.bias(q), **self.options)
        return self.last(out.transpose(1, 2).flatten(2)).mean(1)

    def bias(self, q: Tensor) -> Tensor:
        return torch.einsum("bhqc,qkc->bhqk", q, self.places)


class Shared(Relative):
    """One bias for all heads, which hides later positions."""

    def bias(self, q: Tensor) -> Tensor:
        later = torch.ones(5, 5, dtype=torch.bool).triu(1)
        return (q[:, :1] @ self.places[:, 0].T).masked_fill(later, -math.inf)


def pair(form: type[Relative] = Relative, **options: Any) -> tuple[Relative, Relative, Tensor]:
    torch.manual_seed(3)
    model = form(fused, **options).double().eval()
    eager = form(written, **options).double().eval()
    eager.load_state_dict(model.state_dict())
    return model, eager, torch.randn(3, 5, 6, dtype=torch.float64)


def close(found: Any, expected: Any) -> None:
    """The worst is 6e-16 of the largest."""
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(found, expected, rtol=0, atol=float(expected.abs().max()) * 1e-13)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(
    ("form", "options"),
    [(Relative, {}), (Shared, {}), (Relative, {"scale": 0.3}), (Relative, {"keys": 2, "grouped": True})],
    ids=["per head", "shared and causal", "scale", "grouped keys"],
)
def test_fused_and_written_out_agree(form, options, preset):
    model, eager, x = pair(form, **options)
    close(fastlrp.explain(model, x, [0, 1, 2], preset), fastlrp.explain(eager, x, [0, 1, 2], preset))


def test_as_autograd_has_it():
    """AttnLRP by autograd: half to each factor of a product, which the bias is of activations alone."""
    model, _, x = pair()

    def halves(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        scores = divided(q, 2) / math.sqrt(2) @ divided(k, 2).transpose(-1, -2) + mask
        return divided(scores.softmax(-1), 2) @ divided(v, 2)

    found = fastlrp.explain(model, x, torch.eye(3).double().expand(3, 3, 3) * model(x)[:, None], "attnlrp")
    model.attend = halves
    leaf = x.clone().requires_grad_()
    y = model(leaf)
    for k in range(3):
        (gradient,) = torch.autograd.grad(y[:, k].sum(), leaf, retain_graph=True)
        close(found[:, k], gradient * x)


def test_the_gradient_passes_the_mask():
    model, _, x = pair()
    found = fastlrp.explain(model, x, torch.eye(3).double().expand(3, 3, 3).contiguous(), "gradient")
    leaf = x.clone().requires_grad_()
    y = model(leaf)
    expected = [torch.autograd.grad(y[:, k].sum(), leaf, retain_graph=True)[0] for k in range(3)]
    close(found, torch.stack(expected, 1))
