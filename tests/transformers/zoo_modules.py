"""Families whose modules are torchvision's, timm's and PyTorch's own, as :mod:`tests.transformers.zoo` has them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.transformers.zoo_family import Family, floats, image


def _timm(name: str, **settings: Any) -> Callable[[Any], nn.Module]:
    return lambda t: t.create_model(name, pretrained=False, num_classes=3, **settings)


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
