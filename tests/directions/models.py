"""Models of different families, small, random, in float64, each with an input and groups of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastlrp import groups
from tests.torchvision_models import import_models


@dataclass(frozen=True)
class Case:
    """A model under composites, its input, groups of it, and how targets are given."""

    model: nn.Module
    x: Any
    groups: Any
    composites: tuple[str, ...]
    arguments: dict[str, Any]
    bound: float = 1e-11


class Residual(nn.Module):
    """Two branches that meet, one with a batch norm, and a max-pool with overlap."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.pool, self.head = nn.BatchNorm2d(8), nn.MaxPool2d(3, 2, 1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        x = self.pool((x + self.norm(self.second(x))).relu())
        return self.head(x.mean((2, 3)))


def residual() -> Case:
    x = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    return Case(Residual(), x, groups.patches(4), ("epsilon_plus", "epsilon_alpha2_beta1_flat"), {"targets": "all"})


def plain() -> Case:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AvgPool2d(2, ceil_mode=True),
        nn.Conv2d(4, 8, 3, groups=2, dilation=2, padding=2), nn.GELU(), nn.AdaptiveMaxPool2d(2),
        nn.Flatten(), nn.Linear(32, 6),
    )  # fmt: skip
    x = torch.randn(3, 1, 10, 10, dtype=torch.float64)
    map = torch.randint(-1, 5, (3, 10, 10))
    return Case(model, x, groups.labels(map, 5), ("epsilon", "zplus", "deep_taylor"), {"targets": [5, 0, 3]})


def _language(name: str, config: dict[str, Any], given: dict[str, Any]) -> Case:
    import_models()
    transformers = pytest.importorskip("transformers", exc_type=ImportError)
    settings = getattr(transformers, f"{name}Config")(**config)
    model = getattr(transformers, {"GPT2": "GPT2LMHeadModel", "Llama": "LlamaForCausalLM"}[name])(settings)
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0.0, 0.3)
    ids = torch.randint(0, config["vocab_size"], (2, 7), generator=torch.Generator().manual_seed(3))
    # The norms of Llama convert to float32 and back, whatever the model's dtype.
    bound = 1e-6 if name == "Llama" else 1e-11
    return Case(model, {"input_ids": ids}, "tokens", ("attnlrp", "cp_lrp"), {"targets": "all", **given}, bound)


def gpt2() -> Case:
    config = {"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16}
    return _language("GPT2", config, {"at": -1})


def llama() -> Case:
    config = {
        "vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 24,
    }  # fmt: skip
    return _language("Llama", config, {"at": "all"})


def vit() -> Case:
    models = import_models()
    model = models.VisionTransformer(16, 4, 2, 2, 16, 32, num_classes=5)
    nn.init.normal_(model.heads.head.weight)
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    return Case(model, x, groups.patches(4), ("attnlrp",), {"targets": "all"})


def swin() -> Case:
    models = import_models()
    model = models.SwinTransformer([2, 2], 8, [2, 2], [2, 4], [2, 2], num_classes=5)
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    return Case(model, x, groups.patches(8), ("attnlrp",), {"targets": [0, 4]})


CASES: dict[str, Callable[[], Case]] = {make.__name__: make for make in (residual, plain, gpt2, llama, vit, swin)}
SLOW = ("gpt2", "llama", "swin")
