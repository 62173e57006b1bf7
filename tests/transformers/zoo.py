"""Small models with random weights of every family of transformers: what is explained, and with which input.

Sizes: a vocabulary of 50, 32 channels, 7 positions, 2 samples; 2 layers, or 1 where a family's layers are all alike and
its architecture has another with 2 here (``ONE``).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from tests.torchvision_models import import_models
from tests.transformers.zoo_family import (
    Family,
    centre,
    first_query,
    floats,
    image,
    last,
    pair,
    pooled,
    prompt,
    random_ids,
    similarity,
    text,
)
from tests.transformers.zoo_modules import TIMM, TORCH, TORCHVISION

SIZES = {
    "vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "pad_token_id": 0,
}  # fmt: skip
ONE = {"num_hidden_layers": 1}
DECODER = {**SIZES, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2}
VISION = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "image_size": 32,
    "patch_size": 8, "num_labels": 3,
}  # fmt: skip


def _classifier(name: str, **more: Any) -> Callable[[Any], nn.Module]:
    def make(t: Any) -> nn.Module:
        config = getattr(t, f"{name}Config")(**{**SIZES, "num_labels": 3, **more})
        return getattr(t, f"{name}ForSequenceClassification")(config)

    return make


def _language_model(name: str, model: str | None = None, **more: Any) -> Callable[[Any], nn.Module]:
    def make(t: Any) -> nn.Module:
        config = getattr(t, f"{name}Config")(**{**DECODER, **more})
        return getattr(t, model or f"{name}ForCausalLM")(config)

    return make


def _images(name: str, model: str | None = None, **more: Any) -> Callable[[Any], nn.Module]:
    def make(t: Any) -> nn.Module:
        config = getattr(t, f"{name}Config")(**{**VISION, **more})
        return getattr(t, model or f"{name}ForImageClassification")(config)

    return make


def plain(name: str, **settings: Any) -> Callable[[Any], nn.Module]:
    """A model of a configuration that takes these settings alone: ``"Class/ConfigClass"``."""
    model, config = name.split("/")
    return lambda t: getattr(t, model)(getattr(t, config)(**settings))


def _two_towers(t: Any, name: str) -> nn.Module:
    vision = {key: v for key, v in VISION.items() if key != "num_labels"}
    words = {**SIZES, "max_position_embeddings": 16, "eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0}
    more = {"projection_dim": 16} if name == "CLIP" else {}
    return getattr(t, f"{name}Model")(getattr(t, f"{name}Config")(text_config=words, vision_config=vision, **more))


def _tower(t: Any, name: str, tower: str) -> nn.Module:
    return getattr(_two_towers(t, name), f"{tower}_model")


def _detr(t: Any) -> nn.Module:
    backbone = t.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", out_features=["stage2"]
    )
    config = t.DetrConfig(
        use_timm_backbone=False, use_pretrained_backbone=False, backbone_config=backbone, d_model=32,
        encoder_layers=1, decoder_layers=1, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=64,
        decoder_ffn_dim=64, num_queries=5, num_labels=3, backbone=None,
    )  # fmt: skip
    return t.DetrForObjectDetection(config)


T5 = {
    "vocab_size": 50, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4,
    "pad_token_id": 0, "decoder_start_token_id": 0, "feed_forward_proj": "gated-gelu",
}  # fmt: skip
BART = {
    "vocab_size": 50, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 32,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2,
}  # fmt: skip
WHISPER = {
    **BART, "num_mel_bins": 8, "max_source_positions": 10, "max_target_positions": 10, "suppress_tokens": None,
    "begin_suppress_tokens": None,
}  # fmt: skip
WAV2VEC2 = {
    "vocab_size": 12, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "conv_dim": (16, 16), "conv_stride": (4, 4), "conv_kernel": (8, 4), "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4, "classifier_proj_size": 16, "num_labels": 3,
}  # fmt: skip
SWIN = {
    "image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4,
    "num_labels": 3,
}  # fmt: skip
SEGFORMER = {
    "num_encoder_blocks": 2, "depths": [1, 1], "sr_ratios": [2, 1], "hidden_sizes": [16, 32], "patch_sizes": [7, 3],
    "strides": [4, 2], "num_attention_heads": [2, 4], "mlp_ratios": [2, 2], "decoder_hidden_size": 16,
    "num_labels": 3,
}  # fmt: skip
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": 2, "head_dim": 8}
GROUPED = {"num_key_value_heads": 2, "head_dim": 8}
GEMMA = {**GROUPED, "query_pre_attn_scalar": 8, "sliding_window": 4}

# fmt: off
FAMILIES: dict[str, Family] = {
    "bert": Family(_classifier("Bert"), text),
    "bert_eager": Family(_classifier("Bert", **ONE, attn_implementation="eager"), text),
    "roberta": Family(_classifier("Roberta", **ONE, max_position_embeddings=32), text),
    "distilbert": Family(
        plain(
            "DistilBertForSequenceClassification/DistilBertConfig",
            vocab_size=50, dim=32, n_layers=1, n_heads=4, hidden_dim=64, num_labels=3,
        ),
        text,
    ),
    "albert": Family(_classifier("Albert", embedding_size=16), text),
    "electra": Family(_classifier("Electra", **ONE, embedding_size=16), text),
    "deberta_v2": Family(
        _classifier("DebertaV2", **ONE, relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=8), text
    ),
    "gpt2": Family(
        plain("GPT2LMHeadModel/GPT2Config", vocab_size=50, n_embd=32, n_layer=2, n_head=4, bos_token_id=1,
               eos_token_id=2), prompt, last,
    ),
    "gpt_neox": Family(_language_model("GPTNeoX", **ONE), prompt, last, tolerance=1e-6),
    "opt": Family(
        plain("OPTForCausalLM/OPTConfig", vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=4,
               ffn_dim=64, word_embed_proj_dim=32, max_position_embeddings=32, pad_token_id=0), prompt, last,
    ),
    "llama": Family(_language_model("Llama", **GROUPED), prompt, last, tolerance=1e-5),
    "llama_eager": Family(
        _language_model("Llama", **GROUPED, attn_implementation="eager"), text, last, tolerance=1e-5
    ),
    "llama3_rope": Family(
        _language_model(
            "Llama", **ONE, **GROUPED,
            rope_parameters={
                "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
            },
        ), prompt, last, tolerance=1e-5,
    ),
    "mistral": Family(_language_model("Mistral", **ONE, **GROUPED, sliding_window=3), prompt, last, tolerance=1e-5),
    "qwen2": Family(_language_model("Qwen2", **ONE, num_key_value_heads=2), prompt, last, tolerance=1e-5),
    "qwen3": Family(_language_model("Qwen3", **ONE, **GROUPED), prompt, last, tolerance=1e-5),
    "gemma2": Family(_language_model("Gemma2", **GEMMA, attn_implementation="eager"), text, last, tolerance=1e-5),
    "gemma3": Family(_language_model("Gemma3Text", "Gemma3ForCausalLM", **GEMMA), prompt, last, tolerance=1e-5),
    "phi3": Family(_language_model("Phi3", **ONE, num_key_value_heads=2), prompt, last, tolerance=1e-5),
    "mixtral": Family(_language_model("Mixtral", **ONE, **EXPERTS), prompt, last, tolerance=1e-5),
    "qwen3_moe": Family(
        _language_model("Qwen3Moe", **GROUPED, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16,
                        decoder_sparse_step=1, norm_topk_prob=True), prompt, last, tolerance=1e-5,
    ),
    "gpt_oss": Family(
        _language_model("GptOss", **EXPERTS, sliding_window=3, attn_implementation="eager"), text, last,
        tolerance=1e-5,
    ),
    "t5_encoder": Family(plain("T5EncoderModel/T5Config", **T5), text, pooled, tolerance=1e-5),
    "t5": Family(plain("T5ForConditionalGeneration/T5Config", **T5), pair, last, tolerance=1e-5),
    "bart": Family(plain("BartForConditionalGeneration/BartConfig", **BART), pair, last),
    "whisper": Family(
        plain("WhisperForConditionalGeneration/WhisperConfig", **WHISPER),
        lambda: {"input_features": floats(2, 8, 20), "decoder_input_ids": random_ids(2, 4)}, last,
    ),
    "wav2vec2": Family(
        plain("Wav2Vec2ForSequenceClassification/Wav2Vec2Config", **WAV2VEC2),
        lambda: {"input_values": floats(2, 200)},
    ),
    "wav2vec2_ctc": Family(
        plain("Wav2Vec2ForCTC/Wav2Vec2Config", **WAV2VEC2, feat_extract_norm="layer", do_stable_layer_norm=True),
        lambda: {"input_values": floats(2, 200)}, last,
    ),
    "vit": Family(_images("ViT"), image),
    "vit_eager": Family(_images("ViT", **ONE, attn_implementation="eager"), image, tolerance=1e-6),
    "deit": Family(_images("DeiT", **ONE), image),
    "dinov2": Family(_images("Dinov2", **ONE, mlp_ratio=2), image),
    "beit": Family(_images("Beit", **ONE, use_relative_position_bias=True), image),
    "swin": Family(plain("SwinForImageClassification/SwinConfig", **SWIN), image),
    "swinv2": Family(plain("Swinv2ForImageClassification/Swinv2Config", **SWIN), image),
    "clip": Family(
        lambda t: _two_towers(t, "CLIP"), lambda: {**text(), "pixel_values": image()}, similarity, targets=(0,)
    ),
    "clip_image": Family(lambda t: _tower(t, "CLIP", "vision"), image, "pooler_output"),
    "clip_text": Family(lambda t: _tower(t, "CLIP", "text"), text, pooled),
    "siglip": Family(
        lambda t: _two_towers(t, "Siglip"), lambda: {**text(), "pixel_values": image()}, similarity, targets=(0,)
    ),
    "siglip_image": Family(lambda t: _tower(t, "Siglip", "vision"), image, "pooler_output"),
    "segformer": Family(plain("SegformerForSemanticSegmentation/SegformerConfig", **SEGFORMER), image, centre),
    "detr": Family(_detr, image, first_query),
    "patchtsmixer": Family(
        plain("PatchTSMixerForTimeSeriesClassification/PatchTSMixerConfig", context_length=32, patch_length=8,
               patch_stride=8, num_input_channels=3, num_targets=3, d_model=16, num_layers=1),
        lambda: {"past_values": floats(2, 32, 3)}, "prediction_outputs",
    ),
    "mamba": Family(
        plain("MambaForCausalLM/MambaConfig", vocab_size=50, hidden_size=16, num_hidden_layers=2, state_size=4,
               use_mambapy=False), lambda: {"input_ids": random_ids()}, last, tolerance=1e-5,
    ),
}
# fmt: on

ALL = {**FAMILIES, **TORCHVISION, **TIMM, **TORCH}


BEFORE_5 = {
    **dict.fromkeys(("mixtral", "qwen3_moe", "gpt_oss"), "experts are a loop over data before transformers 5"),
    **dict.fromkeys(("clip", "clip_text"), "the text tower of CLIP does not run in float64 before transformers 5"),
}
"""Families that cannot be tested with transformers 4.57, and why."""


def library(name: str) -> ModuleType:
    """The library that models come from, or a skip."""
    if name == "torch":
        return torch
    models = import_models()
    if name == "torchvision.models":
        import torchvision.models.swin_transformer
        import torchvision.models.video.mvit
        import torchvision.models.video.swin_transformer  # noqa: F401

        return models
    found: ModuleType = pytest.importorskip(name, exc_type=ImportError)
    return found


def build(name: str, seed: int = 0) -> tuple[nn.Module, Any]:
    """The model of a family in float64, with weights that make its attention uneven, and its input."""
    family = ALL[name]
    found = library(family.library)
    if family.library == "transformers" and found.__version__ < "5" and name in BEFORE_5:
        pytest.skip(BEFORE_5[name])
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = family.make(found).double().eval()
        for key, parameter in model.named_parameters():
            with torch.no_grad():
                if not bool(parameter.any()):  # torchvision's heads begin at zero.
                    parameter.normal_(0, 0.1)
                elif parameter.dim() > 1:
                    parameter.mul_(3.0 if float(parameter.std(correction=0)) < 0.05 else 1.0)
                elif "bias" in key or float(parameter.std(correction=0)) == 0:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
    return model, family.given()


@lru_cache(maxsize=4)
def _built(name: str) -> tuple[nn.Module, Any]:
    return build(name)


def built(name: str) -> tuple[nn.Module, Any]:
    """:func:`build`, the same model for all tests of a family, which must not change it."""
    model, x = _built(name)
    return model, dict(x) if isinstance(x, dict) else x
