"""Targets for outputs that are no list of classes: areas, boxes, embeddings.

``at=`` and ``output=`` say where an explanation begins (docs/outputs.md has an example for each sort of output). The
functions here make what they take from what a model gives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["BackboneAndHead", "anchor_of", "area", "by_anchor", "strongest", "towards"]


def area(scores: Tensor, label: int | Tensor) -> Tensor:
    """Where a class wins: a mask for ``at=``.

    Args:
        scores: ``(B, C, *S)``. label: a class, or one for each sample, ``(B,)``.

    Returns:
        bool ``(B, *S)``.

    Raises:
        ValueError: for an output without positions, or a sample in which the class wins nowhere: an empty area has no
            relevance.
    """
    if scores.dim() < 3:
        raise ValueError(f"area needs scores (B, C, *S) with positions, got {tuple(scores.shape)}")
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
        ValueError: for other shapes.
    """
    own = reference.reshape(1, 1, -1) if reference.dim() == 1 else reference
    own = own.unsqueeze(0) if own.dim() == 2 else own
    fits = embedding.dim() == 2 and own.dim() == 3 and own.shape[0] in (1, len(embedding))
    if not fits or own.shape[2] != embedding.shape[1]:
        raise ValueError(
            f"towards needs an embedding (B, D) and references (D,), (K, D) or (B, K, D), got {tuple(embedding.shape)} "
            f"and {tuple(reference.shape)}"
        )
    parts = embedding.unsqueeze(1) * own.to(embedding)
    if not cosine:
        return parts
    lengths = embedding.norm(dim=1).view(-1, 1, 1) * own.norm(dim=2, keepdim=True).to(embedding)
    return parts / lengths.clamp(min=torch.finfo(embedding.dtype).tiny)


def by_anchor(levels: Sequence[Tensor], size: int) -> Tensor:
    """The levels of a detector's head as one list of anchors.

    Args:
        levels: ``(B, A * size, H, W)`` each, A anchors at a place. size: entries of an anchor: coordinates, objectness,
            classes.

    Returns:
        ``(B, anchors, size)``: place after place, its A anchors together.

    Raises:
        ValueError: for a number of channels that is no multiple of ``size``.
    """
    wrong = next((t for t in levels if t.dim() != 4 or t.shape[1] % size), None)
    if wrong is not None:
        raise ValueError(f"levels must be (B, anchors * {size}, H, W), got {tuple(wrong.shape)}")
    return torch.cat([t.permute(0, 2, 3, 1).reshape(t.shape[0], -1, size) for t in levels], 1)


def strongest(scores: Tensor, count: int) -> list[tuple[int, int]]:
    """Anchor and class of the highest scores of the first sample, for ``at="pairs"``; scores ``(B, anchors, C)``."""
    places = scores[0].flatten().topk(count).indices.tolist()
    return [divmod(place, scores.shape[2]) for place in places]


def anchor_of(probabilities: Tensor, label: int, probability: float) -> int:
    """Which anchor a box comes from that a detector returned: the one with the nearest probability of its class.

    Args:
        probabilities: ``(anchors, C)`` of one image, as the detector makes them from its scores: a sigmoid for
            RetinaNet and YOLO, a softmax for SSD. label, probability: of the box.

    Raises:
        ValueError: if no anchor has that probability, but for rounding: the scores belong to another image or scale.
    """
    away = (probabilities[:, label] - probability).abs()
    nearest = int(away.argmin())
    if float(away[nearest]) > 1e-3:
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
