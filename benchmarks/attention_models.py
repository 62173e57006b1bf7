"""Transformers with random weights: GPT-2 small, BERT-base, a Llama of 24 layers, ViT-B/16, Swin-T."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.models import torchvision_models
from benchmarks.providers import UnavailableError

TOKENS = 128
"""Of the one text."""

AT = -1
"""The position whose next token is explained; images have class scores without positions."""


@dataclass(frozen=True)
class Workload:
    """A model in evaluation mode and its one input.

    Attributes:
        x: token ids ``(1, 128)`` or an image. classes: how many there are. composite: under which it is compared by
            default. family: what other software calls the model.
    """

    name: str
    model: nn.Module
    x: Tensor
    classes: int
    composite: str
    family: str

    @property
    def is_text(self) -> bool:
        return not self.x.is_floating_point()

    def leaf(self) -> Tensor:
        """What a gradient is taken of: embedded tokens or the image itself."""
        x = self.model.get_input_embeddings()(self.x) if self.is_text else self.x  # type: ignore[operator]
        return x.detach().clone().requires_grad_()

    def scores(self, leaf: Tensor) -> Tensor:
        """``(B, classes)`` from that, at the explained position."""
        if not self.is_text:
            found: Tensor = self.model(leaf)
            return found
        logits: Tensor = self.model(inputs_embeds=leaf).logits[:, AT]
        return logits

    def relevance(self, leaf: Tensor, gradient: Tensor) -> Tensor:
        """``gradient * input``, per token where it is a text."""
        return (leaf * gradient).sum(-1) if self.is_text else leaf * gradient


def _language(config: str, model: str, **sizes: Any) -> Callable[[], tuple[nn.Module, Tensor, int]]:
    def made() -> tuple[nn.Module, Tensor, int]:
        torchvision_models()  # transformers imports torchvision, which needs its operators defined.
        try:
            import transformers
        except ImportError as error:
            raise UnavailableError("transformers is not installed") from error
        settings = getattr(transformers, config)(**sizes)
        settings.use_cache = False
        built: nn.Module = getattr(transformers, model)(settings).eval()
        return built, torch.randint(0, settings.vocab_size, (1, TOKENS)), settings.vocab_size

    return made


def _image(name: str) -> Callable[[], tuple[nn.Module, Tensor, int]]:
    def made() -> tuple[nn.Module, Tensor, int]:
        return getattr(torchvision_models(), name)(weights=None).eval(), torch.randn(1, 3, 224, 224), 1000

    return made


MADE: dict[str, tuple[Callable[[], tuple[nn.Module, Tensor, int]], str, str]] = {
    "gpt2": (_language("GPT2Config", "GPT2LMHeadModel"), "attnlrp", "gpt2"),
    "bert_base": (_language("BertConfig", "BertForMaskedLM"), "attnlrp", "bert"),
    "llama_24x1024": (
        _language(
            "LlamaConfig", "LlamaForCausalLM", hidden_size=1024, num_hidden_layers=24, num_attention_heads=16,
            intermediate_size=2816, vocab_size=32000,
        ),
        "attnlrp",
        "llama",
    ),
    "vit_b_16": (_image("vit_b_16"), "cp_lrp", "vit"),
    "swin_t": (_image("swin_t"), "attnlrp", "swin"),
}  # fmt: skip
"""How each is made, the composite and the family. LXT has rules of its own for torchvision's ViT under CP-LRP alone."""


def build(name: str, seed: int = 0) -> Workload:
    """A workload of :data:`MADE`.

    Raises:
        UnavailableError: where a library that has the model is not installed.
        ValueError: for another name.
    """
    if name not in MADE:
        raise ValueError(f"no transformer is called {name!r}: expected one of {', '.join(MADE)}")
    make, composite, family = MADE[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model, x, classes = make()
        # A torchvision head begins with zeros: every relevance would be 0.
        for head in (m for m in model.modules() if isinstance(m, nn.Linear) and not bool(m.weight.any())):
            nn.init.normal_(head.weight, 0, 0.02)
    return Workload(name, model, x, classes, composite, family)
