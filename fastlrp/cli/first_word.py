"""Encoder–decoder models of texts as scores of the first token of their answer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastlrp.cli.errors import Failure


class FirstWord(nn.Module):
    """Scores ``(B, V)`` of the first token that a model of transformers answers a text with (T5, BART, Marian).

    Args:
        model: with an encoder for the text and a decoder, which gets its start token alone.

    Raises:
        Failure: if the model does not know its start token.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.config = model, model.config
        names = ("decoder_start_token_id", "bos_token_id", "pad_token_id")
        found = [getattr(self.config, name, None) for name in names]
        known = [number for number in found if isinstance(number, int)]
        if not known:
            raise Failure(f"the model's config.json names no token that its decoder starts with ({', '.join(names)})")
        self.start = known[0]

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        start = torch.full_like(input_ids[:, :1], self.start)
        found = self.model(input_ids=input_ids, attention_mask=attention_mask, decoder_input_ids=start, use_cache=False)
        return found.logits[:, 0]
