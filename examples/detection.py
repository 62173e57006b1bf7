"""Why does a detector see something here: one class of one box, before non-maximum suppression.

A detector as a whole branches on data: which boxes remain depends on scores. What is explained is the part that
computes scores and boxes of all anchors, :class:`BackboneAndHead`.

python examples/detection.py    (needs torchvision)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import fastlrp


class BackboneAndHead(nn.Module):
    """Backbone and head of one of torchvision's detectors; images are normalised and scaled already.

    RetinaNet, FCOS, SSD and SSDlite: ``scores`` are the class logits of all anchors, ``(B, anchors, classes)``. Faster
    and Mask R-CNN: ``scores`` are the objectness of the region proposal network, ``(B, anchors, 1)``. ``boxes`` are
    what the head says of the anchors' boxes, ``(B, anchors, 4)``.
    """

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.backbone = detector.backbone
        self.proposals = hasattr(detector, "rpn")
        self.head = detector.rpn.head if self.proposals else detector.head

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.backbone(x)
        levels = [features] if isinstance(features, Tensor) else list(features.values())
        found = self.head(levels)
        if not self.proposals:
            return {"scores": found["cls_logits"], "boxes": found["bbox_regression"]}
        objectness, boxes = found
        return {
            "scores": torch.cat([_by_anchor(level, 1) for level in objectness], 1),
            "boxes": torch.cat([_by_anchor(level, 4) for level in boxes], 1),
        }


def _by_anchor(level: Tensor, size: int) -> Tensor:
    """``(B, anchors of a place * size, H, W)`` to ``(B, anchors, size)``."""
    return level.permute(0, 2, 3, 1).reshape(level.shape[0], -1, size)


def strongest(scores: Tensor, count: int) -> list[tuple[int, int]]:
    """Anchor and class of the highest scores of the first sample."""
    places = scores[0].flatten().topk(count).indices.tolist()
    return [divmod(place, scores.shape[2]) for place in places]


def explain_boxes(detector: nn.Module, x: Tensor, count: int = 3) -> tuple[list[tuple[int, int]], Tensor]:
    """Anchor and class of the strongest scores, and the relevance of each, ``(B, count, 3, H, W)``."""
    explainer = fastlrp.Explainer(BackboneAndHead(detector).eval(), "epsilon_plus", output="scores")
    with explainer.forward(x) as record:
        chosen = strongest(record.output["scores"], count)
        return chosen, record.relevance(chosen, at="pairs")


def main() -> None:
    from torchvision.models import detection

    torch.manual_seed(0)
    detector = detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=5).eval()
    chosen, relevance = explain_boxes(detector, torch.randn(1, 3, 160, 160))
    for (anchor, label), values in zip(chosen, relevance[0], strict=True):
        print(f"class {label} at anchor {anchor}: relevance {float(values.sum()):+.3f} in {tuple(values.shape)}")


if __name__ == "__main__":
    main()
