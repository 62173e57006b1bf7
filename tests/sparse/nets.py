"""Small networks of every shape that relevance can take on its way down, and the comparison of its ways."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastlrp import Explainer, composites
from fastlrp.composites import Composite
from tests.models.cases import Written

CLASSES = 12


def vgg() -> nn.Module:
    """Max-pools of several geometries and two linear layers."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 9, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(9, 17, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2, 1), nn.Flatten(), nn.Linear(68, 20), nn.ReLU(),
        nn.Linear(20, CLASSES),
    )  # fmt: skip


def residual() -> nn.Module:
    """As ResNets are: batch norms, a plain and a projected shortcut, an average at the end."""

    def body(m: Any, x: Tensor) -> Tensor:
        x = m.pool(F.relu(m.norm(m.stem(x))))
        x = F.relu(m.b(F.relu(m.a(x))) + x)
        x = F.relu(m.d(F.relu(m.c(x))) + m.project(x))
        return m.head(F.adaptive_avg_pool2d(x, 1).flatten(1))

    def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Conv2d:
        return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)

    norm = nn.BatchNorm2d(6)
    norm.running_mean, norm.running_var = torch.rand(6) - 0.5, torch.rand(6) + 0.5
    return Written(
        body, stem=conv(3, 6), norm=norm, pool=nn.MaxPool2d(3, 2, 1), a=conv(6, 6), b=conv(6, 6), c=conv(6, 10, 3, 2),
        d=conv(10, 10), project=conv(6, 10, 1, 2), head=nn.Linear(10, CLASSES),
    )  # fmt: skip


def shared_sums() -> nn.Module:
    """One value read by convolutions, pools and sums at once, and one added to itself."""

    def body(m: Any, x: Tensor) -> Tensor:
        a = F.relu(m.a(x))
        b = F.relu(m.b(a))
        c = b + a + F.max_pool2d(a, 3, 1, 1)
        d = F.relu(m.c(c) + m.d(c) + m.e(b))
        e = d + d
        return m.head((F.max_pool2d(e, 2) + F.avg_pool2d(e, 2)).flatten(1)) + m.other(a.mean((2, 3)))

    convs = {name: nn.Conv2d(3 if name == "a" else 5, 5, 3, padding=1) for name in "abcde"}
    return Written(body, **convs, head=nn.Linear(80, CLASSES), other=nn.Linear(5, CLASSES))


def joined() -> nn.Module:
    """Concatenated branches, parts of a map, a shuffle of channels."""

    def body(m: Any, x: Tensor) -> Tensor:
        a = F.relu(m.a(x))
        b = torch.cat([F.relu(m.b(a)), F.max_pool2d(a, 3, 1, 1), m.c(a).clamp(min=0)], 1)
        left, right = b.chunk(2, 1)
        y = F.channel_shuffle(torch.cat([F.relu(m.d(left)), right], 1), 2)
        return m.head(F.relu(m.e(y)).mean(-1).flatten(1))

    return Written(
        body, a=nn.Conv2d(3, 6, 3, padding=1), b=nn.Conv2d(6, 4, 1), c=nn.Conv2d(6, 4, 3, padding=1),
        d=nn.Conv2d(7, 5, 3, padding=1), e=nn.Conv2d(12, 6, 3, padding=1, groups=2), head=nn.Linear(48, CLASSES),
    )  # fmt: skip


def geometries() -> nn.Module:
    """Depthwise, grouped, dilated, strided, transposed."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.ReLU6(),
        nn.Conv2d(6, 8, 3, dilation=2, padding=3, groups=2), nn.ReLU(), nn.Conv2d(8, 8, (3, 2), stride=(2, 3)),
        nn.ReLU(), nn.ConvTranspose2d(8, 5, 3, stride=2, padding=1, output_padding=1), nn.ReLU(),
        nn.ConvTranspose2d(5, 5, 3, groups=5), nn.ReLU(), nn.AvgPool2d(3, 2), nn.Flatten(), nn.LazyLinear(CLASSES),
    )  # fmt: skip


def line() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(3, 8, 5, padding=2), nn.ReLU(), nn.MaxPool1d(3, 2), nn.Conv1d(8, 8, 3, stride=2, dilation=2),
        nn.ReLU(), nn.ConvTranspose1d(8, 6, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.LazyLinear(CLASSES),
    )  # fmt: skip


def volume() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(2, 5, 3, padding=1), nn.ReLU(), nn.MaxPool3d(2, 1), nn.Conv3d(5, 6, (1, 2, 3), stride=(1, 2, 1)),
        nn.ReLU(), nn.ConvTranspose3d(6, 4, 2), nn.ReLU(), nn.AdaptiveAvgPool3d(2), nn.Flatten(),
        nn.Linear(32, CLASSES),
    )  # fmt: skip


def linear() -> nn.Module:
    return nn.Sequential(nn.Linear(10, 40), nn.ReLU(), nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, CLASSES))


def segmentation() -> nn.Module:
    """(B, 3, 8, 8) -> (B, 12, 4, 4): convolutions up to the output."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(),
        nn.Conv2d(8, CLASSES, 1),
    )  # fmt: skip


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "vgg": (vgg, (3, 8, 8)),
    "residual": (residual, (3, 9, 8)),
    "shared_sums": (shared_sums, (3, 8, 8)),
    "joined": (joined, (3, 8, 8)),
    "geometries": (geometries, (3, 8, 9)),
    "line": (line, (3, 19)),
    "volume": (volume, (2, 5, 6, 4)),
    "linear": (linear, (10,)),
    "segmentation": (segmentation, (3, 8, 8)),
}
COMPOSITES: dict[str, Callable[[], Composite]] = {
    **{name: make for name, make in composites.PRESETS.items() if name != "epsilon_gamma_box"},
    "epsilon_gamma_box": lambda: composites.epsilon_gamma_box(-4.0, 5.0),
    **{
        f"max_pool_{mode}": (lambda mode=mode: composites.epsilon_plus(max_pool=mode))
        for mode in ("ties", "average", "sum")
    },
    "gamma_max_pool_ties": lambda: composites.gamma(max_pool="ties"),
}
_MADE: dict[tuple[str, torch.dtype], nn.Module] = {}


def make(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A network in evaluation mode, always the same one."""
    if (name, dtype) not in _MADE:
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(0)
            build, size = NETS[name]
            model = build().eval()
            model(torch.zeros(1, *size))  # Lazy layers.
            _MADE[name, dtype] = model.to(dtype)
    return _MADE[name, dtype]


def samples(name: str, batch: int = 2, dtype: torch.dtype = torch.float64, nonnegative: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, *NETS[name][1], generator=generator, dtype=torch.float64)
    return (x.abs() if nonnegative else x).to(dtype)


def named(found: Any) -> dict[str, Tensor]:
    """Results by name, whatever their structure."""
    if isinstance(found, Tensor):
        return {"input": found}
    items = found.items() if isinstance(found, dict) else enumerate(found)
    return {f"{key}.{inner}": t for key, value in items if value is not None for inner, t in named(value).items()}


def worst_error(found: Any, expected: Any) -> float:
    """The largest relative error in the 2-norm of any result."""
    ours, theirs = named(found), named(expected)
    assert list(ours) == list(theirs)
    errors = []
    for name, expected in theirs.items():
        assert ours[name].shape == expected.shape, name
        assert bool(expected.isfinite().all()), name
        scale = float(expected.double().norm())
        error = float((ours[name].double() - expected.double()).norm())
        errors.append(error / scale if scale else float(error > 0))
        assert not torch.tensor(errors[-1]).isnan(), name
    return max(errors)


def assert_same(found: Any, expected: Any, bound: float, context: object = "") -> None:
    """No result's relative error is above the bound."""
    error = worst_error(found, expected)
    assert error <= bound, f"{context}: relative error {error:.3g}"


def sparse_layers(explainer: Explainer) -> list[str]:
    """Paths of the layers that were computed for alive neurons only, at the latest call."""
    return [name for name, path in explainer.plan.latest_paths.items() if path.sparse]
