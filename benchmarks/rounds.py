"""What a user of the benchmarks may choose, and a round: one question to several providers."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from benchmarks.measure import Case, Gate
from benchmarks.providers import Provider

OTHERS = ("gradient", "floor", "zennit", "captum")
PEERS = (*OTHERS, "lxt", "autolrp")
"""All who may take part; LXT and autoLRP explain transformers."""


@dataclass(frozen=True)
class Options:
    """What a user may choose; None is the scenario's own default.

    Attributes:
        models, composites, counts, repeats: see the command's help.
        others: who is measured beside fastlrp, of :data:`OTHERS`.
        peer_targets: most targets per sample that Zennit and Captum get.
        device: what everybody computes on.
        gpu: the ways of a GPU: backends that can, Zennit's best batch, wide gradients, outputs compared in float32.
        precision: of :data:`benchmarks.precisions.PRECISIONS`; the caller sets PyTorch's switches to it.
        switched: others a second time, under PyTorch's switches for products of bfloat16.
    """

    models: tuple[str, ...] | None = None
    composites: tuple[str, ...] | None = None
    targets: int = 32
    batch: int = 8
    size: int = 224
    density: float | None = None
    backends: tuple[str, ...] = ("auto", "torch")
    others: tuple[str, ...] = OTHERS
    counts: tuple[int, ...] | None = None
    peer_targets: int = 4
    repeats: int | None = None
    device: str = "cpu"
    gpu: bool = False
    precision: str = "float32"
    switched: bool = False


@dataclass
class Round:
    """One question. ``left_out``: why somebody does not take part, a line each. ``gate``: what outputs must be."""

    case: Case
    parts: list[Provider]
    x: Tensor
    repeats: int
    left_out: list[str] = field(default_factory=list)
    gate: Gate | None = None


def spread_out(count: int, classes: int, batch: int = 1) -> Tensor:
    """``count`` classes far from each other, the same for every sample, ``(B, K)``.

    Raises:
        ValueError: if there are not that many.
    """
    if not 1 <= count <= classes:
        raise ValueError(f"{count} targets of a model with {classes} classes")
    return (torch.arange(count) * classes // count).expand(batch, count)
