"""Where one register carries everything: the initial relevance, that a second reader still waits for, carries too."""

import pytest
import torch
from torch import Tensor, nn

import fastlrp
from fastlrp import groups
from fastlrp.run import basis, runner


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """A basis, and the middle, wherever there is a place for them."""
    monkeypatch.setattr(basis, "_LEAST_WORK", -1)
    monkeypatch.setattr(basis, "_WORTH_IT", 1e9)


class Beside(nn.Module):
    """Two branches from the input to the output: below the first step of one the other has not begun."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 3), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((self.first(x).flip(1), self.second(x)), 1)


class Apart(nn.Module):
    """Each of two inputs has its own part of the output."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 3), nn.Linear(4, 4)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.cat((self.first(x).relu(), self.second(y)), 1)


class Cut(nn.Module):
    """A sum, of which one summand is what a ReLU cut off, through a narrow place."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(5, 3), nn.Linear(5, 3), nn.Linear(3, 60)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.first(x).relu() + self.second(x))


def basis_of(record: fastlrp.ForwardRecord, targets: Tensor) -> basis.Neck | None:
    values = record.plan.explained_inputs()
    return runner.neck(record.plan, record.plan.schedule(values), values, targets.shape[1])


@pytest.mark.parametrize("model", [Beside, Cut])
@pytest.mark.parametrize("composite", ["epsilon", "attnlrp"])
def test_a_basis_brings_what_each_target_alone_gets(always, model, composite):
    explainer = fastlrp.Explainer(model().double().eval(), composite)
    record = explainer.forward(torch.randn(2, 5, dtype=torch.float64))
    size = record.plan.graph.output.numel
    initial = torch.randn(2, 70, size, dtype=torch.float64)
    assert (basis_of(record, initial) is not None) == (model is Cut)
    together = record.relevance(initial)
    alone = torch.cat([record.relevance(initial[:, k : k + 1]) for k in range(70)], 1)
    torch.testing.assert_close(together, alone, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("composite", ["epsilon", "attnlrp"])
def test_the_middle_is_below_all_of_the_output(composite):
    inputs = torch.randn(2, 5, dtype=torch.float64), torch.randn(2, 4, dtype=torch.float64)
    record = fastlrp.Explainer(Apart().double().eval(), composite).forward(inputs)
    with pytest.raises(ValueError, match="needs an edge that all relevance goes through"):
        record.relevance("all", groups="inputs", direction="middle")
    record = fastlrp.Explainer(Cut().double().eval(), composite).forward(inputs[0])
    parts = groups.features([0, [1, 2], [3, 4]])
    middle, down = (record.relevance("all", groups=parts, direction=way) for way in ("middle", "down"))
    torch.testing.assert_close(middle, down, rtol=1e-10, atol=1e-12)


class OneNumber(nn.Module):
    """A narrow place of one number per sample, which has no axis of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(5, 3), nn.Linear(1, 2), nn.Linear(2, 60)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x).relu().mean(-1)[:, None]))


@pytest.mark.parametrize("layers", [[], ["mean"], ["first", "second"]])
def test_a_basis_goes_through_one_number_per_sample(always, layers):
    explainer = fastlrp.Explainer(OneNumber().double().eval(), "epsilon")
    record = explainer.forward(torch.randn(2, 5, dtype=torch.float64))
    names = [name for name in record.layer_names if name in layers]
    together = record.relevance("all", layers=names)
    alone = [record.relevance(k, layers=names) for k in range(60)]
    for name, found in together.items():
        torch.testing.assert_close(found, torch.cat([one[name] for one in alone], 1), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("initial", [False, True])
def test_groups_go_up_to_an_output_without_an_axis(initial):
    class Mean(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).relu().mean(-1)

    record = fastlrp.Explainer(Mean(5, 3).double().eval(), "epsilon").forward(torch.randn(2, 5, dtype=torch.float64))
    parts, targets = groups.features([0, [1, 2], [3, 4]]), torch.tensor([[0.5], [2.0]]) if initial else 0
    up, middle = (record.relevance(targets, groups=parts, direction=way) for way in ("up", "middle"))
    whole = record.relevance(targets)
    expected = torch.stack([whole[..., 0], whole[..., 1:3].sum(-1), whole[..., 3:].sum(-1)], -1)
    torch.testing.assert_close(up, expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(middle, expected, rtol=1e-12, atol=1e-14)
