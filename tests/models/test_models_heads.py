"""Rules per head: against autograd with the other heads detached, for fused and eager attention; what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastlrp
from fastlrp import Stabilizer, composites, rules
from tests.transformers import oracle

UNIFORM, VALUES = rules.Uniform(Stabilizer.limit()), rules.ValueOnly(Stabilizer.limit())


class Attention(nn.Module):
    """Four heads of queries, two of keys; ``of_heads`` gives the relevance that each may take, for the oracle."""

    def __init__(self, eager: bool) -> None:
        super().__init__()
        self.eager, self.project, self.last = eager, nn.Linear(8, 16), nn.Linear(8, 8)

    def operands(self, x: Tensor) -> tuple[Tensor, ...]:
        q, k, v = self.project(x).split((8, 4, 4), -1)
        return tuple(t.unflatten(-1, (-1, 2)).transpose(1, 2) for t in (q, k, v))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.operands(x)
        if not self.eager:
            return self.last(F.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2).flatten(2))
        k, v = (t.repeat_interleave(2, 1) for t in (k, v))
        weights = (q @ k.transpose(-1, -2) * 2**-0.5).softmax(-1)
        return self.last((weights @ v).transpose(1, 2).flatten(2))

    def by_autograd(self, x: Tensor, modes: list[str]) -> Tensor:
        """``modes``: of each head, "attnlrp", "cp_lrp", or "" for one that nothing goes through."""
        q, k, v = self.operands(x)
        k, v = (t.repeat_interleave(2, 1) for t in (k, v))
        found = [
            oracle.attention(*(t[:, h : h + 1] if mode else t[:, h : h + 1].detach() for t in (q, k, v)), mode=mode)
            for h, mode in enumerate(modes)
        ]
        return self.last(torch.cat(found, 1).transpose(1, 2).flatten(2))


class Model(nn.Module):
    def __init__(self, eager: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Attention(eager) for _ in range(2))
        self.classes = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return self.classes(x.mean(1))

    def by_autograd(self, x: Tensor, modes: list[list[str]]) -> Tensor:
        for layer, own in zip(self.layers, modes, strict=True):
            x = x + layer.by_autograd(x, own)
        return self.classes(x.mean(1))


def model_and_input(eager: bool) -> tuple[Model, Tensor]:
    torch.manual_seed(3)
    return Model(eager).double().eval(), torch.randn(2, 5, 8, dtype=torch.float64)


ALL = ["attnlrp"] * 4
ATTNLRP = composites.attnlrp()
CASES = {
    "some": (ATTNLRP.through_heads({"layers.1": (1, 2)}), [ALL, ["", "attnlrp", "attnlrp", ""]]),
    "one_everywhere": (ATTNLRP.through_heads({"layers.*": 3}), [["", "", "", "attnlrp"]] * 2),
    "of_cp_lrp": (composites.cp_lrp().through_heads({"layers.0": [0]}), [["cp_lrp", "", "", ""], ["cp_lrp"] * 4]),
    "all_but_one": (
        ATTNLRP.with_entries(("layers.0", rules.Heads({1: None}, others=UNIFORM))),
        [["attnlrp", "", "attnlrp", "attnlrp"], ALL],
    ),
    "mixed": (
        ATTNLRP.with_entries(("layers.*", rules.Heads({(0, 2): VALUES, 3: None}, others=UNIFORM))),
        [["cp_lrp", "attnlrp", "cp_lrp", ""]] * 2,
    ),
}


@pytest.mark.each_value
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("eager", [False, True], ids=["fused", "eager"])
def test_heads_are_those_of_autograd(eager: bool, case: str) -> None:
    model, x = model_and_input(eager)
    composite, modes = CASES[case]
    explainer = fastlrp.Explainer(model, composite)
    expected = oracle.relevance(lambda x: model.by_autograd(x, modes), x, [0, 2])
    torch.testing.assert_close(explainer(x, [0, 2]), expected, rtol=1e-10, atol=1e-13)
    report = explainer.verify(x, [0, 2])
    assert report.ok
    assert abs(report.kept["unexplained"]) < 1e-12


@pytest.mark.usefixtures("captured_once")
@pytest.mark.parametrize("eager", [False, True], ids=["fused", "eager"])
def test_all_heads_are_the_rule_itself_and_heads_add_up(eager: bool) -> None:
    model, x = model_and_input(eager)
    plain = fastlrp.explain(model, x, 1, ATTNLRP)
    whole = fastlrp.explain(model, x, 1, ATTNLRP.through_heads({"layers.*": range(4)}))
    torch.testing.assert_close(whole, plain, rtol=1e-12, atol=0)
    nothing = fastlrp.explain(model, x, 1, ATTNLRP.with_entries(("layers.1", rules.Heads({}))))
    singles = [fastlrp.explain(model, x, 1, ATTNLRP.through_heads({"layers.1": h})) - nothing for h in range(4)]
    torch.testing.assert_close(sum(singles), plain - nothing, rtol=1e-10, atol=1e-13)


def test_groups_of_inputs_go_up_through_the_same_heads() -> None:
    model, x = model_and_input(False)
    with fastlrp.Explainer(model, CASES["mixed"][0]).forward(x) as record:
        positions = fastlrp.groups.features(range(5))
        up = record.relevance("all", groups=positions, direction="up")
        torch.testing.assert_close(up, record.relevance("all").sum(-1), rtol=1e-10, atol=1e-13)


def test_errors() -> None:
    model, x = model_and_input(False)
    with pytest.raises(ValueError, match=r"layers\.1.*no head 7: there are 4"):
        fastlrp.explain(model, x, 1, ATTNLRP.through_heads({"layers.1": 7}))
    with pytest.raises(ValueError, match=r"'layer\.1'.*matches no layer"):
        fastlrp.explain(model, x, 1, ATTNLRP.through_heads({"layer.1": 0}))
    with pytest.raises(ValueError, match="head 1 twice"):
        rules.Heads({(0, 1): UNIFORM, 1: None})
    with pytest.raises(ValueError, match="counted from 0, got -1"):
        rules.Heads({-1: UNIFORM})
    with pytest.raises(TypeError, match="integer, counted from 0, got 'a'"):
        rules.Heads({"a": UNIFORM})
    with pytest.raises(TypeError, match="takes Uniform, ValueOnly, Gradient or None"):
        rules.Heads({0: rules.Epsilon()})
    with pytest.raises(TypeError, match="mapping from heads to rules"):
        rules.Heads(3)


def test_without_an_axis_of_heads() -> None:
    class OneHead(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(x, x, x).mean(1)

    with pytest.raises(TypeError, match=r"sizes \(5, 4\).*without an axis of heads"):
        fastlrp.explain(OneHead(), torch.randn(2, 5, 4), 1, ATTNLRP.through_heads({"": 0}))
