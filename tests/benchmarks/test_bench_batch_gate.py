"""In a batch everybody's float32 is compared with float64, not with one another."""

import torch
from torch import nn

from benchmarks import gates, measure, providers
from benchmarks.measure import Gate


def test_whoever_is_further_from_float64_than_a_pools_winner_is_not_timed():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 5)).eval()
    x, classes = torch.rand(3, 3, 8, 8), torch.tensor([[0], [3], [1]])
    gate = gates.in_double(model, x, "epsilon_plus", classes)
    assert gate.expected is not None
    assert gate.expected.dtype == torch.float64
    assert next(model.parameters()).dtype == torch.float32, "the model that is timed is the one that was given"
    right = providers.ours(model, x, "epsilon_plus", "auto")
    (found,) = measure.measure([right], x, classes, 1, gate)
    assert found.reason is None
    assert found.error is not None
    assert found.error < 1e-5

    def off(x: torch.Tensor, classes: torch.Tensor, mark: object) -> torch.Tensor:
        result = right.run(x, classes, lambda: None).clone()
        result[1] *= 1 + 2 * gates.WINNERS  # One image of three.
        return result

    (found,) = measure.measure([providers.Provider("zennit off", off)], x, classes, 1, Gate(gate.expected, 5e-4, 5e-4))
    assert found.reason is not None
    assert "differs" in found.reason
