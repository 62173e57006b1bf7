"""Folders as ``save_pretrained`` leaves them: tiny random models with tokenizers made here."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from fastlrp.cli import hub

SENTENCES = ["the capital of france is paris .", "the capital of england is london .", "the film was not bad, but good"]


def transformers() -> Any:
    pytest.importorskip("tokenizers")
    if importlib.util.find_spec("torchvision") is not None:
        hub.torchvision_models()
    return pytest.importorskip("transformers", reason="transformers is not installed")


def language_model(folder: Path) -> Path:
    """GPT-2 with a BPE of bytes."""
    found = transformers()
    from tokenizers import ByteLevelBPETokenizer

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(SENTENCES, vocab_size=400, min_frequency=1, special_tokens=["<|endoftext|>"])
    tokenizer = found.PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, eos_token="<|endoftext|>")
    config = found.GPT2Config(
        vocab_size=len(tokenizer), n_positions=40, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    return _saved(found.GPT2LMHeadModel(config), tokenizer, folder)


def encoder_decoder(folder: Path) -> Path:
    """T5 with the words of :func:`classifier`."""
    found = transformers()
    tokenizer = found.AutoTokenizer.from_pretrained(classifier(folder.with_name(f"{folder.name}-words")))
    config = found.T5Config(
        vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=0,
    )  # fmt: skip
    return _saved(found.T5ForConditionalGeneration(config), tokenizer, folder)


def classifier(folder: Path, name: str = "BertForSequenceClassification") -> Path:
    """BERT with words as tokens, ``[CLS]`` before and ``[SEP]`` behind."""
    found = transformers()
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = sorted({word for sentence in SENTENCES for word in sentence.replace(",", " ,").split()})
    made = Tokenizer(models.WordLevel({word: n for n, word in enumerate([*special, *words])}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer = found.PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]",
    )  # fmt: skip
    config = found.BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=24, id2label={0: "negative", 1: "neutral", 2: "positive"},
        label2id={"negative": 0, "neutral": 1, "positive": 2},
    )  # fmt: skip
    if name.endswith("QuestionAnswering"):
        config.num_labels = 2
    return _saved(getattr(found, name)(config), tokenizer, folder)


def _saved(model: Any, tokenizer: Any, folder: Path) -> Path:
    with torch.no_grad():  # Larger than at the start of training: scores that differ.
        for parameter in model.parameters():
            parameter.mul_(8 if parameter.dim() > 1 else 1)
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
