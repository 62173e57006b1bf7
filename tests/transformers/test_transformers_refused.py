"""Bad input to models of ``transformers``, and models that cannot be captured: the errors say what to change."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from fastlrp import Explainer
from fastlrp.errors import CaptureError
from tests.transformers import zoo


@pytest.fixture(scope="module")
def bert() -> Any:
    return zoo.build("bert")


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"input_ids": torch.full((2, 7), 60)}, IndexError, "id 60 .*has 50 rows: ids go from 0 to 49"),
        ({"input_ids": torch.full((2, 7), -1)}, IndexError, "id -1 .*ids go from 0 to 49"),
        ({"attention_mask": torch.ones(3, 7).long()}, ValueError, "has 3 samples, the first input has 2"),
        ({"attention_mask": torch.ones(7).long()}, ValueError, "'attention_mask' has 7 samples"),
        ({"attention_mask": torch.ones(2, 5).long()}, CaptureError, r"attention_mask: \(2, 5\)"),
        ({"attention_mask": torch.ones(2, 7, device="meta")}, ValueError, "on meta, the model is on cpu"),
        ({"input_ids": torch.ones(2, 7, dtype=torch.float64)}, CaptureError, "Ids are integers"),
    ],
)  # fmt: skip
def test_bad_input(bert: Any, change: dict[str, torch.Tensor], error: type[Exception], match: str) -> None:
    model, x = bert
    with pytest.raises(error, match=match):
        Explainer(model, "attnlrp")({**x, **change}, [0])


def test_training_mode_with_dropout(bert: Any) -> None:
    model, x = bert
    with pytest.raises(CaptureError, match=r"dropout at '.*' is in training mode.*model\.eval\(\)"):
        Explainer(copy.deepcopy(model).train(), "attnlrp")(x, [0])


@pytest.mark.slow
def test_experts_in_a_loop_over_data(capfd: Any) -> None:
    model, x = zoo.build("qwen3_moe")
    model.set_experts_implementation("eager")
    with pytest.raises(CaptureError, match=r"set_experts_implementation\('grouped_mm'\)"):
        Explainer(model, "attnlrp", output=zoo.last)(x, [0])
    assert "def forward" not in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("masked", [True, False])
def test_flexible_attention(masked: bool) -> None:
    model, x = zoo.build("llama")
    model.set_attn_implementation("flex_attention")
    x = x if masked else {"input_ids": x["input_ids"]}
    with pytest.raises(CaptureError, match=r"set_attn_implementation\('sdpa'\)") as error:
        Explainer(model, "attnlrp", output=zoo.last)(x, [0])
    assert "experts" not in str(error.value)
