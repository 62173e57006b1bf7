"""Small random transformers against autograd with sigma, gates and weights detached, in float64."""

from __future__ import annotations

import pytest
import torch

import fastlrp
from fastlrp import composites, rules
from tests.transformers.oracle import relevance, transformer

CASES = [(False, False, False), (True, False, True), (False, True, True), (True, True, False)]
"""Gated MLPs with RMS norms or not, attention written out or not, causal or not."""
COMPOSITES = {"attnlrp": composites.attnlrp, "cp_lrp": composites.cp_lrp}


@pytest.mark.parametrize("mode", COMPOSITES)
@pytest.mark.parametrize(("gated", "eager", "causal"), CASES)
def test_equals_autograd(gated, eager, causal, mode):
    """Worst measured: 2e-14."""
    model = transformer(gated, eager, causal)
    x = torch.randn(2, 6, 16, dtype=torch.float64)
    explainer = fastlrp.Explainer(model, mode)
    torch.testing.assert_close(model.by_autograd(x, mode), model(x), rtol=1e-12, atol=1e-12)
    expected = relevance(lambda point: model.by_autograd(point, mode), x, [0, 3, 4])
    torch.testing.assert_close(explainer(x, [0, 3, 4]), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("mode", COMPOSITES)
@pytest.mark.parametrize(("gated", "eager"), [(False, False), (True, True)])
def test_the_textbook_agrees_and_the_ledger_is_complete(gated, eager, mode):
    model = transformer(gated, eager, causal=True)
    x = torch.randn(3, 5, 16, dtype=torch.float64)
    for epsilon in (0.0, 1e-3):
        explainer = fastlrp.Explainer(model, COMPOSITES[mode](epsilon=epsilon))
        report = explainer.verify(x, [0, 2])
        assert report.ok, str(report)
        assert report.end_to_end < 1e-9
        assert abs(report.kept["unexplained"]) < 1e-9 * max(1.0, abs(report.score))
        together = explainer(x, [0, 2, 1])
        for position, target in enumerate([0, 2, 1]):
            torch.testing.assert_close(together[:, [position]], explainer(x, [target]), rtol=1e-11, atol=1e-13)


def test_eager_and_fused_attention_are_the_same():
    """At epsilon 0: kinds product, attention_weights and product do what attention does."""
    x = torch.randn(2, 6, 16, dtype=torch.float64)
    for mode in COMPOSITES:
        fused, eager = (
            fastlrp.explain(transformer(True, written, causal=True), x, [1, 2], mode) for written in (False, True)
        )
        torch.testing.assert_close(fused, eager, rtol=1e-12, atol=1e-13)


def test_kinds_of_eager_and_fused_attention():
    x = torch.randn(1, 4, 16, dtype=torch.float64)
    for eager, expected in ((False, {"attention": 2}), (True, {"attention_weights": 2, "product": 4})):
        plan = fastlrp.Explainer(transformer(False, eager, False), "attnlrp", example_inputs=x).plan
        kinds = [node.kind for node in plan.graph.nodes]
        assert {kind: kinds.count(kind) for kind in expected} == expected


@pytest.mark.parametrize("eager", [False, True])
def test_rules_per_layer_by_the_path_of_the_attention_module(eager):
    """A node of attention has the path of the module that calls it. There CP-LRP, elsewhere AttnLRP."""
    model = transformer(False, eager, False)
    x = torch.randn(1, 4, 16, dtype=torch.float64)
    rule = rules.ValueOnly(fastlrp.Stabilizer.limit())

    def by_autograd(point):
        first, second = model.blocks
        # CP-LRP and AttnLRP differ in attention alone here: there is no gate.
        return model.classes(second.by_autograd(first.by_autograd(point, "cp_lrp"), "attnlrp").mean(1))

    expected = relevance(by_autograd, x, [0, 1])
    found = fastlrp.explain(model, x, [0, 1], composites.attnlrp().with_entries(("blocks.0*", rule)))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
    everywhere = fastlrp.explain(model, x, [0, 1], composites.attnlrp().with_entries((type(model.blocks[0]), rule)))
    torch.testing.assert_close(everywhere, fastlrp.explain(model, x, [0, 1], "cp_lrp"), rtol=1e-12, atol=1e-13)
    with pytest.raises(ValueError, match="matches no layer"):
        fastlrp.explain(model, x, [0], composites.attnlrp().with_entries(("block.0", rule)))


@pytest.mark.parametrize("preset", ["epsilon_plus", "lrp0", "gradient"])
def test_other_presets_know_attention(preset):
    """With minus infinity in the masked scores."""
    model = transformer(False, True, causal=True)
    explainer = fastlrp.Explainer(model, preset)
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    assert bool(explainer(x, [0, 1]).isfinite().all())
    assert explainer.verify(x, [0, 1]).ok


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_dtypes(dtype):
    """Worst measured: 2e-6 and 3e-2."""
    model = transformer(True, False, causal=True)
    x = torch.randn(2, 5, 16, dtype=torch.float64).to(dtype)
    expected = fastlrp.explain(model, x.double(), [0], "attnlrp")
    found = fastlrp.explain(model.to(dtype), x, [0], "attnlrp").double()
    assert float((found - expected).norm() / expected.norm()) < {torch.float32: 1e-5, torch.bfloat16: 0.2}[dtype]
