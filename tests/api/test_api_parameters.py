"""Parameters of rules act at the kinds that take the rule, or are refused there."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastlrp import Explainer, composites, rules


class Mean(nn.Module):
    """``of`` a map, then a linear layer."""

    def __init__(self, of: str) -> None:
        super().__init__()
        self.of, self.last = of, nn.LazyLinear(3, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        made = {"mean": lambda: x.mean((2, 3)), "keepdim": lambda: x.mean(-1, keepdim=True)}
        pooled = made[self.of]() if self.of in made else F.adaptive_avg_pool2d(x, int(self.of))
        return self.last(pooled.flatten(1))


@pytest.mark.parametrize("of", ["1", "2", "4", "mean", "keepdim"])
def test_of_sum_at_adaptive_pools_and_means(of):
    """Windows of 36, 9, and 4 that overlap; means over both axes, and one. Epsilon is compared with the sum."""
    torch.manual_seed(0)
    x, model = torch.randn(2, 3, 6, 6, dtype=torch.float64), Mean(of).eval()
    model(x)
    record = Explainer(model, composites.epsilon(0.0)).forward(x)
    kinds = composites.kind("adaptive_avg_pool", "linear_map")

    def relevance(rule: rules.Norm) -> Tensor:
        composite = composites.epsilon(0.0).with_entries((kinds, rule))
        assert Explainer(model, composite).verify(x, [0, 2]).ok
        return record.under(composite).relevance([0, 2])

    sizes = {"1": 36, "2": 9, "4": 4, "mean": 36, "keepdim": 6}
    of_sum, of_mean = relevance(rules.Norm(0.9, of_sum=True)), relevance(rules.Norm(0.9 / sizes[of]))
    assert (of_sum - relevance(rules.Norm(0.9))).norm() > 0.05 * of_sum.norm()
    torch.testing.assert_close(of_sum, of_mean, rtol=1e-12, atol=1e-14)


def test_of_sum_where_windows_differ_in_size():
    x = torch.arange(1.0, 6.0, dtype=torch.float64).view(1, 1, 5)
    model = nn.Sequential(nn.AdaptiveAvgPool1d(3), nn.Flatten()).eval()
    entry = composites.kind("adaptive_avg_pool"), rules.Norm(1.0, of_sum=True)
    composite = composites.epsilon(0.0).with_entries(entry)
    windows = [(0, 2), (1, 4), (3, 5)]
    found = Explainer(model, composite)(x, "all", initial="one")
    for k, (start, stop) in enumerate(windows):
        total, expected = float(x[0, 0, start:stop].sum()), torch.zeros(5, dtype=torch.float64)
        expected[start:stop] = x[0, 0, start:stop] / (total + 1.0)
        torch.testing.assert_close(found[0, k, 0], expected, rtol=1e-12, atol=0)
    assert Explainer(model, composite).verify(x, "all").ok


class Written(nn.Module):
    """A linear layer whose bias is added in an operation of its own, or taken away from it."""

    def __init__(self, layer: nn.Linear, last: nn.Module, form: str) -> None:
        super().__init__()
        self.layer, self.last, self.form = layer, last, form

    def forward(self, x: Tensor) -> Tensor:
        z, b = F.linear(x, self.layer.weight).unsqueeze(-1), self.layer.bias.unsqueeze(-1)  # No bias of a layer's own.
        h = {"add": lambda: z + b, "radd": lambda: b + z, "sub": lambda: z - -b, "rsub": lambda: b - -z}[self.form]()
        return self.last(h.squeeze(-1).relu())


@pytest.mark.parametrize("form", ["add", "radd", "sub", "rsub"])
@pytest.mark.parametrize("epsilon", [0.0, 0.3])
def test_zero_bias_leaves_a_constant_summand_out(form, epsilon):
    torch.manual_seed(0)
    first, last = nn.Linear(5, 7).double(), nn.Linear(7, 3).double()
    x, rule = torch.randn(4, 5, dtype=torch.float64), rules.Epsilon(epsilon, zero_bias=True)
    whole = Explainer(nn.Sequential(first, nn.ReLU(), last).eval(), composites.uniform(rule))(x, "all")
    # The sum has what is left of epsilon: a layer without it below, and the whole layer's epsilon at the sum.
    kinds = {"add": rule, "linear": rules.Epsilon(0.0)}
    entries = [(composites.last(), rule), *((composites.kind(name), of) for name, of in kinds.items())]
    composite = composites.epsilon(0.0).with_entries(*entries)
    explainer = Explainer(Written(first, last, form).eval(), composite)
    torch.testing.assert_close(explainer(x, "all"), whole, rtol=1e-9, atol=1e-12)
    assert explainer.verify(x, "all").ok
    with_bias = composites.epsilon(0.0).with_entries((composites.kind("add"), rules.Epsilon(epsilon)))
    assert not torch.allclose(explainer.forward(x).under(with_bias).relevance("all"), whole, rtol=1e-2)


MAX_POOL = [
    rules.ZPlus(), rules.AlphaBeta(), rules.Gamma(), rules.PlainGamma(), rules.ZBox(-1.0, 1.0),
    rules.ModifiedWeights(torch.abs), rules.FixedSigma(), rules.Uniform(), rules.ValueOnly(), rules.Recurrent(),
    rules.Taylor(), rules.Deconvnet(),
]  # fmt: skip


def test_max_pools_refuse_rules_that_would_do_nothing():
    model, x = nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(9, 2)).eval(), torch.randn(1, 1, 6, 6)
    record = Explainer(model, composites.epsilon()).forward(x)
    for rule in MAX_POOL:
        composite = composites.epsilon().with_entries((composites.kind("max_pool"), rule))
        said = rf"{type(rule).__name__}.* is not defined for max_pool2d .* max_pool, here 'winner': use Norm or Epsilon"
        with pytest.raises(TypeError, match=said):
            record.under(composite).relevance(0)
    for rule in (rules.Norm(), rules.Epsilon(), rules.Pass(), rules.Flat(), rules.WSquare(), rules.Gradient()):
        composite = composites.epsilon().with_entries((composites.kind("max_pool"), rule))
        assert Explainer(model, composite).verify(x, 0).ok


def test_bags_refuse_sums_of_means():
    model = nn.Sequential(nn.EmbeddingBag(5, 4, mode="mean"), nn.Linear(4, 2)).eval()
    composite = composites.epsilon().with_entries((composites.kind("embedding_bag"), rules.Norm(of_sum=True)))
    with pytest.raises(TypeError, match=r"of_sum=True\) is not defined for embedding_bag .*: use Norm or Epsilon"):
        Explainer(model, composite)(torch.tensor([[0, 1, 4]]), 0)
