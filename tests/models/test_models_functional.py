"""Models written with functions, operators, reused modules and in-place operations, against the oracle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastlrp
from fastlrp import CaptureError
from tests.models.cases import Written, check_case, constant, conv, linear, prepared, vector, volume
from tests.models.checks import check_model


def _in_place(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    z = F.relu(y)
    z += x
    z = F.relu_(m.b(z))
    z *= 2
    z -= 0.5
    return z.clamp_(min=0).flatten(1)


def _copy_changed(m: Any, x: Tensor) -> Tensor:
    y = F.relu(m.a(x))
    z = y.clone()
    z += 1
    w = y.permute(0, 2, 3, 1).contiguous()
    w *= 3
    return torch.cat([y.flatten(1), z.flatten(1), w.flatten(1)], 1)


def _changed_before_it_is_viewed(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    y.mul_(m.scale)
    y.neg_()
    return y.view(y.size(0), -1)


def _channel_shuffle(m: Any, x: Tensor) -> Tensor:
    y = F.relu(m.a(x))
    batch, channels, height, width = y.size()
    y = torch.transpose(y.view(batch, 2, channels // 2, height, width), 1, 2).contiguous()
    return F.relu(m.b(F.channel_shuffle(y.view(batch, channels, height, width), 2))).flatten(1)


def _parts(m: Any, x: Tensor) -> Tensor:
    a, b = F.relu(m.a(x)).chunk(2, 1)
    c, d, e = torch.split(F.relu(m.b(x)), [1, 2, 1], 1)
    f = torch.stack([a, d], 2).flatten(1, 2)
    first, second, *_ = torch.unbind(f, 1)
    return torch.cat([(first + second)[:, None], b, c, e, f[:, ::2], f[..., 0:1].expand(-1, -1, -1, 8)], 1).flatten(1)


BODIES: dict[str, tuple[Callable[..., Tensor], Callable[[], dict[str, Any]]]] = {
    "relu_add_pool": (
        lambda m, x: F.adaptive_avg_pool2d(F.max_pool2d(F.relu(m.a(x)), 2) + F.max_pool2d(F.relu(m.b(x)), 2), (3, 3)),
        lambda: {"a": conv(3, 4), "b": conv(3, 4)},
    ),
    "torch_functions": (
        lambda m, x: torch.relu(m.a(torch.sigmoid(m.b(x)) + torch.tanh(x))),
        lambda: {"a": conv(3, 4), "b": conv(3, 3)},
    ),
    "cat": (
        lambda m, x: torch.cat([F.relu(m.a(x)), torch.sigmoid(m.b(x)), x], 1),
        lambda: {"a": conv(3, 4), "b": conv(3, 2)},
    ),
    "reused": (lambda m, x: m.relu(m.a(m.relu(m.a(m.relu(m.a(x)))))), lambda: {"a": conv(3, 3), "relu": nn.ReLU()}),
    "residual": (lambda m, x: (m.a(x) + m.b(x) + x + 1.0).relu(), lambda: {"a": conv(3, 3, 1, 0), "b": conv(3, 3)}),
    "sum_of_a_list": (
        lambda m, x: sum(F.relu(c(x)) for c in m.convs),
        lambda: {"convs": nn.ModuleList(conv(3, 4) for _ in range(3))},
    ),
    "twice_the_same": (lambda m, x: (lambda y: y + y)(F.relu(m.a(x))), lambda: {"a": conv(3, 4)}),
    "loop": (
        lambda m, x: torch.stack([F.relu(m.a(x[..., i])).sum(-1) for i in range(3)], 1),
        lambda: {"a": nn.Conv1d(3, 4, 3)},
    ),
    "branch_on_a_shape": (lambda m, x: F.relu(m.a(x)) if x.shape[1] == 3 else m.a(-x), lambda: {"a": conv(3, 4)}),
    "module_made_in_forward": (lambda m, x: nn.ReLU()(m.a(x)), lambda: {"a": conv(3, 4)}),
    "in_place": (_in_place, lambda: {"a": conv(3, 3), "b": conv(3, 4)}),
    "copy_changed_in_place": (_copy_changed, lambda: {"a": conv(3, 4)}),
    "changed_before_it_is_viewed": (
        _changed_before_it_is_viewed,
        lambda: {"a": conv(3, 4), "scale": constant(4, 1, 1)},
    ),
    "sub": (lambda m, x: F.relu(m.a(x)) - F.relu(m.b(x)), lambda: {"a": conv(3, 4), "b": conv(3, 4)}),
    "minus_constants": (
        lambda m, x: F.relu(m.a((x - m.mean[:, None, None]) / m.std[:, None, None])),
        lambda: {"a": conv(3, 4), "mean": constant(3), "std": constant(3)},
    ),
    "constant_minus": (lambda m, x: 2 - 3 * F.relu(m.a(1 - x)), lambda: {"a": conv(3, 4)}),
    "rsub": (lambda m, x: torch.rsub(F.relu(m.a(x)), x, alpha=0.5), lambda: {"a": conv(3, 3)}),
    "add_alpha": (lambda m, x: torch.add(F.relu(m.a(x)), x, alpha=0.5), lambda: {"a": conv(3, 3)}),
    "add_broadcast": (
        lambda m, x: F.relu(m.a(x)) + F.relu(m.b(x)).mean((2, 3), keepdim=True),
        lambda: {"a": conv(3, 4), "b": conv(3, 4)},
    ),
    "add_constant_broadcast": (lambda m, x: x.mean(1, keepdim=True) + m.c, lambda: {"c": constant(3, 7, 8)}),
    "scaled": (lambda m, x: -F.relu(m.a(x)) / 2 * 3 + 1, lambda: {"a": conv(3, 4)}),
    "scaled_by_parameters": (
        lambda m, x: F.relu(m.a(x)) * m.c.view(1, -1, 1, 1) + m.d,
        lambda: {"a": conv(3, 4), "c": constant(4), "d": constant(4, 1, 1)},
    ),
    "times_constant_broadcast": (lambda m, x: x.mean(1, keepdim=True) * m.c, lambda: {"c": constant(3, 7, 8)}),
    "square": (lambda m, x: m.a(x) * m.a(x) + (lambda y: y * y)(m.b(x)), lambda: {"a": conv(3, 3), "b": conv(3, 3)}),
    "power": (lambda m, x: m.a(x) ** 2 + torch.square(m.b(x)) + x.pow(3), lambda: {"a": conv(3, 3), "b": conv(3, 3)}),
    "quotient": (lambda m, x: m.a(x) / (1 + x.abs()), lambda: {"a": conv(3, 3)}),
    "masked": (lambda m, x: m.a(x) * (x > 0), lambda: {"a": conv(3, 3)}),
    "weight_computed": (
        lambda m, x: F.relu(F.conv2d(x, m.w.abs() * 2 - 1, padding=1, stride=2)),
        lambda: {"w": constant(4, 3, 3, 3)},
    ),
    "position_embedding": (
        lambda m, x: F.relu(m.a(x)) + m.p[:, :, : x.shape[2], : x.shape[3]],
        lambda: {"a": conv(3, 4), "p": constant(1, 4, 9, 9)},
    ),
    "channels_last_linear": (
        lambda m, x: F.relu(m.a(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2),
        lambda: {"a": nn.Linear(3, 5)},
    ),
    "parts": (_parts, lambda: {"a": conv(3, 4), "b": conv(3, 4)}),
    "channel_shuffle": (_channel_shuffle, lambda: {"a": conv(3, 4), "b": conv(4, 4, groups=2)}),
    "pixel_shuffle": (
        lambda m, x: F.pixel_unshuffle(F.relu(m.b(F.pixel_shuffle(F.relu(m.a(x)), 2))), 2),
        lambda: {"a": conv(3, 8), "b": conv(2, 3)},
    ),
    "nearest": (lambda m, x: F.relu(m.a(F.interpolate(x, scale_factor=2))), lambda: {"a": conv(3, 4)}),
    "nearest_exact": (
        lambda m, x: F.relu(m.a(F.interpolate(x, size=(5, 11), mode="nearest-exact"))),
        lambda: {"a": conv(3, 4)},
    ),
    "bilinear": (
        lambda m, x: F.interpolate(F.relu(m.a(x)), scale_factor=2, mode="bilinear"),
        lambda: {"a": conv(3, 4)},
    ),
    "bicubic": (
        lambda m, x: F.interpolate(F.relu(m.a(x)), (5, 9), mode="bicubic", align_corners=True),
        lambda: {"a": conv(3, 4)},
    ),
    "pad_roll_flip": (
        lambda m, x: torch.roll(F.pad(F.relu(m.a(x)), (1, 2, 0, 1), value=0.5), 1, -1).flip(-2)[:, :, 1:-1, 2:],
        lambda: {"a": conv(3, 4)},
    ),
    "repeat": (
        lambda m, x: torch.cat([F.relu(m.a(x)).repeat(1, 2, 1, 1), x.tile(1, 2, 1, 1), x.repeat_interleave(2, 1)], 1),
        lambda: {"a": conv(3, 4)},
    ),
    "index": (
        lambda m, x: torch.cat([F.relu(m.a(x))[:, [1, 0, 1]], torch.index_select(x, 1, m.i)], 1),
        lambda: {"a": conv(3, 4), "i": nn.Parameter(torch.tensor([2, 2]), False)},
    ),
    "unfold": (lambda m, x: F.unfold(F.relu(m.a(x)), 3, padding=1), lambda: {"a": conv(3, 4)}),
    "fold": (lambda m, x: F.fold(F.unfold(F.relu(m.a(x)), 3), (7, 8), 3), lambda: {"a": conv(3, 4)}),
    "constant_times_matrix": (lambda m, x: m.w @ F.relu(m.a(x)), lambda: {"a": conv(3, 4), "w": constant(5, 7)}),
    "einsum": (
        lambda m, x: torch.einsum("oc,bchw->bohw", m.w, F.relu(m.a(x))),
        lambda: {"a": conv(3, 4), "w": constant(5, 4)},
    ),
    "conversions": (lambda m, x: F.relu(m.a(x)).to(x.dtype).type_as(x).contiguous(), lambda: {"a": conv(3, 4)}),
    "dropout": (
        lambda m, x: F.dropout(F.dropout2d(F.relu(m.a(x)), training=m.training), training=m.training),
        lambda: {"a": conv(3, 4)},
    ),
}


@pytest.mark.parametrize("name", list(BODIES))
def test_functions_of_images(name: str) -> None:
    body, members = BODIES[name]
    model = Written(lambda m, x: m.last(torch.flatten(body(m, x), 1)), last=nn.LazyLinear(4), **members())
    check_case(model, volume(2))


VECTORS: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 4)),
    "times_a_matrix": lambda: Written(lambda m, x: F.relu(x @ m.a) @ m.b, a=constant(10, 17), b=constant(17, 4)),
    "matmul_mm_addmm": lambda: Written(
        lambda m, x: torch.addmm(m.c, F.relu(torch.mm(torch.matmul(x, m.a), m.b)), m.d),
        a=constant(10, 7),
        b=constant(7, 40),
        c=constant(4),
        d=constant(40, 4),
    ),
    "functional_linear": lambda: Written(
        lambda m, x: F.linear(F.relu(F.linear(x, m.a, m.b)), m.c), a=constant(17, 10), b=constant(17), c=constant(4, 17)
    ),
    "normalized": lambda: Written(
        lambda m, x: F.linear(F.normalize(m.a(x)), F.normalize(m.w)), a=nn.Linear(10, 6), w=constant(4, 6)
    ),
    "standardized": lambda: Written(
        lambda m, x: m.b(m.a(x) / (m.a(x).std(-1, keepdim=True) + 1e-5)), a=nn.Linear(10, 6), b=linear(6)
    ),
    "columns": lambda: Written(
        lambda m, x: torch.stack([x[:, 0] * 2, m.a(x)[:, 1] - 1, F.relu(x).sum(1)], 1), a=nn.Linear(10, 3)
    ),
}


@pytest.mark.parametrize("name", list(VECTORS))
def test_functions_of_vectors(name: str) -> None:
    check_case(VECTORS[name](), vector())


TOKENS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Sequential(
        nn.Linear(12, 7), nn.ReLU(), nn.Linear(7, 4), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4)
    ),
    "matmul_and_mean": lambda: Written(
        lambda m, x: (F.relu(x @ m.a) @ m.b).mean(1), a=constant(12, 7), b=constant(7, 4)
    ),
    "class_token": lambda: Written(
        lambda m, x: m.a(F.relu(torch.cat([m.token.expand(x.shape[0], -1, -1), x], 1))[:, 1] + F.relu(m.b(x)).mean(1)),
        token=constant(1, 1, 12),
        a=linear(12),
        b=nn.Linear(12, 12),
    ),
    "mixer": lambda: Written(
        lambda m, x: m.b(F.relu(m.a(x.transpose(1, 2))).transpose(1, 2)).flatten(1)[:, :5],
        a=nn.Linear(3, 3),
        b=nn.Linear(12, 12),
    ),
}


@pytest.mark.parametrize("name", list(TOKENS))
def test_functions_of_sequences(name: str) -> None:
    check_case(TOKENS[name](), volume(1))


def test_checkpointed_model() -> None:
    from torch.utils.checkpoint import checkpoint

    model = Written(
        lambda m, x: m.b(checkpoint(m.a, x, use_reentrant=False).relu().flatten(1)), a=conv(3, 4), b=linear(224)
    )
    check_model(prepared(model, volume(2)), volume(2).double(), tolerance=1e-12)


def test_conversion_to_another_float() -> None:
    """A part in float64, as others compute a part of a float16 model in float32."""
    model = Written(
        lambda m, x: m.b(F.relu(m.a(x)).double().mul(2).to(x.dtype).flatten(1)), a=conv(3, 4), b=linear(224)
    )
    x = volume(2)
    _, relevance = check_model(model.eval(), x)
    plain = Written(lambda m, x: m.b((F.relu(m.a(x)) * 2).flatten(1)), a=model.a, b=model.b)
    torch.testing.assert_close(relevance, fastlrp.explain(plain.eval(), x, [0, 2]))


@pytest.mark.parametrize("size", [lambda y: 1, len], ids=["1", "len"])
def test_size_of_the_batch_as_a_number(size: Callable[[Tensor], int]) -> None:
    """``view(1, -1)`` holds for one sample only, ``len`` is a number when traced: other sizes are captured again."""
    model = Written(lambda m, x: m.b(F.relu(m.a(x)).view(size(x), -1)), a=conv(3, 4), b=linear(224)).double().eval()
    flat = Written(lambda m, x: m.b(F.relu(m.a(x)).flatten(1)), a=model.a, b=model.b).eval()
    x = volume(2).double()
    explainer = fastlrp.Explainer(model)
    for part in (x[:1], x)[: 1 if size is not len else 2]:
        torch.testing.assert_close(explainer(part, [0, 2]), fastlrp.explain(flat, part, [0, 2]))


IN_PLACE_ON_VIEWS: dict[str, Callable[[Tensor], Any]] = {
    "view": lambda y: y.view(y.shape[0], -1).add_(1),
    "base": lambda y: (y.view(y.shape[0], -1), y.add_(1))[0].sum(1, keepdim=True),
    "slice": lambda y: y[:, :1].mul_(2),
    "set_to_constant": lambda y: y[:, 0].fill_(0),
    "set_to_another": lambda y: y[:, 0].copy_(y[:, 1]),
}


@pytest.mark.parametrize("name", list(IN_PLACE_ON_VIEWS))
def test_in_place_on_a_view_that_is_read_elsewhere(name: str) -> None:
    """Both read what was written: relevance by an oracle that takes the model as PyTorch runs it."""
    change = IN_PLACE_ON_VIEWS[name]

    def body(m: Any, x: Tensor) -> Tensor:
        y = F.relu(m.a(x)) + m.c
        z = change(y)
        return m.b(torch.cat([y.flatten(1), z.flatten(1)], 1))

    model = Written(body, a=conv(3, 4), b=nn.LazyLinear(4), c=constant(4, 1, 1))
    model, x = prepared(model, volume(2)), volume(2).double()
    check_model(model, x, tolerance=1e-12)
    point = x.clone().requires_grad_()
    output = model(point)
    expected = torch.stack([torch.autograd.grad(output[:, k].sum(), point, retain_graph=True)[0] for k in range(4)], 1)
    torch.testing.assert_close(fastlrp.explain(model, x, "all", "gradient", initial="one"), expected)


def test_what_was_overwritten_gets_nothing() -> None:
    """``y = (2a, 2b, 2c, 2d)`` with its middle overwritten by ``(3d, 3d)``: by hand, 2a + 4 * 3d + 2d."""

    def body(m: Any, x: Tensor) -> Tensor:
        y = x * 2
        y[:, 1:3] = x[:, 3:] * 3
        return F.linear(y, m.w)

    model = Written(body, w=nn.Parameter(torch.tensor([[1.0, 2.0, 2.0, 1.0]]))).eval()
    x = torch.tensor([[1.0, 10.0, 100.0, 2.0], [2.0, 5.0, 7.0, -1.0]])
    expected = torch.tensor([[[2.0, 0.0, 0.0, 28.0]], [[4.0, 0.0, 0.0, -14.0]]])
    torch.testing.assert_close(fastlrp.explain(model, x, [0], "lrp0"), expected)


def test_in_place_on_a_view_of_a_constant() -> None:
    def body(m: Any, x: Tensor) -> Tensor:
        mask = torch.ones(7, 8)
        mask[:, 0] = 0
        return m.b((F.relu(m.a(x)) * mask).flatten(1))

    def plain(m: Any, x: Tensor) -> Tensor:
        return m.b((F.relu(m.a(x)) * (torch.arange(8) > 0)).flatten(1))

    model = Written(body, a=conv(3, 4), b=linear(224)).eval()
    same, x = Written(plain, a=model.a, b=model.b).eval(), volume(2)
    torch.testing.assert_close(fastlrp.explain(model, x, [0]), fastlrp.explain(same, x, [0]))


def test_folded_constants_follow_the_weights() -> None:
    """What is computed from a parameter, with several results and in place, is computed anew once it was trained."""

    def body(m: Any, x: Tensor) -> Tensor:
        low, high = m.p.clone().mul_(2).chunk(2)
        return m.last(x * torch.cat([high, low]))

    model = Written(body, p=constant(10), last=linear(10)).double().eval()
    x = vector().double()
    explainer = fastlrp.Explainer(model, "gradient")
    explainer(x, [0])
    with torch.no_grad():
        model.p.add_(1)
    expected = model.last.weight[0] * torch.cat(list(model.p.chunk(2))[::-1]) * 2
    torch.testing.assert_close(explainer(x, [0], initial="one")[0, 0], expected.detach())


@pytest.mark.slow
def test_deep_and_shared_constants() -> None:
    """Each operation on constants is done once: 1100 of them, deeper than Python recurs, read twice each."""

    def body(m: Any, x: Tensor) -> Tensor:
        p = m.p
        for _ in range(1100):
            p = p * 0.5 + p * 0.5
        return m.last(x * p)

    model = Written(body, p=constant(10), last=linear(10)).eval()
    plain = Written(lambda m, x: m.last(x * m.p), p=model.p, last=model.last).eval()
    x = vector()
    torch.testing.assert_close(fastlrp.explain(model, x, [0], "lrp0"), fastlrp.explain(plain, x, [0], "lrp0"))


def test_a_buffer_that_is_changed_and_read_is_refused() -> None:
    def body(m: Any, x: Tensor) -> Tensor:
        m.state.add_(1)
        return m.last(x * m.state)

    model = Written(body, last=linear(10))
    model.register_buffer("state", torch.zeros(10))
    with pytest.raises(CaptureError, match=r"changes 'state', a tensor of the model's own, in place \(add in"):
        fastlrp.explain(model.eval(), vector(), [0])


@pytest.mark.parametrize("moments", [torch.var_mean, torch.std_mean])
@pytest.mark.parametrize("how", [{"unbiased": False}, {"unbiased": True}, {"correction": 0}, {"correction": 2}, {}])
def test_moments_have_the_divisor_that_they_are_given(moments, how):
    """``unbiased=False`` was lost: the record's output was that of the unbiased variance."""

    class Moments(nn.Module):
        def forward(self, x):
            spread, mean = moments(x, dim=1, keepdim=True, **how)
            return (x * spread + mean).flatten(1)

    model, x = Moments().eval(), torch.randn(2, 3, 4, dtype=torch.float64)
    with fastlrp.Explainer(model, "epsilon").forward(x) as record:
        torch.testing.assert_close(record.output, model(x), rtol=1e-14, atol=1e-14)
