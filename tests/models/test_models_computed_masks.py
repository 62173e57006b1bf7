"""Masks of fused attention that are computed from the input get what they get where attention is written out."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastlrp
from fastlrp.capture.translate import rewrite_functions
from fastlrp.errors import UnsupportedOperationError
from tests.transformers.oracle import divided

PRESETS = [
    *("attnlrp", "cp_lrp", "mamba_lrp", "epsilon", "epsilon_plus", "lrp0", "zplus", "gradient", "gamma", "alpha_beta"),
    *("deconvnet", "guided_backprop", "excitation_backprop", "deep_taylor"),
]

SOME = ["attnlrp", "epsilon_plus", "gradient"]


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


@cache
def captured(form: type[Relative] = Relative, keys: int = 4, **options: Any) -> tuple[Relative, Relative, Tensor]:
    """The same models whenever they are asked for, which need one capture each."""
    return pair(form, keys=keys, **options)


def close(found: Any, expected: Any) -> None:
    """The worst is 6e-16 of the largest."""
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(found, expected, rtol=0, atol=expected.detach().abs().max().item() * 1e-13)


@pytest.mark.parametrize("preset", PRESETS)
def test_fused_and_written_out_agree(preset):
    model, eager, x = captured()
    close(fastlrp.explain(model, x, [0, 1, 2], preset), fastlrp.explain(eager, x, [0, 1, 2], preset))


@pytest.mark.parametrize("preset", SOME)
@pytest.mark.parametrize(
    ("form", "options"), [(Shared, {}), (Relative, {"scale": 0.3}), (Relative, {"keys": 2, "grouped": True})],
    ids=["shared and causal", "scale", "grouped keys"],
)  # fmt: skip
def test_the_other_arguments(form, options, preset):
    model, eager, x = captured(form, **options)
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
    model, _, x = captured()
    found = fastlrp.explain(model, x, torch.eye(3).double().expand(3, 3, 3).contiguous(), "gradient")
    leaf = x.clone().requires_grad_()
    y = model(leaf)
    expected = [torch.autograd.grad(y[:, k].sum(), leaf, retain_graph=True)[0] for k in range(3)]
    close(found, torch.stack(expected, 1))


class Windows(Relative):
    """Two windows of each sample are folded into the batch."""

    def forward(self, x: Tensor) -> Tensor:
        return (
            super()
            .forward(torch.cat([x, x.flip(1)], 1).unflatten(1, (2, 5)).flatten(0, 1))
            .unflatten(0, (-1, 2))
            .sum(1)
        )


class SequenceFirst(Relative):
    """Heads are folded into a batch that is the second axis."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.first(x.transpose(0, 1)).relu()).chunk(3, -1)
        q, k, v = (t.reshape(5, -1, 2).transpose(0, 1) for t in (q, k, v))
        out = self.attend(q, k, v, torch.einsum("bqc,qkc->bqk", q, self.places))
        return self.last(out.transpose(0, 1).reshape(5, -1, 8)).mean(0)


class Mapped(Relative):
    """By ``torch.vmap``, which splits a batch."""

    def forward(self, x: Tensor) -> Tensor:
        def of_one(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return self.attend(q[None], k[None], v[None], self.bias(q[None]))[0]

        heads = (t.unflatten(-1, (-1, 2)).transpose(1, 2) for t in self.qkv(self.first(x).relu()).chunk(3, -1))
        return self.last(torch.vmap(of_one)(*heads).transpose(1, 2).flatten(2)).mean(1)


class FixedQueries(Relative):
    """Queries are parameters, the bias is computed from the keys."""

    def forward(self, x: Tensor) -> Tensor:
        _, k, v = (t.unflatten(-1, (-1, 2)).transpose(1, 2) for t in self.qkv(self.first(x).relu()).chunk(3, -1))
        queries = self.places.transpose(0, 1).reshape(1, 5, 5, 2)[:, :4]
        return self.last(self.attend(queries, k, v, self.bias(k)).transpose(1, 2).flatten(2)).mean(1)


class Padded(Relative):
    """Which positions are words is an input."""

    def forward(self, x: Tensor, words: Tensor) -> Tensor:  # type: ignore[override]
        q, k, v = (t.unflatten(-1, (-1, 2)).transpose(1, 2) for t in self.qkv(self.first(x).relu()).chunk(3, -1))
        mask = words.bool() if words.dtype == torch.long else (1 - words) * -1e9
        return self.last(self.attend(q, k, v, mask[:, None, None]).transpose(1, 2).flatten(2)).mean(1)


class CutOff(Relative):
    """A gradient ends at the bias; relevance does not, since the function is the same."""

    def bias(self, q: Tensor) -> Tensor:
        return super().bias(q).detach()


@pytest.mark.parametrize("preset", SOME)
@pytest.mark.parametrize("form", [Windows, SequenceFirst, Mapped, FixedQueries, CutOff])
def test_in_other_layouts(form, preset):
    model, eager, x = captured(form)
    close(fastlrp.explain(model, x, [0, 1, 2], preset), fastlrp.explain(eager, x, [0, 1, 2], preset))


@pytest.mark.parametrize("preset", ["attnlrp", "epsilon_plus"])
def test_every_direction_and_hidden_layers(preset):
    model, eager, x = captured()
    expected = fastlrp.explain(eager, x, [0, 1, 2], preset, layers=["first", "qkv"])
    explainer = fastlrp.Explainer(model, preset)
    for aware in (True, False):
        with explainer.forward(x, lrp_aware=aware) as record:
            found = record.relevance([0, 1, 2], layers=["first", "qkv"])
            for name in ("input", "first", "qkv"):
                close(found[name], expected[name])
    with explainer.forward(x) as record:
        for way in ("up", "down"):
            close(record.relevance([0, 1, 2], groups="tokens", direction=way), expected["input"].sum(-1))
    assert explainer.verify(x, [0, 1, 2]).ok


class Compared(Relative):
    def bias(self, q: Tensor) -> Tensor:
        return torch.where(super().bias(q) > 0, 0.0, -2.0).to(q.dtype)


class Largest(Relative):
    def bias(self, q: Tensor) -> Tensor:
        return F.one_hot(super().bias(q).argmax(-1), 5).to(q.dtype)


class Learned(Relative):
    def bias(self, q: Tensor) -> Tensor:
        return self.places[..., 0].exp() + torch.zeros_like(q[:, :, :, :1])


@pytest.mark.parametrize("form", [Compared, Largest, Learned])
def test_conditions_stay_fused(form):
    """What no relevance can reach; the gradients of both forms are the same to rounding."""
    model, eager, x = pair(form)
    explainer = fastlrp.Explainer(model, "attnlrp")
    close(explainer(x, [0, 1, 2]), fastlrp.explain(eager, x, [0, 1, 2], "attnlrp"))
    assert "scaled_dot_product_attention" in [node.operation for node in explainer.plan.graph.nodes]


def test_rows_that_attend_to_nothing():
    """They are 0, as in the fused form, and not NaN."""

    class Hidden(Relative):
        def bias(self, q: Tensor) -> Tensor:
            return super().bias(q).masked_fill((torch.arange(5) == 2)[:, None], -math.inf)

    model, _, x = pair(Hidden)
    with fastlrp.Explainer(model, "attnlrp").forward(x) as record:
        close(record.output, model(x))
        assert record.relevance([0, 1, 2]).isfinite().all()
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(leaf)[:, 1].sum(), leaf)
    close(fastlrp.explain(model, x, torch.eye(3).double()[1].expand(3, 1, 3).contiguous(), "gradient")[:, 0], gradient)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.bfloat16, 0.03), (torch.float16, 0.003), (torch.float32, 1e-6)]
)
@pytest.mark.parametrize("wide", [False, True])
def test_narrow_numbers(dtype, tolerance, wide):
    """The worst are 0.010, 0.0010 and 1.8e-7 of the largest; a mask may be float32 beside narrow queries."""

    class Wide(Relative):
        def bias(self, q: Tensor) -> Tensor:
            return super().bias(q).to(torch.float32 if wide else q.dtype)

    model, _, x = pair(Wide)
    expected = fastlrp.explain(captured()[1], x, [0, 1, 2], "attnlrp")
    found = fastlrp.explain(model.to(dtype), x.to(dtype), [0, 1, 2], "attnlrp").double()
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("preset", SOME)
def test_padding_as_floats_changes_nothing_for_the_words(preset):
    """The mask gets relevance of its own there, as any input of floats."""
    model, _, x = captured(Padded)
    words = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]])
    found, expected = (fastlrp.explain(model, (x, mask), [0, 1, 2], preset)[0] for mask in (words.double(), words))
    # The scores' stabiliser makes 5e-6 under epsilon_plus, which divides there.
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_masks_of_multi_head_attention():
    """``nn.MultiheadAttention`` is fused only where nobody asks for its weights."""

    class Masked(nn.Module):
        def __init__(self, weights: bool) -> None:
            super().__init__()
            self.attention, self.weights = nn.MultiheadAttention(6, 2, batch_first=True), weights

        def forward(self, x: Tensor) -> Tensor:
            mask = (x @ x.transpose(1, 2)).repeat_interleave(2, 0)
            return self.attention(x, x, x, attn_mask=mask, need_weights=self.weights)[0].sum(1)

    torch.manual_seed(0)
    fast, slow, x = Masked(False).double().eval(), Masked(True).double().eval(), torch.randn(3, 5, 6).double()
    slow.load_state_dict(fast.state_dict())
    for preset in SOME:
        close(fastlrp.explain(fast, x, [0, 1], preset), fastlrp.explain(slow, x, [0, 1], preset))


def test_attention_in_one_operation_does_not_lose_a_share(monkeypatch):
    """Where such attention reaches a plan all the same that is an error, but for rules that give the scores nothing."""
    monkeypatch.delitem(rewrite_functions.REWRITES, "scaled_dot_product_attention")
    (model, _, x), eager = pair(), captured()[1]
    with pytest.raises(UnsupportedOperationError, match=r"its mask is computed from the input .* write the attention"):
        fastlrp.explain(model, x, [0], "attnlrp")
    for preset in ("cp_lrp", "gradient"):
        close(fastlrp.explain(model, x, [0], preset), fastlrp.explain(eager, x, [0], preset))


def each(call: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *tensors: torch.vmap(call)(*tensors)


PARAMETERS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "linear": each(lambda x, w, b: F.linear(x, torch.outer(b, w))),
    "linear, bias": each(lambda x, w, b: F.linear(x, torch.ones(6, 6, dtype=x.dtype), b)),
    "convolution": each(lambda x, w, b: F.conv1d(x.T[None], torch.outer(b, w)[..., None])[0].T),
    "convolution by groups": lambda x, w, b: F.conv1d(
        x.transpose(1, 2).reshape(1, -1, 5), w.reshape(-1, 1, 1), groups=6 * x.shape[0]
    ).reshape(-1, 6, 5),
    "layer norm, weight": each(lambda x, w, b: F.layer_norm(x, (6,), w)),
    "layer norm, bias": each(lambda x, w, b: F.layer_norm(x, (6,), None, b)),
    "rms norm": each(lambda x, w, b: F.rms_norm(x, (6,), w)),
    "group norm": each(lambda x, w, b: F.group_norm(x.T[None], 2, w, b)[0]),
    "batch norm": each(lambda x, w, b: F.batch_norm(x, torch.zeros(6).to(x), torch.ones(6).to(x), w, b)),
    "prelu": each(lambda x, w, b: F.prelu(x, w)),
}
"""Parameters of layers that are computed from the input, ``(B, 6)`` each."""
WITH_RULES = {"convolution by groups"}
"""What is a product of two activations for the presets (tests/models/test_models_computed_kernels.py)."""


@pytest.mark.parametrize("name", PARAMETERS)
def test_computed_parameters_are_never_taken_for_constants(name):
    """Gradients pass to them, the LRP presets refuse them where they have no rule for such a product."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bias = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            return PARAMETERS[name](x, self.weight(x.mean(1)), self.bias(x[:, 0])).flatten(1)[:, :4]

    torch.manual_seed(0)
    model, x = Model().double().eval(), torch.randn(2, 5, 6, dtype=torch.float64)
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(leaf)[:, 1].sum(), leaf)
    start = torch.eye(4).double()[1].expand(2, 1, 4).contiguous()
    close(fastlrp.explain(model, x, start, "gradient")[:, 0], gradient)
    for preset in ("attnlrp", "epsilon_plus"):
        refused = pytest.raises(UnsupportedOperationError, match="no rule for operation")
        with nullcontext() if name in WITH_RULES else refused:
            fastlrp.explain(model, x, start, preset)
