"""The models of the goldens of ``transformers``, with their weights, in float64."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests import goldens, torchvision_models

CLASSES = {
    "gpt2": ("GPT2Config", "GPT2LMHeadModel"),
    "llama": ("LlamaConfig", "LlamaForCausalLM"),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM"),
}


class LogitsAt(nn.Module):
    """From embeddings ``(B, S, D)`` to the logits of one position."""

    def __init__(self, model: nn.Module, position: int) -> None:
        super().__init__()
        self.model, self.position = model, position

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(inputs_embeds=x, use_cache=False).logits
        return logits[:, self.position]


def golden(family: str, implementation: str) -> tuple[nn.Module, dict[str, np.ndarray]]:
    """The language model of a family, and what other software computed for it."""
    found = goldens.load(f"transformers/{family}.npz")
    torchvision_models.import_models()
    transformers: Any = pytest.importorskip("transformers", reason="transformers is not installed")
    config, model = (getattr(transformers, name) for name in CLASSES[family])
    settings = config(**json.loads(str(found["config"])))
    settings._attn_implementation = implementation
    built: nn.Module = model(settings).double().eval()
    built.load_state_dict(state(found), strict=False)
    return built, found


def state(found: dict[str, np.ndarray]) -> dict[str, Tensor]:
    return {key.removeprefix("state/"): torch.from_numpy(v) for key, v in found.items() if key.startswith("state/")}
