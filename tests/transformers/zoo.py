"""Small models with random weights of every family of transformers: what is explained, and with which input.

Sizes: a vocabulary of 50, 32 channels, 7 positions, 2 samples; 2 layers, or 1 where a family's layers are all alike and
its architecture has another with 2 here (``ONE``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastlrp.capture.chosen import Output
from tests.torchvision_models import import_models

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


@dataclass(frozen=True)
class Family:
    """A model of a family, its input and what of its output is explained.

    Attributes:
        make: the model, given the library.
        given: its input, two samples.
        output: as :class:`fastlrp.Explainer` takes it.
        library: that it comes from.
        tolerance: relative, of relevance: 1e-9, or 1e-5 where the model's norms compute in float32.
        targets: which outputs are explained.
    """

    make: Callable[[Any], nn.Module]
    given: Callable[[], Any]
    output: Output = None
    library: str = "transformers"
    tolerance: float = 1e-9
    targets: tuple[int, ...] = (1, 2)


def random_ids(samples: int = 2, positions: int = 7) -> Tensor:
    return torch.randint(3, 50, (samples, positions), generator=torch.Generator().manual_seed(1))


def image(side: int = 32, samples: int = 2) -> Tensor:
    return torch.randn(samples, 3, side, side, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def floats(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def text() -> dict[str, Tensor]:
    """Ids of two samples, the second padded on the right."""
    ids, mask = random_ids(), torch.ones(2, 7, dtype=torch.long)
    ids[1, 5:], mask[1, 5:] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


def prompt() -> dict[str, Tensor]:
    """Ids of two samples for language models, the first padded on the left."""
    ids, mask = random_ids(), torch.ones(2, 7, dtype=torch.long)
    ids[0, :2], mask[0, :2] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


def pair() -> dict[str, Tensor]:
    """Ids of an encoder, padded, and of a decoder."""
    return {**text(), "decoder_input_ids": random_ids(2, 4)}


def last(out: Any) -> Tensor:
    return out.logits[:, -1]


def fifth(out: Any) -> Tensor:
    return out.logits[:, 4]


def pooled(out: Any) -> Tensor:
    return out.last_hidden_state.mean(1)


def first_position(out: Any) -> Tensor:
    return out.last_hidden_state[:, 0]


def first_query(out: Any) -> Tensor:
    return out.logits[:, 0]


def centre(out: Any) -> Tensor:
    return out.logits.mean((2, 3))


def similarity(out: Any) -> Tensor:
    """Of each image and the text of its own."""
    return (out.image_embeds * out.text_embeds).sum(-1, keepdim=True)


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


def _plain(name: str, **settings: Any) -> Callable[[Any], nn.Module]:
    """A model of a configuration that takes these settings alone: ``"Class/ConfigClass"``."""
    model, config = name.split("/")
    return lambda t: getattr(t, model)(getattr(t, config)(**settings))


def _timm(name: str, **settings: Any) -> Callable[[Any], nn.Module]:
    return lambda t: t.create_model(name, pretrained=False, num_classes=3, **settings)


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
        _plain(
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
        _plain("GPT2LMHeadModel/GPT2Config", vocab_size=50, n_embd=32, n_layer=2, n_head=4, bos_token_id=1,
               eos_token_id=2), prompt, last,
    ),
    "gpt_neox": Family(_language_model("GPTNeoX", **ONE), prompt, last, tolerance=1e-6),
    "opt": Family(
        _plain("OPTForCausalLM/OPTConfig", vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=4,
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
    "t5_encoder": Family(_plain("T5EncoderModel/T5Config", **T5), text, pooled, tolerance=1e-5),
    "t5": Family(_plain("T5ForConditionalGeneration/T5Config", **T5), pair, last, tolerance=1e-5),
    "bart": Family(_plain("BartForConditionalGeneration/BartConfig", **BART), pair, last),
    "whisper": Family(
        _plain("WhisperForConditionalGeneration/WhisperConfig", **WHISPER),
        lambda: {"input_features": floats(2, 8, 20), "decoder_input_ids": random_ids(2, 4)}, last,
    ),
    "wav2vec2": Family(
        _plain("Wav2Vec2ForSequenceClassification/Wav2Vec2Config", **WAV2VEC2),
        lambda: {"input_values": floats(2, 200)},
    ),
    "wav2vec2_ctc": Family(
        _plain("Wav2Vec2ForCTC/Wav2Vec2Config", **WAV2VEC2, feat_extract_norm="layer", do_stable_layer_norm=True),
        lambda: {"input_values": floats(2, 200)}, last,
    ),
    "vit": Family(_images("ViT"), image),
    "vit_eager": Family(_images("ViT", **ONE, attn_implementation="eager"), image, tolerance=1e-6),
    "deit": Family(_images("DeiT", **ONE), image),
    "dinov2": Family(_images("Dinov2", **ONE, mlp_ratio=2), image),
    "beit": Family(_images("Beit", **ONE, use_relative_position_bias=True), image),
    "swin": Family(_plain("SwinForImageClassification/SwinConfig", **SWIN), image),
    "swinv2": Family(_plain("Swinv2ForImageClassification/Swinv2Config", **SWIN), image),
    "clip": Family(
        lambda t: _two_towers(t, "CLIP"), lambda: {**text(), "pixel_values": image()}, similarity, targets=(0,)
    ),
    "clip_image": Family(lambda t: _tower(t, "CLIP", "vision"), image, "pooler_output"),
    "clip_text": Family(lambda t: _tower(t, "CLIP", "text"), text, pooled),
    "siglip": Family(
        lambda t: _two_towers(t, "Siglip"), lambda: {**text(), "pixel_values": image()}, similarity, targets=(0,)
    ),
    "siglip_image": Family(lambda t: _tower(t, "Siglip", "vision"), image, "pooler_output"),
    "segformer": Family(_plain("SegformerForSemanticSegmentation/SegformerConfig", **SEGFORMER), image, centre),
    "detr": Family(_detr, image, first_query),
    "patchtsmixer": Family(
        _plain("PatchTSMixerForTimeSeriesClassification/PatchTSMixerConfig", context_length=32, patch_length=8,
               patch_stride=8, num_input_channels=3, num_targets=3, d_model=16, num_layers=1),
        lambda: {"past_values": floats(2, 32, 3)}, "prediction_outputs",
    ),
    "mamba": Family(
        _plain("MambaForCausalLM/MambaConfig", vocab_size=50, hidden_size=16, num_hidden_layers=2, state_size=4,
               use_mambapy=False), lambda: {"input_ids": random_ids()}, last, tolerance=1e-5,
    ),
}
# fmt: on

# fmt: off
TORCHVISION: dict[str, Family] = {
    "tv_vit_b_16": Family(
        lambda t: t.VisionTransformer(32, 8, 1, 4, 32, 64, num_classes=3), image, library="torchvision.models"
    ),
    "tv_swin_t": Family(
        lambda t: t.SwinTransformer([4, 4], 16, [2, 2], [2, 4], [4, 4], num_classes=3), image,
        library="torchvision.models",
    ),
    "tv_swin_v2_t": Family(
        lambda t: t.swin_transformer.SwinTransformer(
            [4, 4], 16, [2, 2], [2, 4], [4, 4], num_classes=3, block=t.swin_transformer.SwinTransformerBlockV2,
            downsample_layer=t.swin_transformer.PatchMergingV2,
        ), image, library="torchvision.models",
    ),
    "tv_maxvit_t": Family(
        lambda t: t.MaxVit((32, 32), 8, 4, [8, 16], [1, 1], 8, 0.0, num_classes=3), image,
        library="torchvision.models",
    ),
    "tv_mvit_v2_s": Family(lambda t: _mvit(t), lambda: floats(2, 3, 4, 16, 16), library="torchvision.models"),
    "tv_swin3d_t": Family(
        lambda t: t.video.swin_transformer.SwinTransformer3d(
            [2, 4, 4], 16, [2, 2], [2, 4], [2, 2, 2], num_classes=3
        ), lambda: floats(2, 3, 4, 16, 16), library="torchvision.models",
    ),
}
# fmt: on


def _mvit(t: Any) -> nn.Module:
    mvit = t.video.mvit
    blocks = [
        mvit.MSBlockConfig(1, 16, 32, [3, 3, 3], [3, 3, 3], [1, 1, 1], [1, 2, 2]),
        mvit.MSBlockConfig(2, 32, 32, [3, 3, 3], [3, 3, 3], [1, 2, 2], [1, 1, 1]),
    ]
    return mvit.MViT(
        (16, 16), 4, blocks, residual_pool=True, residual_with_cls_embed=False, rel_pos_embed=True,
        proj_after_attn=True, num_classes=3,
    )  # fmt: skip


SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 4, "img_size": 32, "patch_size": 8}

# fmt: off
TIMM: dict[str, Family] = {
    "timm_vit": Family(_timm("vit_tiny_patch16_224", **{**SMALL, "depth": 1}), image, library="timm"),
    "timm_deit": Family(_timm("deit_tiny_distilled_patch16_224", **SMALL), image, library="timm"),
    "timm_swin": Family(
        _timm("swin_tiny_patch4_window7_224", img_size=32, embed_dim=16, depths=(2, 2), num_heads=(2, 4),
              window_size=4), image, library="timm",
    ),
    "timm_maxvit": Family(
        _timm("maxvit_rmlp_pico_rw_256", img_size=64, embed_dim=(32, 32), depths=(1, 1), block_type=("M", "M"),
              stem_width=8, transformer_partition_ratio=16), lambda: image(64), library="timm",
    ),
    "timm_coatnet": Family(
        _timm("coatnet_pico_rw_224", img_size=64, embed_dim=(32, 32), depths=(1, 1), block_type=("C", "T"),
              stem_width=8), lambda: image(64), library="timm",
    ),
    "timm_levit": Family(
        _timm("levit_128s", img_size=64, embed_dim=(32, 32), depth=(1, 1), num_heads=(2, 2), key_dim=8),
        lambda: image(64), library="timm",
    ),
    "timm_beit": Family(_timm("beit_base_patch16_224", **{**SMALL, "depth": 1}), image, library="timm"),
    "timm_eva": Family(_timm("eva02_tiny_patch14_224", **{**SMALL, "depth": 1}), image, library="timm"),
}
# fmt: on


class FromSources(nn.Module):
    """``nn.Transformer`` from one input: the decoder's is its second half."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.transformer = nn.Transformer(16, 2, 1, 1, 32, batch_first=batch_first)
        self.classes, self.batch_first = nn.Linear(16, 3), batch_first

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.batch_first else x.transpose(0, 1)
        positions = 1 if self.batch_first else 0
        source, target = x.split([4, 3], positions)
        return self.classes(self.transformer(source, target).mean(positions))


class Attends(nn.Module):
    """``nn.MultiheadAttention`` with any of its options, and a linear layer above the mean."""

    def __init__(self, batch_first: bool = True, weights: bool = False, masked: bool = False, **options: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=batch_first, **options)
        self.classes, self.batch_first, self.weights = nn.Linear(16, 3), batch_first, weights
        self.keys = nn.Linear(16, options.get("kdim", 16))
        self.values = nn.Linear(16, options.get("vdim", 16))
        self.mask: Tensor | None = torch.ones(7, 7, dtype=torch.bool).triu(1) if masked else None

    def forward(self, x: Tensor) -> Tensor:
        q = x if self.batch_first else x.transpose(0, 1)
        y, _ = self.attention(q, self.keys(q), self.values(q), need_weights=self.weights, attn_mask=self.mask)
        return self.classes(y.mean(1 if self.batch_first else 0))


class Encodes(nn.Module):
    """``nn.TransformerEncoder`` and a linear layer above the mean."""

    def __init__(self, batch_first: bool, norm_first: bool, activation: str = "relu") -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            16, 2, 32, batch_first=batch_first, norm_first=norm_first, activation=activation
        )
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.classes, self.batch_first = nn.Linear(16, 3), batch_first

    def forward(self, x: Tensor) -> Tensor:
        y = self.encoder(x if self.batch_first else x.transpose(0, 1))
        return self.classes(y.mean(1 if self.batch_first else 0))


class Decodes(nn.Module):
    """``nn.TransformerDecoder`` with a causal mask, memory and targets from one input."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        layer = nn.TransformerDecoderLayer(16, 2, 32, batch_first=batch_first)
        self.decoder = nn.TransformerDecoder(layer, 2)
        self.classes, self.batch_first = nn.Linear(16, 3), batch_first

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.batch_first else x.transpose(0, 1)
        positions = 1 if self.batch_first else 0
        memory, target = x.split([4, 3], positions)
        mask = nn.Transformer.generate_square_subsequent_mask(3, dtype=x.dtype)
        return self.classes(self.decoder(target, memory, tgt_mask=mask, tgt_is_causal=True).mean(positions))


def tokens() -> Tensor:
    return floats(2, 7, 16)


def _torch(make: Callable[[], nn.Module]) -> Family:
    return Family(lambda t: make(), tokens, library="torch")


TORCH: dict[str, Family] = {
    "nn_transformer": _torch(lambda: FromSources(True)),
    "nn_transformer_seq": _torch(lambda: FromSources(False)),
    "nn_encoder": _torch(lambda: Encodes(True, False)),
    "nn_encoder_seq": _torch(lambda: Encodes(False, True, "gelu")),
    "nn_decoder": _torch(lambda: Decodes(True)),
    "nn_decoder_seq": _torch(lambda: Decodes(False)),
    "mha": _torch(lambda: Attends()),
    "mha_seq": _torch(lambda: Attends(False)),
    "mha_weights": _torch(lambda: Attends(weights=True)),
    "mha_weights_seq_mask": _torch(lambda: Attends(False, weights=True, masked=True)),
    "mha_mask": _torch(lambda: Attends(masked=True)),
    "mha_dims": _torch(lambda: Attends(kdim=12, vdim=20)),
    "mha_bias_kv": _torch(lambda: Attends(add_bias_kv=True)),
    "mha_zero": _torch(lambda: Attends(add_zero_attn=True)),
    "mha_all": _torch(lambda: Attends(False, weights=True, add_bias_kv=True, add_zero_attn=True, kdim=12, vdim=20)),
}

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
