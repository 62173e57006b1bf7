"""Small models as a whole, on the device: all neurons, living ones, up, by attention and norms, launches recorded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import fastlrp
from tests.gpu.cases import DEVICE, relative

LIMIT = 1e-4
TARGETS = [0, 3]


class Small(nn.Module):
    """A convolution, a max-pool, a strided residual block, an average pool and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.second, self.third = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.last = nn.Linear(8 * 9, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(torch.relu(self.first(x)))
        x = torch.relu(x + self.third(torch.relu(self.second(x))))
        found: Tensor = self.last(nn.functional.avg_pool2d(x, 2).flatten(1))
        return found


def made() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Small().eval(), torch.rand(1, 3, 12, 12)


def compare(found: Tensor, right: Tensor) -> str:
    error = relative(found, right.double())
    assert error <= LIMIT, f"off by {error:.3g}, at most {LIMIT:g}"
    return f"off by {error:.1e}"


def down(paths: str, rules: str, backend: str) -> str:
    model, x = made()
    composite = fastlrp.composites.preset(rules, **({"low": 0.0, "high": 1.0} if rules.endswith("box") else {}))
    right = fastlrp.Explainer(model.double(), composite, backend="torch", paths="dense")(x.double(), TARGETS)
    explainer = fastlrp.Explainer(model.float().to(DEVICE), composite, backend=backend, paths=paths)
    return compare(explainer(x.to(DEVICE), TARGETS), right)


def up(paths: str, backend: str) -> str:
    model, x = made()
    groups = torch.rand(20, *x.shape[1:])
    with fastlrp.Explainer(model.double(), "epsilon_plus", backend="torch", paths="dense").forward(
        x.double()
    ) as record:
        right = record.relevance("all", groups=groups.double(), direction="down")
    explainer = fastlrp.Explainer(model.float().to(DEVICE), "epsilon_plus", backend=backend, paths=paths)
    with explainer.forward(x.to(DEVICE)) as record:
        return compare(record.relevance("all", groups=groups.to(DEVICE), direction="up"), right)


def attending(direction: str) -> str:
    """One layer of a transformer: attention and norms."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, activation="gelu", batch_first=True, norm_first=True),
        nn.Flatten(), nn.Linear(32 * 9, 5),
    ).eval()  # fmt: skip
    x, groups = torch.randn(2, 9, 32), torch.rand(6, 9, 32)

    def explained(device: torch.device, dtype: torch.dtype, way: str, backend: str) -> Tensor:
        explainer = fastlrp.Explainer(model.to(device, dtype), "attnlrp", backend=backend)
        with explainer.forward(x.to(device, dtype)) as record:
            return record.relevance("all", groups=groups.to(device, dtype), direction=way)

    right = explained(torch.device("cpu"), torch.float64, "down", "torch")
    return compare(explained(DEVICE, torch.float32, direction, "auto"), right)


def recorded() -> str:
    """The launches of a whole explanation in one CUDA graph."""
    if DEVICE.type != "cuda":
        raise_skip("there is no CUDA graph on a CPU")
    model, x = made()
    explainer = fastlrp.Explainer(model.to(DEVICE), "epsilon_plus", paths="dense")
    x = x.to(DEVICE)
    replay = explainer.replay(x, 2)
    _, found = replay(x * 0.5, [0, 2])
    return compare(found, explainer(x * 0.5, [0, 2]).cpu())


def raise_skip(reason: str) -> None:
    from benchmarks.gpu.isolated import UnableError

    raise UnableError(reason)


def cases() -> Iterator[tuple[str, Callable[[], Any]]]:
    """Name and call of each."""
    for rules in ("epsilon_plus", "epsilon_gamma_box", "epsilon_plus_flat"):
        for paths in ("dense", "sparse"):
            yield f"model down {rules} {paths}", partial(down, paths, rules, "auto")
    for backend in ("triton", "cuda"):
        yield f"model down {backend} dense", partial(down, "dense", "epsilon_plus", backend)
    for paths in ("dense", "sparse"):
        yield f"model up {paths}", partial(up, paths, "auto")
    for direction in ("down", "up"):
        yield f"model attention {direction}", partial(attending, direction)
    yield "model replay", recorded
