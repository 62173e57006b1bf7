"""Random sequences of changes to one model: after each, an explainer answers as a new one would."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable

import pytest
import torch
from torch import nn

from fastlrp import Explainer
from tests.api.models import relative_error

Change = Callable[[nn.Module, random.Random], None]


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.act = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.LeakyReLU(0.2)
        self.b, self.c, self.scale = nn.Conv2d(4, 4, 3), nn.Linear(4, 3), 1.5
        self.norm.running_mean.uniform_(-0.2, 0.2)
        self.norm.running_var.uniform_(0.5, 2.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.relu(self.b(self.act(self.norm(self.a(x)))) * self.scale)
        return self.c(h.mean((2, 3)))


def _weight(model: nn.Module, rng: random.Random) -> nn.Parameter:
    return rng.choice(list(model.parameters()))


def _step(model: nn.Module, rng: random.Random) -> None:
    kind = rng.choice([torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad])
    optimizer = kind(model.parameters(), lr=0.05, fused=rng.random() < 0.7)
    model(torch.rand(2, 2, 7, 7, dtype=torch.float64)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def _through_data(model: nn.Module, rng: random.Random) -> None:
    _weight(model, rng).data.mul_(1.1).add_(0.01)


def _through_numpy(model: nn.Module, rng: random.Random) -> None:
    _weight(model, rng).detach().numpy()[...] += 0.05


def _one_entry(model: nn.Module, rng: random.Random) -> None:
    array = _weight(model, rng).detach().numpy().reshape(-1)
    array[rng.randrange(array.size)] += 0.3


def _new_parameter(model: nn.Module, rng: random.Random) -> None:
    layer = rng.choice([model.a, model.b, model.c])
    layer.weight = nn.Parameter(layer.weight.detach() * 0.9)


def _new_module(model: nn.Module, rng: random.Random) -> None:
    model.act = rng.choice([nn.ReLU(), nn.LeakyReLU(rng.random()), nn.Tanh()])


def _attribute(model: nn.Module, rng: random.Random) -> None:
    if rng.random() < 0.5:
        model.scale = 0.5 + rng.random()
    else:
        model.norm.eps = rng.choice([1e-5, 0.1, 0.5])


def _statistics(model: nn.Module, rng: random.Random) -> None:
    model.norm.running_var.data.mul_(1.5)


def _loaded(model: nn.Module, rng: random.Random) -> None:
    model.load_state_dict({name: value * 0.95 for name, value in model.state_dict().items()})


def _hook(model: nn.Module, rng: random.Random) -> None:
    rng.choice([model.b, model.c]).register_forward_hook(lambda module, args, out: out * 1.2)


def _nothing(model: nn.Module, rng: random.Random) -> None:
    pass


CHANGES: list[Change] = [
    _step, _through_data, _through_numpy, _one_entry, _new_parameter, _new_module, _attribute, _statistics, _loaded,
    _hook, _nothing,
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_after_any_changes_an_explainer_answers_as_a_new_one(seed):
    rng = random.Random(seed)
    torch.manual_seed(seed)
    model = Small().double().eval()
    x = torch.randn(2, 2, 7, 7, dtype=torch.float64)
    composite = rng.choice(["epsilon_plus", "gamma", "epsilon_alpha2_beta1", "gradient"])
    explainer, done = Explainer(model, composite), []
    explainer(x, [0])
    for _ in range(6):
        change = rng.choice(CHANGES)
        change(model, rng)
        done.append(change.__name__)
        found, fresh = explainer(x, "all"), Explainer(copy.deepcopy(model), composite)(x, "all")
        assert relative_error(found, fresh) <= 1e-12, f"after {', '.join(done)} under {composite}"
        with torch.no_grad():
            assert torch.equal(explainer.forward(x).output, model(x)), done
