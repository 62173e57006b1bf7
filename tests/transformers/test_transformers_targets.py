"""Targets at positions of a language model: next tokens, single positions, functions of what the model returns."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import fastlrp
from tests.torchvision_models import import_models

pytestmark = pytest.mark.slow  # To import transformers takes seconds.
IDS = torch.tensor([[3, 14, 15, 9, 26, 5, 35], [8, 9, 7, 9, 32, 3, 8]])


@pytest.fixture(scope="module")
def model() -> Any:
    """A GPT-2 of two layers with random weights, float64."""
    pytest.importorskip("transformers")
    import_models()  # Without its operators torchvision, which transformers imports, does not load.
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 16, "vocab_size": 50, "n_positions": 32}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)).double().eval()


@pytest.mark.parametrize("composite", ["attnlrp", "epsilon_plus"])
def test_next_tokens_and_positions(model, composite):
    inputs = {"input_ids": IDS}
    explainer = fastlrp.Explainer(model, composite, output="logits")
    with explainer.forward(inputs) as record:
        found = record.relevance("next")["input_ids"]
        assert found.shape == (2, 6, 7)
        assert explainer.plan.takes_one_hot
        for t in range(6):  # A word is explained by those before it, and no number reaches back from behind.
            assert not found[:, t, t + 1 :].any()
            one = record.relevance(fastlrp.each(IDS[:, t + 1]), at=t)["input_ids"][:, 0]
            torch.testing.assert_close(found[:, t], one, rtol=1e-12, atol=1e-14)
        start = torch.zeros(2, 1, 7, 50, dtype=torch.float64)
        start[:, 0, 4, 11], start[:, 0, 4, 12] = record.scores[:, 4, 11], -record.scores[:, 4, 12]
        contrast = record.relevance({11: 1.0, 12: -1.0}, at=4)["input_ids"]
        torch.testing.assert_close(contrast, record.relevance(start)["input_ids"], rtol=1e-11, atol=1e-14)
        best = record.relevance("top3", at=-1)["input_ids"]
    assert explainer.verify(inputs, "next").ok
    last = fastlrp.explain(model, inputs, "top3", composite, output=lambda out: out.logits[:, -1])
    torch.testing.assert_close(last["input_ids"], best, rtol=1e-12, atol=1e-14)


def test_embeddings_have_no_next_tokens(model):
    embedded = {"inputs_embeds": model.get_input_embeddings()(IDS).detach()}
    explainer = fastlrp.Explainer(model, "attnlrp", output=lambda out: out.logits)
    with pytest.raises(ValueError, match=r"needs the token ids among the inputs.*fastlrp.next_tokens\(ids\)"):
        explainer(embedded, "next")
    found = explainer(embedded, fastlrp.next_tokens(IDS))["inputs_embeds"]
    expected = fastlrp.explain(model, {"input_ids": IDS}, "next", "attnlrp", output="logits")["input_ids"]
    torch.testing.assert_close(found.sum(3), expected, rtol=1e-11, atol=1e-14)
