"""Families of Hugging Face's ``transformers``: one small random configuration each."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from benchmarks.zoo import state_space
from benchmarks.zoo.case import Case, Maker, randomised
from tests.torchvision_models import import_models

_COMMON = {
    "vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
    "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "num_labels": 3,
}  # fmt: skip
_GROUPED = {**_COMMON, "num_key_value_heads": 1, "head_dim": 8}
_OLD = {"vocab_size": 50, "n_positions": 64, "n_embd": 16, "n_layer": 2, "n_head": 2, "bos_token_id": 1,
        "eos_token_id": 2, "pad_token_id": 0, "rotary_dim": 4}  # fmt: skip
_SEQUENCES = {"vocab_size": 50, "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
              "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "pad_token_id": 0,
              "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2,
              "max_position_embeddings": 64}  # fmt: skip
_T5 = {"vocab_size": 50, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2,
       "decoder_start_token_id": 0}  # fmt: skip
_IMAGES = {"image_size": 32, "patch_size": 8, "num_channels": 3, "hidden_size": 16, "num_hidden_layers": 2,
           "num_attention_heads": 2, "intermediate_size": 24, "num_labels": 3}  # fmt: skip
_SPEECH = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
           "conv_dim": (16, 16), "conv_kernel": (10, 3), "conv_stride": (5, 2), "num_feat_extract_layers": 2,
           "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, "num_labels": 3,
           "classifier_proj_size": 8, "vocab_size": 20}  # fmt: skip


def _logits(out: Any) -> Tensor:
    logits: Tensor = out.logits
    return logits[:, -1] if logits.dim() == 3 else logits


def _hidden(out: Any) -> Tensor:
    hidden: Tensor = out.last_hidden_state
    return hidden[:, -1]


def _ids(length: int = 8) -> dict[str, Tensor]:
    ids = torch.randint(3, 50, (2, length), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, length - 2 :] = 0
    return {"input_ids": ids, "attention_mask": mask}


def _text() -> dict[str, Tensor]:
    return {"input_ids": _ids()["input_ids"]}


def _translation() -> dict[str, Tensor]:
    return {"input_ids": _ids()["input_ids"], "decoder_input_ids": _ids(5)["input_ids"]}


def _pixels(side: int = 32) -> dict[str, Tensor]:
    noise = torch.Generator().manual_seed(1)
    return {"pixel_values": torch.randn(2, 3, side, side, generator=noise, dtype=torch.float64)}


def _wave() -> dict[str, Tensor]:
    return {"input_values": torch.randn(2, 400, generator=torch.Generator().manual_seed(1), dtype=torch.float64)}


def _spectrum() -> dict[str, Tensor]:
    noise = torch.Generator().manual_seed(1)
    return {
        "input_features": torch.randn(2, 8, 40, generator=noise, dtype=torch.float64),
        "decoder_input_ids": _ids(5)["input_ids"],
    }


def _pair() -> dict[str, Tensor]:
    return {**_ids(), **_pixels()}


Inputs = Callable[[], dict[str, Tensor]]
Row = tuple[str, dict[str, Any], Inputs, Callable[[Any], Tensor]]

_CLASSIFIER, _LM = "ForSequenceClassification", "ForCausalLM"
FAMILIES: dict[str, Row] = {
    "BERT": (f"Bert{_CLASSIFIER}", _COMMON, _ids, _logits),
    "RoBERTa": (f"Roberta{_CLASSIFIER}", _COMMON, _ids, _logits),
    "XLM-RoBERTa": (f"XLMRoberta{_CLASSIFIER}", _COMMON, _ids, _logits),
    "DistilBERT": (
        f"DistilBert{_CLASSIFIER}",
        {**_COMMON, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24},
        _ids,
        _logits,
    ),
    "ALBERT": (f"Albert{_CLASSIFIER}", {**_COMMON, "embedding_size": 8}, _ids, _logits),
    "ELECTRA": (f"Electra{_CLASSIFIER}", {**_COMMON, "embedding_size": 8}, _ids, _logits),
    "DeBERTa": (f"Deberta{_CLASSIFIER}", {**_COMMON, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
                _ids, _logits),
    "DeBERTa-v2": (f"DebertaV2{_CLASSIFIER}", {**_COMMON, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
                   _ids, _logits),
    "MPNet": (f"MPNet{_CLASSIFIER}", _COMMON, _ids, _logits),
    "ModernBERT": (f"ModernBert{_CLASSIFIER}", {**_COMMON, "cls_token_id": 1, "sep_token_id": 2}, _ids, _logits),
    "ConvBERT": (f"ConvBert{_CLASSIFIER}", {**_COMMON, "embedding_size": 16, "conv_kernel_size": 3}, _ids, _logits),
    "SqueezeBERT": (f"SqueezeBert{_CLASSIFIER}", {**_COMMON, "embedding_size": 16}, _ids, _logits),
    "RoFormer": (f"RoFormer{_CLASSIFIER}", {**_COMMON, "embedding_size": 16}, _ids, _logits),
    "XLNet": (f"XLNet{_CLASSIFIER}", {"vocab_size": 50, "d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 24,
                                      "num_labels": 3}, _text, _logits),
    "FNet": (f"FNet{_CLASSIFIER}", _COMMON, _text, _logits),
    "Longformer": (f"Longformer{_CLASSIFIER}", {**_COMMON, "attention_window": [4, 4]}, _text, _logits),
    "GPT-2": ("GPT2LMHeadModel", _OLD, _text, _logits),
    "GPT-Neo": (f"GPTNeo{_LM}", {**_COMMON, "num_layers": 2, "num_heads": 2,
                                 "attention_types": [[["global", "local"], 1]]}, _text, _logits),
    "GPT-NeoX": (f"GPTNeoX{_LM}", _COMMON, _text, _logits),
    "GPT-J": (f"GPTJ{_LM}", _OLD, _text, _logits),
    "CodeGen": (f"CodeGen{_LM}", _OLD, _text, _logits),
    "OPT": (f"OPT{_LM}", {**_COMMON, "ffn_dim": 24, "word_embed_proj_dim": 16}, _text, _logits),
    "BLOOM": (f"Bloom{_LM}", {**_COMMON, "n_layer": 2, "n_head": 2}, _text, _logits),
    "Llama": (f"Llama{_LM}", _GROUPED, _text, _logits),
    "Llama, classes": (f"Llama{_CLASSIFIER}", _GROUPED, _ids, _logits),
    "Mistral": (f"Mistral{_LM}", _GROUPED, _text, _logits),
    "Qwen2": (f"Qwen2{_LM}", _GROUPED, _text, _logits),
    "Qwen3": (f"Qwen3{_LM}", _GROUPED, _text, _logits),
    "Gemma": (f"Gemma{_LM}", _GROUPED, _text, _logits),
    "Gemma2": (f"Gemma2{_LM}", {**_GROUPED, "query_pre_attn_scalar": 8}, _text, _logits),
    "Gemma3": (f"Gemma3{_LM}", {**_GROUPED, "query_pre_attn_scalar": 8, "sliding_window": 4}, _text, _logits),
    "Phi": (f"Phi{_LM}", _COMMON, _text, _logits),
    "Phi-3": (f"Phi3{_LM}", _COMMON, _text, _logits),
    "Falcon": (f"Falcon{_LM}", _COMMON, _text, _logits),
    "StableLM": (f"StableLm{_LM}", {**_COMMON, "num_key_value_heads": 2}, _text, _logits),
    "OLMo": (f"Olmo{_LM}", _COMMON, _text, _logits),
    "Cohere": (f"Cohere{_LM}", _COMMON, _text, _logits),
    "StarCoder2": (f"Starcoder2{_LM}", _GROUPED, _text, _logits),
    # PyTorch's grouped product of experts, which is the default, takes no float64.
    "Mixtral": (f"Mixtral{_LM}", {**_GROUPED, "num_local_experts": 4, "experts_implementation": "batched_mm"},
                _text, _logits),
    "Mamba": (f"Mamba{_LM}", {**_COMMON, "state_size": 4, "time_step_rank": 4}, _text, _logits),
    "Mamba-2": (f"Mamba2{_LM}", {**_COMMON, "state_size": 4, "num_heads": 4, "head_dim": 8, "n_groups": 1,
                                 "chunk_size": 4}, _text, _logits),
    "RWKV": (f"Rwkv{_LM}", {**_COMMON, "attention_hidden_size": 16, "use_cache": False}, _text, _logits),
    "T5": ("T5ForConditionalGeneration", _T5, _translation, _logits),
    "T5, encoder": ("T5EncoderModel", _T5, _ids, _hidden),
    "BART": ("BartForConditionalGeneration", _SEQUENCES, _translation, _logits),
    "Pegasus": ("PegasusForConditionalGeneration", _SEQUENCES, _translation, _logits),
    "M2M-100": ("M2M100ForConditionalGeneration", _SEQUENCES, _translation, _logits),
    "Whisper": ("WhisperForConditionalGeneration", {**_SEQUENCES, "num_mel_bins": 8, "max_source_positions": 20,
                                                    "max_target_positions": 20}, _spectrum, _logits),
    "Wav2Vec2": (f"Wav2Vec2{_CLASSIFIER}", _SPEECH, _wave, _logits),
    "HuBERT": (f"Hubert{_CLASSIFIER}", _SPEECH, _wave, _logits),
    "ViT": ("ViTForImageClassification", _IMAGES, _pixels, _logits),
    "DeiT": ("DeiTForImageClassification", _IMAGES, _pixels, _logits),
    "BEiT": ("BeitForImageClassification", _IMAGES, _pixels, _logits),
    "DINOv2": ("Dinov2ForImageClassification", _IMAGES, _pixels, _logits),
    "Swin": ("SwinForImageClassification", {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [2, 2],
                                            "num_heads": [2, 2], "window_size": 4, "num_labels": 3}, _pixels, _logits),
    "ConvNeXT": ("ConvNextForImageClassification", {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1],
                                                    "num_labels": 3}, _pixels, _logits),
    "SegFormer": ("SegformerForSemanticSegmentation", {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1],
                                                       "num_attention_heads": [1, 1, 2, 2], "decoder_hidden_size": 8,
                                                       "num_labels": 3}, lambda: _pixels(64), lambda out: out.logits),
    "CLIP": ("CLIPModel", {"text_config": {**_COMMON, "eos_token_id": 2}, "vision_config": _IMAGES,
                           "projection_dim": 8}, _pair, lambda out: out.image_embeds),
    "CLIP, vision": ("CLIPVisionModel", _IMAGES, _pixels, lambda out: out.pooler_output),
    "SigLIP": ("SiglipModel", {"text_config": _COMMON, "vision_config": _IMAGES}, _pair, lambda out: out.image_embeds),
    **{name: (kind, sizes, _text, _logits) for name, (kind, sizes) in state_space.rows().items()},
}  # fmt: skip


def family(name: str) -> Case:
    import_models()
    import transformers

    kind, sizes, inputs, output = FAMILIES[name]
    model_class = getattr(transformers, kind)
    config = model_class.config_class(**sizes)
    return Case(randomised(model_class(config)), inputs(), output)


def cases() -> Iterable[tuple[str, str, Maker]]:
    """Group, name, and the function that makes the case."""
    for name in FAMILIES:
        yield "transformers", name, lambda name=name: family(name)  # type: ignore[misc]
