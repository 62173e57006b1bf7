"""What a family of the zoo is, inputs for its models, and what of their outputs is explained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastlrp.capture.chosen import Output


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


def first_query(out: Any) -> Tensor:
    return out.logits[:, 0]


def centre(out: Any) -> Tensor:
    return out.logits.mean((2, 3))


def similarity(out: Any) -> Tensor:
    """Of each image and the text of its own."""
    return (out.image_embeds * out.text_embeds).sum(-1, keepdim=True)
