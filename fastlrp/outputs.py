"""Targets for outputs that are no list of classes: areas, boxes, embeddings.

``at=`` and ``output=`` say where an explanation begins (docs/outputs.md has an example for each sort of output). The
functions here make what they take from what a model gives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastlrp.hidden import Hidden, through_channels
from fastlrp.second_stage import BoxHead, proposals, roi_align

__all__ = [
    "BackboneAndHead", "BoxHead", "Hidden", "anchor_of", "area", "by_anchor", "proposals", "roi_align", "strongest",
    "through_channels", "towards",
]  # fmt: skip


def area(scores: Tensor, label: int | Tensor) -> Tensor:
    """Where a class wins: a mask for ``at=``.

    Args:
        scores: ``(B, C, *S)``. label: a class, or one for each sample, ``(B,)``.

    Returns:
        bool ``(B, *S)``.

    Raises:
        ValueError: for an output without positions, scores that are not finite, or a sample in which the class wins
            nowhere: an empty area has no relevance.
    """
    scores = torch.as_tensor(scores)
    if scores.dim() < 3:
        raise ValueError(f"area needs scores (B, C, *S) with positions, got {tuple(scores.shape)}")
    if bool(scores.isnan().any()):
        raise ValueError("area needs scores that are numbers: where they are NaN no class wins")
    best = scores.argmax(1)
    label = torch.as_tensor(label, device=scores.device)
    if label.dim() > 1 or (label.dim() == 1 and len(label) != len(scores)):
        raise ValueError(
            f"label must be a class or one for each of the {len(scores)} samples, got {tuple(label.shape)}"
        )
    mask = best == label.view(-1, *[1] * (best.dim() - 1))
    empty = (~mask.flatten(1).any(1)).nonzero()
    if len(empty):
        sample = int(empty[0])
        there = best[sample].unique().tolist()
        raise ValueError(f"class {int(label.expand(len(scores))[sample])} wins nowhere in sample {sample}: {there} do")
    return mask


def towards(embedding: Tensor, reference: Tensor, cosine: bool = True) -> Tensor:
    """Initial relevance of a similarity to something known: ``e_i r_i``, by the two lengths if ``cosine``.

    It is what the dot product, or the cosine similarity with its lengths held fixed, shares among the entries of the
    embedding; each target's relevance starts with the similarity in total.

    Args:
        embedding: ``(B, D)``, ``record.scores``. reference: of one thing ``(D,)``, of K for all samples ``(K, D)``, or
            of K for each, ``(B, K, D)``.

    Returns:
        targets ``(B, K, D)``.

    Raises:
        ValueError: for other shapes. TypeError: for integers.
    """
    if not (embedding.is_floating_point() and reference.is_floating_point()):
        raise TypeError(f"towards needs floating-point tensors, got {embedding.dtype} and {reference.dtype}")
    own = reference.reshape(1, 1, -1) if reference.dim() == 1 else reference
    own = own.unsqueeze(0) if own.dim() == 2 else own
    fits = embedding.dim() == 2 and own.dim() == 3 and own.shape[0] in (1, len(embedding))
    if not fits or own.shape[2] != embedding.shape[1]:
        raise ValueError(
            f"towards needs an embedding (B, D) and references (D,), (K, D) or (B, K, D), got {tuple(embedding.shape)} "
            f"and {tuple(reference.shape)}"
        )
    if not cosine:
        return embedding.unsqueeze(1) * own.to(embedding)
    # Each by its own length first: neither products nor squares leave the range of float16.
    return (_unit(embedding).unsqueeze(1) * _unit(own).to(embedding.device)).to(embedding.dtype)


def _unit(vectors: Tensor) -> Tensor:
    """Of length 1 along the last axis; zeros stay."""
    wide = vectors.double()
    return wide / wide.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(wide.dtype).tiny)


def by_anchor(levels: Sequence[Tensor], size: int) -> Tensor:
    """The levels of a detector's head as one list of anchors.

    Args:
        levels: ``(B, A * size, H, W)`` each, A anchors at a place. size: entries of an anchor: coordinates, objectness,
            classes.

    Returns:
        ``(B, anchors, size)``: place after place, its A anchors together.

    Raises:
        ValueError: for no level, a ``size`` below 1, levels of different batches, or a number of channels that is no
            multiple of ``size``.
    """
    if not levels or not isinstance(size, int) or size < 1:
        raise ValueError(f"by_anchor needs a level at least and a size of at least 1, got {len(levels)} and {size!r}")
    wrong = next((t for t in levels if t.dim() != 4 or t.shape[1] % size), None)
    if wrong is not None:
        raise ValueError(f"levels must be (B, anchors * {size}, H, W), got {tuple(wrong.shape)}")
    if any(t.shape[0] != levels[0].shape[0] for t in levels):
        raise ValueError(f"levels must have one batch size, got {[tuple(t.shape) for t in levels]}")
    anchors = [t.shape[1] // size * t.shape[2] * t.shape[3] for t in levels]
    rows = [t.permute(0, 2, 3, 1).reshape(len(t), n, size) for t, n in zip(levels, anchors, strict=True)]
    return torch.cat(rows, 1)


def strongest(scores: Tensor, count: int) -> list[tuple[int, int]]:
    """Anchor and class of the highest scores of the first sample, for ``at="pairs"``; scores ``(B, anchors, C)``.

    Raises:
        ValueError: for other shapes, or a count that there are not as many scores of.
    """
    if scores.dim() != 3 or not len(scores) or not 1 <= count <= scores[0].numel():
        raise ValueError(
            f"strongest needs scores (B, anchors, C) and a count up to anchors * C, got {tuple(scores.shape)} and "
            f"{count!r}"
        )
    places = scores[0].flatten().topk(count).indices.tolist()
    return [divmod(place, scores.shape[2]) for place in places]


def anchor_of(probabilities: Tensor, label: int, probability: float) -> int:
    """Which anchor a box comes from that a detector returned: the one with the nearest probability of its class.

    Args:
        probabilities: ``(anchors, C)`` of one image, as the detector makes them from its scores: a sigmoid for
            RetinaNet and YOLO, a softmax for SSD. label, probability: of the box.

    Raises:
        ValueError: if no anchor has that probability, but for rounding: the scores belong to another image or scale;
            for other shapes. IndexError: for a class that there is not.
    """
    if probabilities.dim() != 2 or not len(probabilities):
        raise ValueError(f"anchor_of needs probabilities (anchors, C) of one image, got {tuple(probabilities.shape)}")
    if not 0 <= label < probabilities.shape[1]:
        raise IndexError(f"there is no class {label}: the probabilities are of {probabilities.shape[1]}")
    away = (probabilities[:, label] - probability).abs()
    nearest = int(away.argmin())
    if not float(away[nearest]) <= 1e-3:  # NaN is none either.
        raise ValueError(
            f"no anchor gives class {label} the probability {probability:.4f}; the nearest is "
            f"{float(probabilities[nearest, label]):.4f}: scores and box must come from the same image, scaled alike"
        )
    return nearest


class BackboneAndHead(nn.Module):
    """Backbone and head of one of torchvision's detectors; images are normalised and scaled already.

    RetinaNet, FCOS, SSD and SSDlite: ``scores`` are the class logits of all anchors, ``(B, anchors, classes)``. Faster
    and Mask R-CNN: ``scores`` are the objectness of the region proposal network, ``(B, anchors, 1)``. ``boxes`` are
    what the head says of the anchors' boxes, ``(B, anchors, 4)``.

    Args:
        detector: has ``backbone`` and ``head``, or ``rpn.head``.

    Raises:
        TypeError: for a module without them.
    """

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.proposals = hasattr(detector, "rpn")
        head = getattr(getattr(detector, "rpn", detector), "head", None)
        if not isinstance(getattr(detector, "backbone", None), nn.Module) or not isinstance(head, nn.Module):
            raise TypeError(
                f"{type(detector).__name__} has no backbone and head as torchvision's detectors have: write a module "
                "whose forward returns what the head gives, before boxes are chosen"
            )
        self.backbone: Any = detector.backbone
        self.head: Any = head
        self.training = detector.training

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.backbone(x)
        levels = list(features.values()) if isinstance(features, Mapping) else [features]
        found = self.head(levels)
        if not self.proposals:
            return {"scores": found["cls_logits"], "boxes": found["bbox_regression"]}
        objectness, boxes = found
        return {"scores": by_anchor(objectness, 1), "boxes": by_anchor(boxes, 4)}
