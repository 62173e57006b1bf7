"""State-space models of ``transformers``: what selects held fixed (MambaLRP), against autograd with it constant."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.zoo import families, state_space
from fastlrp import Explainer
from tests.models.oracle import relative_error
from tests.transformers import aten_oracle, zoo, zoo_checks, zoo_family

pytestmark = pytest.mark.usefixtures("captured_once")
MAMBA2 = zoo_family.Family(
    zoo.plain("Mamba2ForCausalLM/Mamba2Config", vocab_size=50, hidden_size=16, num_hidden_layers=2, state_size=4,
               num_heads=4, head_dim=8, n_groups=1, chunk_size=4),
    lambda: {"input_ids": zoo_family.random_ids()}, zoo_family.last, tolerance=1e-6,
)  # fmt: skip


@cache
def mamba2() -> tuple[torch.nn.Module, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(zoo.ALL, "mamba2", MAMBA2)
        return zoo.build("mamba2")


def built(name: str) -> tuple[torch.nn.Module, Any]:
    """The same model for all tests of this file, which share what was captured of it."""
    return mamba2() if name == "mamba2" else zoo.built(name)


@cache
def other(name: str) -> tuple[families.Case, Tensor]:
    torch.manual_seed(0)
    case = families.family(name)
    ids = zoo_family.random_ids()
    with torch.no_grad():
        case.run({"input_ids": ids})  # RWKV rescales its weights when it first runs.
    return case, ids


@torch.no_grad()
def constant(t: Tensor) -> Tensor:
    """Its values, without what made them: the oracle passes ``detach``, as relevance does."""
    return t.clone()


def hold_selection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let step sizes, B and C be constants of both scans."""
    from transformers.models.mamba import modeling_mamba
    from transformers.models.mamba2 import modeling_mamba2

    for module, name in ((modeling_mamba, "mamba_selective_scan"), (modeling_mamba2, "mamba2_chunk_scan")):

        def held(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, *rest: Any, scan: Any, **named: Any) -> Any:
            return scan(u, constant(dt), A, constant(B), constant(C), *rest, **named)

        monkeypatch.setattr(module, name, partial(held, scan=getattr(module, name)))


@pytest.mark.parametrize("name", ["mamba", "mamba2"])
def test_mamba_lrp_equals_autograd_with_the_selection_constant(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = built(name)
    family = MAMBA2 if name == "mamba2" else zoo.ALL[name]
    explainer = Explainer(model, "mamba_lrp", output=family.output)
    found = explainer(x, list(family.targets))["input_ids"]
    other = Explainer(model, "attnlrp", output=family.output)(x, list(family.targets))["input_ids"]
    zoo_checks.is_verified(explainer, x, family)
    assert "HeldSelection" in str(explainer.plan)
    hold_selection(monkeypatch)
    _, expected = aten_oracle.relevance(model, x, family.output, list(family.targets))
    assert relative_error(found, expected[0]) <= family.tolerance
    assert relative_error(other, expected[0]) > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("composite", ["attnlrp", "cp_lrp"])
def test_mamba2_without_a_held_selection_equals_autograd(composite: str) -> None:
    """Of its scan exp(0) is 1, a constant, and exp(-inf) is 0 where it does not look: neither passes relevance."""
    model, x = built("mamba2")
    explainer = Explainer(model, composite, output=MAMBA2.output)
    zoo_checks.equals_oracle(explainer, x, MAMBA2, composite)
    zoo_checks.is_verified(explainer, x, MAMBA2)


LIKE_ANOTHER = {
    "FalconMamba": "mamba, above", "Bamba": "FalconH1", "GraniteMoeHybrid": "FalconH1", "Nemotron-H": "Zamba2",
    "OLMo-Hybrid": "Qwen3-Next",
}  # fmt: skip
"""Families in a full run only, and whose layers theirs are."""


def others(name: str) -> Any:
    return pytest.param(name, marks=pytest.mark.full) if name in LIKE_ANOTHER else name


@pytest.mark.slow
@pytest.mark.parametrize("composite", ["attnlrp", "cp_lrp"])
@pytest.mark.parametrize("name", map(others, (*state_space.CONFIGURATIONS, "RWKV", "FNet")))
def test_other_state_space_models(name: str, composite: str) -> None:
    case, ids = other(name)
    # Kimi-Linear writes its softplus out, which the oracle takes operation by operation: 3.5e-6.
    near = 4e-6 if name == "Kimi-Linear" else 2e-6
    family = zoo_family.Family(lambda transformers: case.model, lambda: {"input_ids": ids}, case.output, tolerance=near)
    explainer = Explainer(case.model, composite, output=case.output)
    zoo_checks.equals_oracle(explainer, {"input_ids": ids}, family, composite)
    zoo_checks.is_verified(explainer, {"input_ids": ids}, family)


class Squared(nn.Module):
    """``y_ik = sum_j x_ij x_kj``, an einsum of one value with itself."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bij,bkj->bik", x, x).flatten(1)


@pytest.mark.parametrize("composite", ["mamba_lrp", "attnlrp", "cp_lrp"])
def test_both_factors_of_a_product_with_itself_take_half(composite: str) -> None:
    """At x = ((1, 2), (3, 0)) y_01 = 3 = 1 * 3 + 2 * 0: half of 3 to each of the factors 1 and 3."""
    x = torch.tensor([[[1.0, 2.0], [3.0, 0.0]]], dtype=torch.float64)
    with Explainer(Squared(), composite).forward(x) as record:
        found = record.relevance([0, 1])
    torch.testing.assert_close(found[0, 0].tolist(), [[1.0, 4.0], [0.0, 0.0]], rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(found[0, 1].tolist(), [[1.5, 0.0], [1.5, 0.0]], rtol=1e-5, atol=1e-9)
