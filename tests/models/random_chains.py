"""Random networks of the vocabulary's element-wise and structural operations, for a comparison with the reference walk.

A chain keeps maps ``(B, C, H, W)`` of a few entries; between its operations stand layers of random weights. Everything
is drawn from one seed, so that a number names a network.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Maps = Callable[[Tensor], Tensor]
MOST = 200
"""Entries of a sample's map; longer ones are pooled."""


class Step(nn.Module):
    """One operation of a chain, with the layers and parameters that it uses."""

    def __init__(self, name: str, run: Callable[..., Tensor], *members: Any) -> None:
        super().__init__()
        self.name, self.run = name, run
        self.modules_used = nn.ModuleList([m for m in members if isinstance(m, nn.Module)])
        self.constants = nn.ParameterList([m for m in members if isinstance(m, Tensor)])

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x, *self.modules_used, *self.constants)

    def extra_repr(self) -> str:
        return self.name


Make = Callable[[random.Random, tuple[int, ...]], tuple[Any, ...]]


def plain(run: Maps) -> Make:
    return lambda r, shape: (run,)


def number(run: Callable[[Tensor, float], Tensor], *choices: float) -> Make:
    """An operation with a number, drawn from the choices."""

    def make(r: random.Random, shape: tuple[int, ...]) -> tuple[Any, ...]:
        value = r.choice(choices or (-2.0, -0.5, 0.5, 2, 3.0))
        return (lambda x: run(x, value),)

    return make


def constant(run: Callable[[Tensor, Tensor], Tensor]) -> Make:
    """An operation with a parameter of one sample's shape, or of one number per channel."""

    def make(r: random.Random, shape: tuple[int, ...]) -> tuple[Any, ...]:
        size = shape[1:] if r.random() < 0.5 else (shape[1], 1, 1)
        return run, torch.randn(size) + r.choice((0, 0, 2))

    return make


def layer(build: Callable[[int], nn.Module]) -> Make:
    return lambda r, shape: ((lambda x, m: m(x)), build(shape[1]))


def branches(join: Callable[[Tensor, Tensor], Tensor]) -> Make:
    """Two element-wise operations of one map, joined."""

    def make(r: random.Random, shape: tuple[int, ...]) -> tuple[Any, ...]:
        one, two = (r.choice(SIMPLE) for _ in range(2))
        return (lambda x: join(one(x), two(x)),)

    return make


def small(x: Tensor) -> Tensor:
    """Numbers of a size that a power or an exponential leaves finite."""
    return x.clamp(-3, 3)


SIMPLE: list[Maps] = [
    F.relu, torch.neg, torch.abs, torch.square, torch.tanh, torch.sigmoid, F.gelu, F.silu, F.leaky_relu,
    lambda x: x, lambda x: -x.relu(), lambda x: -x.sigmoid(), lambda x: x.relu() + 1, lambda x: 1 - x.sigmoid(),
    lambda x: -x.abs(), lambda x: x.clamp(min=-0.5), lambda x: x.clamp(0.1, 2), lambda x: x.clamp(max=-0.1),
]  # fmt: skip

OPERATIONS: dict[str, Make] = {
    **{f"simple {i}": plain(run) for i, run in enumerate(SIMPLE)},
    "conv": layer(lambda n: nn.Conv2d(n, 3, 3, padding=1)),
    "pointwise": layer(lambda n: nn.Conv2d(n, 2, 1, bias=False)),
    "depthwise": layer(lambda n: nn.Conv2d(n, n, 3, padding=1, groups=n)),
    "transposed": layer(lambda n: nn.ConvTranspose2d(n, 2, 2)),
    "batch norm": layer(lambda n: nn.BatchNorm2d(n)),
    "linear": lambda r, shape: ((lambda x, m: m(x)), nn.Linear(shape[3], 3)),
    "matmul": lambda r, shape: ((lambda x, c: x @ c), torch.randn(shape[3], 3)),
    "prelu": layer(lambda n: nn.PReLU(n)),
    "layer norm": lambda r, shape: ((lambda x, m: m(x)), nn.LayerNorm(shape[1:])),
    "group norm": layer(lambda n: nn.GroupNorm(1, n)),
    "relu6": plain(F.relu6),
    "hardtanh": number(lambda x, v: F.hardtanh(x, v, 3.0)),
    "clamp max": number(lambda x, v: x.clamp(max=v)),
    "clamp both": number(lambda x, v: x.clamp(0, v)),
    "hardsigmoid": plain(F.hardsigmoid),
    "hardswish": plain(F.hardswish),
    "elu": number(F.elu, 1.0, 0.5),
    "celu": number(F.celu, 1.0, 0.5),
    "selu": plain(F.selu),
    "leaky": number(F.leaky_relu, -0.5, 0.1, 2.0),
    "mish": plain(F.mish),
    "softplus": number(lambda x, v: F.softplus(x, v)),
    "softplus threshold": number(lambda x, v: F.softplus(x, 1, v), -1.0, 20.0),
    "softsign": plain(F.softsign),
    "softshrink": plain(F.softshrink),
    "hardshrink": plain(F.hardshrink),
    "tanhshrink": plain(F.tanhshrink),
    "logsigmoid": plain(F.logsigmoid),
    "threshold": number(lambda x, v: F.threshold(x, 0.1, v)),
    "threshold below": number(lambda x, v: F.threshold(x, v, 0.0)),
    "softmax": number(lambda x, v: x.softmax(int(v)), 1, 2, 3),
    "log softmax": number(lambda x, v: x.log_softmax(int(v)), 1, 2, 3),
    "exp": plain(lambda x: small(x).exp()),
    "exp negated": plain(lambda x: -small(x).exp()),
    "power": number(lambda x, v: small(x).pow(v), 1, 2, 3, 4),
    "root": plain(lambda x: x.relu().add(0.1).pow(0.5)),
    "times": number(lambda x, v: x * v),
    "over": number(lambda x, v: x / v),
    "plus": number(lambda x, v: x + v),
    "minus": number(lambda x, v: x - v),
    "from": number(lambda x, v: v - x),
    "add alpha": number(lambda x, v: torch.add(x, x.relu(), alpha=v)),
    "sub alpha": number(lambda x, v: torch.sub(x.relu(), x.abs(), alpha=v)),
    "times constant": constant(torch.mul),
    "plus constant": constant(torch.add),
    "minus constant": constant(torch.sub),
    "constant minus": constant(lambda x, c: c - x),
    "over constant": constant(lambda x, c: x / (c.abs() + 0.5)),
    "cat": branches(lambda a, b: torch.cat([a, b], 1)),
    "stack": branches(lambda a, b: torch.stack([a, b], 2).flatten(1, 2)),
    "sum of two": branches(torch.add),
    "difference": branches(torch.sub),
    "product": branches(torch.mul),
    "quotient": branches(lambda a, b: a / (b.square() + 1)),
    "gate": branches(lambda a, b: a * b.mean((2, 3), keepdim=True).sigmoid()),
    "max pool": plain(lambda x: F.max_pool2d(x, 2, 1)),
    "max pool padded": plain(lambda x: F.max_pool2d(x, 3, 2, 1)),
    "avg pool": plain(lambda x: F.avg_pool2d(x, 2, 1)),
    "avg pool padded": plain(lambda x: F.avg_pool2d(x, 3, 2, 1)),
    "adaptive avg": plain(lambda x: F.adaptive_avg_pool2d(x, 2)),
    "adaptive max": plain(lambda x: F.adaptive_max_pool2d(x, 2)),
    "mean": number(lambda x, v: x.mean(int(v), keepdim=True), 1, 2, 3),
    "sum": number(lambda x, v: x.sum(int(v), keepdim=True), 1, 2, 3),
    "cumsum": number(lambda x, v: x.cumsum(int(v)), 1, 2, 3),
    "pad": plain(lambda x: F.pad(x, (1, 0, 2, 1))),
    "cut": plain(lambda x: F.pad(x, (1, -1, 0, 0))),
    "reflect": plain(lambda x: F.pad(x, (1, 1, 1, 1), "reflect") if min(x.shape[2:]) > 1 else x),
    "replicate": plain(lambda x: F.pad(x, (1, 0, 0, 2), "replicate")),
    "circular": plain(lambda x: F.pad(x, (1, 1, 0, 0), "circular")),
    "nearest": plain(lambda x: F.interpolate(x, scale_factor=2)),
    "bilinear": plain(lambda x: F.interpolate(x, (5, 4), mode="bilinear")),
    "bicubic": plain(lambda x: F.interpolate(x, (5, 4), mode="bicubic")),
    "flip": number(lambda x, v: x.flip(int(v)), 1, 2, 3),
    "roll": number(lambda x, v: x.roll(1, int(v)), 1, 2, 3),
    "transpose": plain(lambda x: x.transpose(2, 3)),
    "permute": plain(lambda x: x.permute(0, 2, 3, 1)),
    "reshape": plain(lambda x: x.flatten(2).unsqueeze(2)),
    "narrow": plain(lambda x: x.narrow(3, 0, max(1, x.shape[3] - 1))),
    "half of a chunk": plain(lambda x: x.chunk(2, 1)[0]),
    "both chunks": plain(lambda x: torch.cat([-c for c in x.chunk(2, 1)], 1)),
    "repeat": plain(lambda x: x.repeat(1, 2, 1, 1)),
    "expand": plain(lambda x: x[:, :1].expand(-1, 2, -1, -1)),
    "strided": plain(lambda x: x[:, :, ::2]),
    "gather": plain(lambda x: x[:, [0, 0]]),
    "fold": plain(lambda x: F.fold(F.unfold(x, 2, padding=1), x.shape[2:], 2, padding=1)),
    "dropout": layer(lambda n: nn.Dropout()),
}  # fmt: skip


def network(seed: int, length: int) -> tuple[nn.Module, Tensor] | None:
    """A chain in evaluation mode, float64, and its input; None where its scores are not finite or of no useful size."""
    r = random.Random(seed)
    torch.manual_seed(seed)
    x = torch.randn(2, 2, 4, 3) if r.random() < 0.8 else torch.rand(2, 2, 4, 3)
    steps: list[nn.Module] = [nn.Conv2d(2, 3, 2)] if r.random() < 0.7 else []
    shape = tuple(nn.Sequential(*steps)(x).shape)
    for _ in range(length):
        name = r.choice(list(OPERATIONS))
        step = Step(name, *OPERATIONS[name](r, shape))
        try:
            found = step.eval()(torch.randn(shape))
        except RuntimeError:
            continue  # Not with maps of this size: a window that is too large.
        if found.dim() != 4 or not 0 < found[0].numel() <= MOST:
            continue
        steps.append(step)
        shape = tuple(found.shape)
    signed = r.choice(["conv", "linear", "depthwise"])
    if signed == "linear":
        steps += [nn.Flatten(), nn.Linear(torch.Size(shape[1:]).numel(), 4)]
    else:
        groups = shape[1] if signed == "depthwise" else 1
        kernel = (min(2, shape[2]), min(2, shape[3]))
        steps += [nn.Conv2d(shape[1], 3 * groups, kernel, groups=groups), nn.ReLU(), nn.Flatten()]
        steps += [nn.Linear(nn.Sequential(*steps).eval()(x)[0].numel(), 4)]
    model = nn.Sequential(*steps).double().eval()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)
    scores = model(x.double())
    size = float(scores.detach().abs().max())
    return (model, x.double()) if 1e-6 < size < 1e6 else None
