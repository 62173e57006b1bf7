"""Classes compared by one result: contrasts by hand and by initial relevance, and tables of top classes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fastlrp
from fastlrp import composites, groups


def test_contrasts_by_hand():
    """y = W x without biases: relevance of x_i for class k is w_ki x_i."""
    model = nn.Linear(2, 3, bias=False).double().eval()
    model.weight.data = torch.tensor([[1.0, 2.0], [3.0, -1.0], [0.5, 0.5]]).double()
    x = torch.tensor([[2.0, 1.0]]).double()  # Scores 4, 5, 1.5; per unit (0.5, 0.5), (1.2, -0.2), (2/3, 1/3).
    with fastlrp.Explainer(model, composites.lrp0(), labels=["a", "b", "c"]).forward(x) as record:
        parts = groups.features([0, 1])
        others = fastlrp.contrastive(record, "a", parts)
        torch.testing.assert_close(others[0, 0].tolist(), [2 - 4 * (1.2 + 2 / 3) / 2, 2 - 4 * (1 / 3 - 0.2) / 2])
        both = fastlrp.contrastive(record, [0, 2], parts, against=[1, 0])
        torch.testing.assert_close(both[0].tolist(), [[2.0 - 6, 2.0 + 1], [1.0 - 2, 0.5 - 2]])
        one = fastlrp.contrastive(record, [0, 2], parts, against="b")
        torch.testing.assert_close(one[0].tolist(), [[2.0 - 6, 2.0 + 1], [1.0 - 6, 0.5 + 1]])
        table = fastlrp.top_classes(record, parts, 2)
        assert table.classes.tolist() == [[[1, 0], [0, 2]]]
        torch.testing.assert_close(table.relevance.tolist(), [[[6.0, 2.0], [2.0, 0.5]]])
        assert str(table).splitlines() == ["sample 0, part 0: b +6, a +2", "sample 0, part 1: a +2, c +0.5"]
        with pytest.raises(ValueError, match="one for each of 2 targets"):
            fastlrp.contrastive(record, [0, 1], parts, against=[0, 1, 2])
        with pytest.raises(ValueError, match="class 3 is out of range"):
            fastlrp.contrastive(record, 3, parts)
        with pytest.raises(ValueError, match="from 1 to the number of classes, 3"):
            fastlrp.top_classes(record, parts, 4)


def test_contrasts_are_relevance_of_initial_differences():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5)).double().eval()
    x = torch.rand(2, 1, 6, 6, dtype=torch.float64)
    with fastlrp.Explainer(model, "epsilon_plus").forward(x) as record:
        start = torch.zeros(2, 1, 5, dtype=torch.float64)
        start[:, 0, 3], start[:, 0, 1] = record.scores[:, 3], -record.scores[:, 1]
        expected = record.relevance(start, groups=groups.patches(3))
        for way in ("up", "down"):
            found = fastlrp.contrastive(record, 3, groups.patches(3), against=1, direction=way)
            torch.testing.assert_close(found, expected)
        rivals = record.scores[:, 3:4].unsqueeze(2) * torch.full((2, 1, 5), -0.25).double()
        rivals[:, 0, 3] = record.scores[:, 3]
        expected = record.relevance(rivals, groups=groups.patches(3))
        torch.testing.assert_close(fastlrp.contrastive(record, 3, groups.patches(3)), expected)


def test_positions():
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 7)).double().eval()
    with fastlrp.Explainer(model, "epsilon").forward(torch.tensor([[1, 5, 2]])) as record:
        found = fastlrp.contrastive(record, [4], "tokens", against=2, at=1)
        expected = record.relevance([4, 2], at=1, groups="tokens")
        torch.testing.assert_close(found, expected[:, :1] - expected[:, 1:])
        assert fastlrp.top_classes(record, "tokens", 3, at=-1).classes.shape == (1, 3, 3)
        with pytest.raises(ValueError, match=r"\(B, S, V\) and a position at="):
            fastlrp.top_classes(record, "tokens")
