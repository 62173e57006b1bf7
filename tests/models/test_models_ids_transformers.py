"""Token ids of models of ``transformers`` with random weights, under the gradient composite, against autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastlrp import Explainer
from tests.models.oracle import relative_error
from tests.torchvision_models import import_models

import_models()
transformers = pytest.importorskip("transformers", exc_type=ImportError)

SIZES = {
    "vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24,
    "pad_token_id": 0,
}  # fmt: skip

pytestmark = pytest.mark.slow


def bert() -> nn.Module:
    return transformers.BertForSequenceClassification(transformers.BertConfig(num_labels=3, **SIZES))


def roberta() -> nn.Module:
    return transformers.RobertaForSequenceClassification(transformers.RobertaConfig(num_labels=3, **SIZES))


def llama() -> nn.Module:
    return transformers.LlamaForSequenceClassification(transformers.LlamaConfig(num_labels=3, **SIZES))


def given() -> dict[str, Tensor]:
    ids = torch.randint(5, 50, (2, 6), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    ids[1, 4:], mask[1, 4:] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("make", [bert, roberta, llama])
def test_ids_and_their_rows_agree_with_autograd(make: Any) -> None:
    torch.manual_seed(0)
    model, x = make().double().eval(), given()
    explainer = Explainer(model, "gradient", output="logits")
    with explainer.forward(transformers.BatchEncoding(x)) as record:
        assert torch.equal(record.output.logits, model(**x).logits)
        assert getattr(record.output, "past_key_values", None) is None
        found = record.relevance("all", initial="one")
    assert found["attention_mask"] is None
    assert found["input_ids"].shape == (2, 3, 6)
    assert (found["input_ids"][1, :, 4:] == 0).all(), "padding"
    kept: list[Tensor] = []
    table = model.get_input_embeddings()
    handle = table.register_forward_hook(lambda module, args, rows: kept.append(rows) or None)
    logits = model(**x).logits
    handle.remove()
    for k in range(3):
        (gradient,) = torch.autograd.grad(logits[:, k].sum(), kept[0], retain_graph=True)
        expected = (gradient * kept[0]).sum(-1).detach().unsqueeze(1)
        # Llama's norms compute in float32, whatever the model's dtype.
        assert relative_error(found["input_ids"][:, [k]], expected) <= (1e-5 if make is llama else 1e-9)


@pytest.mark.parametrize("make", [bert, roberta, llama])
def test_the_path_of_rows_gives_the_same(make: Any) -> None:
    torch.manual_seed(0)
    model, x = make().double().eval(), given()
    explainer = Explainer(model, "attnlrp", output="logits")
    of_ids = explainer(x, [0, 2])["input_ids"]
    assert (of_ids[1, :, 4:] == 0).all(), "padding"
    assert explainer.verify(x, [0, 2]).ok
    if make is bert:  # RoBERTa and Llama's head look for padding among ids.
        rows = model.get_input_embeddings()(x["input_ids"]).detach()
        of_rows = explainer({"inputs_embeds": rows, "attention_mask": x["attention_mask"]}, [0, 2])["inputs_embeds"]
        assert relative_error(of_rows.sum(-1), of_ids) <= 1e-12
