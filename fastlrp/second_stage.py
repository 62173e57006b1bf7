"""The second stage of Faster and Mask R-CNN: which part of an image the class of a chosen box was read from.

RoI align samples a feature map at places that the box sets, bilinearly, and averages: for a given box it is a linear
map of the features, and since a box's rows and columns are sampled apart, two matrices. The boxes are a condition.

Source of RoI align: He et al. 2017 (Mask R-CNN), section 3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

Box = Sequence[float]
"""Left, top, right, bottom, in pixels of the image."""


def roi_align(
    features: Tensor,
    boxes: Tensor | Sequence[Box],
    size: int | Sequence[int] = 7,
    scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
) -> Tensor:
    """The features inside boxes, as ``torchvision.ops.roi_align`` samples them, for a model that is to be explained.

    Args:
        features: ``(B, C, H, W)``. boxes: ``(N, 4)``, the same for all samples: numbers, no activations.
        size, scale, sampling_ratio, aligned: as torchvision has them; places of one box, sizes of the features by those
            of the image, samples along each axis of a place (-1: as many as there are features), and a shift by half a
            feature.

    Returns:
        ``(B, N, C, *size)``.

    Raises:
        ValueError: for other shapes, sizes and scales. TypeError: for boxes that are computed inside of the model.

    Example::

        maps = torch.rand(2, 8, 16, 16)
        inside = fastlrp.outputs.roi_align(maps, [[4.0, 4.0, 40.0, 30.0]], 7, scale=0.25, sampling_ratio=2)
        assert inside.shape == (2, 1, 8, 7, 7)
    """
    if features.dim() != 4:
        raise ValueError(f"features must be (B, C, H, W), got {tuple(features.shape)}")
    rows, columns = _places(size)
    if not (isinstance(scale, (int, float)) and math.isfinite(scale) and scale > 0):
        raise ValueError(f"scale must be the size of the features by that of the image, such as 0.25, got {scale!r}")
    if not isinstance(sampling_ratio, int):
        raise TypeError(f"sampling_ratio must be an int, -1 for as many as there are features, got {sampling_ratio!r}")
    rule = (scale, sampling_ratio, aligned)
    known = _numbers(boxes)
    down = [_samples(box[1], box[3], rows, int(features.shape[2]), *rule) for box in known]
    across = [_samples(box[0], box[2], columns, int(features.shape[3]), *rule) for box in known]
    vertical, horizontal = (torch.tensor(m, dtype=features.dtype, device=features.device) for m in (down, across))
    return torch.einsum("bchw,nph,nqw->bncpq", features, vertical, horizontal)


def _places(size: Any) -> tuple[int, int]:
    """Rows and columns."""
    sizes = (size, size) if isinstance(size, int) else size
    if not isinstance(sizes, (tuple, list)) or len(sizes) != 2 or any(not isinstance(n, int) or n < 1 for n in sizes):
        raise ValueError(f"size must be a number of places of at least 1, or (rows, columns), got {size!r}")
    return sizes[0], sizes[1]


def _numbers(boxes: Tensor | Sequence[Box]) -> list[list[float]]:
    try:
        known = boxes.tolist() if isinstance(boxes, Tensor) else [[float(n) for n in box] for box in boxes]
    except Exception as error:
        raise TypeError(
            "boxes must be numbers (left, top, right, bottom) that are known beforehand: compute them before the model "
            "runs, and give them as a list"
        ) from error
    rows = isinstance(known, list) and all(isinstance(box, list) and len(box) == 4 for box in known)
    if not known or not rows or any(isinstance(n, (list, complex)) for box in known for n in box):
        raise ValueError("boxes must be (N, 4), left, top, right, bottom, one at least")
    wrong = next((box for box in known if not all(map(math.isfinite, box))), None)
    if wrong is not None:
        raise ValueError(f"boxes must be finite numbers, got {wrong}: leave such boxes out")
    return known


def _samples(
    begin: float, end: float, places: int, length: int, scale: float, ratio: int, aligned: bool
) -> list[list[float]]:
    """Along one axis: for each place of a box the weights of the features, which add up to 1 inside the map."""
    shift = 0.5 if aligned else 0.0
    start, stop = begin * scale - shift, end * scale - shift
    width = stop - start if aligned else max(stop - start, 1.0)
    count = ratio if ratio > 0 else math.ceil(width / places)  # None in a box without an extent, as torchvision has it.
    weights = [[0.0] * length for _ in range(places)]
    for place in range(places):
        for i in range(count):
            at = start + width / places * (place + (i + 0.5) / count)
            if not -1.0 <= at <= length:
                continue
            at = min(max(at, 0.0), length - 1.0)
            low = int(at)
            weights[place][low] += (1 - at + low) / count
            if at > low:
                weights[place][low + 1] += (at - low) / count
    return weights


class BoxHead(nn.Module):
    """The second stage of one of torchvision's R-CNNs for given boxes: backbone, pyramid, RoI align, box head.

    ``scores`` are the class logits of each box, ``(B, N, classes)``, class 0 the background; ``boxes`` what the head
    says of each class's box, ``(B, N, classes * 4)``. Images are normalised and scaled already.

    Args:
        detector: has ``backbone`` and ``roi_heads``. boxes: ``(N, 4)`` in pixels of the scaled image, as
            :func:`proposals` gives them: the region that a class is read from, before the head moves its sides.

    Raises:
        TypeError: for a detector without them. ValueError: for other shapes of boxes.

    Example::

        from torchvision.models import detection

        detector = detection.fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None).eval()
        head = fastlrp.outputs.BoxHead(detector, [[10.0, 20.0, 90.0, 80.0]])
        explainer = fastlrp.Explainer(head, "epsilon_plus", output="scores")
        found = explainer(torch.rand(1, 3, 96, 128), [(0, 1)], at="pairs")  # Class 1 of box 0.
    """

    def __init__(self, detector: nn.Module, boxes: Tensor | Sequence[Box]) -> None:
        super().__init__()
        heads: Any = getattr(detector, "roi_heads", None)
        parts = ("box_roi_pool", "box_head", "box_predictor")
        missing = not isinstance(getattr(detector, "backbone", None), nn.Module)
        if missing or any(getattr(heads, name, None) is None for name in parts):
            raise TypeError(
                f"{type(detector).__name__} has no backbone and roi_heads as torchvision's Faster and Mask R-CNN have. "
                "For detectors of one stage take fastlrp.outputs.BackboneAndHead; for another detector of two write a "
                "module with fastlrp.outputs.roi_align"
            )
        self.backbone: Any = detector.backbone
        self.head, self.predictor, self.pool = heads.box_head, heads.box_predictor, heads.box_roi_pool
        self.boxes = _numbers(boxes)
        self.training = detector.training

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.backbone(x)
        named = features.items() if isinstance(features, Mapping) else [("0", features)]
        levels = [t for name, t in named if name in self.pool.featmap_names]
        scales = [2.0 ** round(math.log2(int(t.shape[2]) / int(x.shape[2]))) for t in levels]
        chosen = [self._level(box, scales) for box in self.boxes]
        inside, order = [], []
        for level, (maps, scale) in enumerate(zip(levels, scales, strict=True)):
            own = [i for i, at in enumerate(chosen) if at == level]
            if own:
                boxes = [self.boxes[i] for i in own]
                inside.append(roi_align(maps, boxes, self.pool.output_size, scale, self.pool.sampling_ratio))
                order += own
        whole = inside[0] if len(inside) == 1 else torch.cat(inside, 1)
        if order != sorted(order):
            whole = whole[:, [order.index(i) for i in range(len(order))]]
        scores, sides = self.predictor(self.head(whole.flatten(0, 1)))
        count = len(self.boxes)
        return {"scores": scores.unflatten(0, (-1, count)), "boxes": sides.unflatten(0, (-1, count))}

    def _level(self, box: list[float], scales: Sequence[float]) -> int:
        """The map of a pyramid that a box of this size is read from (Lin et al. 2017, eq. 1)."""
        if len(scales) == 1:
            return 0
        side = math.sqrt(max((box[2] - box[0]) * (box[3] - box[1]), 0.0))
        ideal = self.pool.canonical_level + (math.log2(side / self.pool.canonical_scale) if side else -math.inf) + 1e-6
        lowest, highest = (int(-math.log2(scale)) for scale in (scales[0], scales[-1]))
        return int(min(max(ideal if math.isinf(ideal) else math.floor(ideal), lowest), highest)) - lowest


def proposals(detector: nn.Module, x: Tensor) -> list[Tensor]:
    """The boxes that the first stage of an R-CNN proposes for images, the most certain first.

    Args:
        detector: has ``backbone`` and ``rpn``; in evaluation mode. x: ``(B, 3, H, W)``, normalised and scaled,
            ``detector.transform(images)[0].tensors``.

    Returns:
        for each image ``(N, 4)``.

    Raises:
        TypeError: for a detector without them.

    Example::

        boxes = fastlrp.outputs.proposals(detector, images)[0]
        scores = fastlrp.outputs.BoxHead(detector, boxes)(images)["scores"]
        best = int(scores[0, :, 1].argmax())  # The box in which class 1 is seen most.
    """
    rpn: Any = getattr(detector, "rpn", None)
    backbone: Any = getattr(detector, "backbone", None)
    if rpn is None or backbone is None:
        raise TypeError(f"{type(detector).__name__} has no backbone and rpn as torchvision's R-CNNs have")
    with torch.no_grad():
        features = backbone(x)
        named = features if isinstance(features, Mapping) else {"0": features}
        images = SimpleNamespace(tensors=x, image_sizes=[(int(x.shape[2]), int(x.shape[3]))] * len(x))
        found: list[Tensor] = rpn(images, named)[0]
    return found
