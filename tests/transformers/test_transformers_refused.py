"""Bad input to models of ``transformers``, and models that cannot be captured: the errors say what to change."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from fastlrp import Explainer
from fastlrp.errors import CaptureError
from fastlrp.run import given_ids
from tests.transformers import zoo, zoo_family


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
        ({"attention_mask": torch.ones(2, 5).long()}, CaptureError, r"mask' is \(2, 5\).*each token, \(2, 7\)"),
        ({"attention_mask": torch.ones(2, 7, 7).long()}, CaptureError, r"'attention_mask' is \(2, 7, 7\).*\(2, 7\)"),
        ({"attention_mask": [[1] * 7] * 2}, CaptureError, r"is a list: give torch\.tensor\(attention_mask\)"),
        ({"token_type_ids": torch.full((2, 7), 3)}, IndexError, "id 3 .*token_type_embeddings.*from 0 to 1"),
        ({"position_ids": torch.full((2, 7), 512)}, RuntimeError, "index 512 is out of bounds .* with size 512"),
        ({"position_ids": torch.arange(7)[None]}, ValueError, r"'position_ids' has 1 samples.*expand\(2"),
        ({"input_ids": torch.ones(2, 0).long(), "attention_mask": None}, CaptureError, "without a position: give at l"),
        ({"input_ids": torch.ones(7).long(), "attention_mask": None}, CaptureError, r"give input_ids\[None\]"),
        ({"input_ids": torch.ones(2, 600).long(), "attention_mask": None}, CaptureError, r"it, input_ids\[:, :512\]"),
        ({"input_ids": None, "attention_mask": None, "inputs_embeds": torch.ones(2, 7, 31).double()}, CaptureError,
         r"'inputs_embeds' is \(2, 7, 31\).*\(batch, positions, 32\)"),
        ({"attention_mask": torch.ones(2, 7, device="meta")}, ValueError, "on meta, the model is on cpu"),
        ({"input_ids": torch.ones(2, 7, dtype=torch.float64)}, CaptureError, r"integers: give input_ids\.long\(\)"),
    ],
)  # fmt: skip
def test_bad_input(bert: Any, change: dict[str, torch.Tensor], error: type[Exception], match: str) -> None:
    model, x = bert
    with pytest.raises(error, match=match):
        Explainer(model, "attnlrp")({**x, **change}, [0])


def test_position_ids_out_of_range_are_named(bert: Any) -> None:
    model, x = bert
    with pytest.raises(RuntimeError) as error:
        Explainer(model, "attnlrp")({**x, "position_ids": torch.full((2, 7), 512)}, [0])
    assert "input 'position_ids' holds 512, and indices go from 0 to 511 there" in error.value.__notes__


def test_parts_on_several_devices(bert: Any) -> None:
    model, x = copy.deepcopy(bert[0]), bert[1]
    model.classifier.to("meta")
    with pytest.raises(CaptureError, match=r"'classifier.bias' on meta: move all to one, model\.to"):
        Explainer(model, "attnlrp")(x, [0])


def test_an_input_that_is_not_read(bert: Any) -> None:
    model, x = bert
    with pytest.warns(UserWarning, match="'attention_masks' without reading it.*did you mean 'attention_mask'"):
        Explainer(model, "attnlrp")({**x, "attention_masks": x["attention_mask"]}, [0])


def test_language_models() -> None:
    """A text longer than the table of positions; targets without positions; ids twice, as a loss takes them."""
    model, x = zoo.build("gpt2")
    with pytest.raises(IndexError, match=r"row 1099 of a table of 1024 rows.*Give at most 1024 positions"):
        Explainer(model, "attnlrp", output="logits")({"input_ids": torch.ones(1, 1100).long()}, [0], at=-1)
    explainer = Explainer(model, "attnlrp", output="logits")
    given_ids._WARNED.clear()
    with pytest.warns(UserWarning, match="without at= a target is one of these positions.*at=-1"):
        explainer(x, [0])
    for wrong, match in ((7, "position 7 is out of range.*-7 to 6"), ([0, 9], "position 9"), (-8, "position -8")):
        with pytest.raises(IndexError, match=match):
            explainer(x, [0], at=wrong)
    found = explainer({**x, "labels": x["input_ids"]}, [1], at=-1)
    assert found["labels"] is None
    torch.testing.assert_close(found["input_ids"], explainer(x, [1], at=-1)["input_ids"], rtol=1e-12, atol=1e-14)


def test_at_without_positions(bert: Any) -> None:
    model, x = bert
    for at in (-1, [0, 2], "all"):
        with pytest.raises(ValueError, match=r"output explained here is \(2, 3\), without an axis of positions: leave"):
            Explainer(model, "attnlrp")(x, [0], at=at)


def test_training_mode_with_dropout(bert: Any) -> None:
    model, x = bert
    with pytest.raises(CaptureError, match=r"dropout at '.*' is in training mode.*model\.eval\(\)"):
        Explainer(copy.deepcopy(model).train(), "attnlrp")(x, [0])


@pytest.mark.slow
def test_experts_in_a_loop_over_data(capfd: Any) -> None:
    model, x = zoo.build("qwen3_moe")
    model.set_experts_implementation("eager")
    with pytest.raises(CaptureError, match=r"set_experts_implementation\('grouped_mm'\)"):
        Explainer(model, "attnlrp", output=zoo_family.last)(x, [0])
    assert "def forward" not in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("masked", [True, False])
def test_flexible_attention(masked: bool) -> None:
    model, x = zoo.build("llama")
    model.set_attn_implementation("flex_attention")
    x = x if masked else {"input_ids": x["input_ids"]}
    with pytest.raises(CaptureError, match=r"set_attn_implementation\('sdpa'\)") as error:
        Explainer(model, "attnlrp", output=zoo_family.last)(x, [0])
    assert "experts" not in str(error.value)
