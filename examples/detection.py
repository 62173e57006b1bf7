"""Why does a detector see something here: one class of one box, before non-maximum suppression.

A detector as a whole branches on data: which boxes remain depends on scores. What is explained is the part that
computes scores and boxes of all anchors, :class:`fastlrp.outputs.BackboneAndHead`.

python examples/detection.py    (needs torchvision)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import fastlrp
from fastlrp.outputs import BackboneAndHead, strongest


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
