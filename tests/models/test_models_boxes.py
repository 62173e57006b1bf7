"""The second stage of R-CNNs for chosen boxes: RoI align as a linear map, against torchvision's and autograd."""

from __future__ import annotations

from collections import OrderedDict
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

import fastlrp
from fastlrp import outputs
from fastlrp.outputs import BoxHead, roi_align
from tests.directions.adjoint import LARGEST, errors_of_steps
from tests.models.oracle import relative_error
from tests.torchvision_models import import_models

BOXES = [[2.0, 3.0, 21.5, 17.0], [-3.0, 1.0, 14.0, 40.0], [30.0, 30.0, 31.0, 30.5], [0.0, 0.0, 48.0, 32.0]]


def theirs(
    features: Tensor, rois: Tensor, size: Any, spatial_scale: float, ratio: int, aligned: bool = False
) -> Tensor:
    """Torchvision's own definition, as it stands in Python."""
    import_models()
    import torchvision  # noqa: F401
    from torchvision.ops._utils import convert_boxes_to_roi_format

    module = __import__("sys").modules["torchvision.ops.roi_align"]
    rois = rois if isinstance(rois, Tensor) else convert_boxes_to_roi_format(rois)
    rows, columns = (size, size) if isinstance(size, int) else size
    plain = getattr(module._roi_align, "__wrapped__", module._roi_align)
    found: Tensor = plain(features, rois, spatial_scale, rows, columns, ratio, aligned)
    return found


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("ratio", [2, -1])
def test_samples_as_torchvision_does(aligned: bool, ratio: int) -> None:
    features = torch.randn(2, 3, 16, 24).double()
    boxes = [BOXES[0], [4.0, 2.0, 40.0, 30.0], [30.0, 30.0, 31.0, 30.5]]  # Torchvision's in Python takes those inside.
    found = roi_align(features, boxes, (3, 5), 0.5, ratio, aligned)
    rois = torch.tensor([[b, *box] for b in range(2) for box in boxes]).double()
    expected = theirs(features, rois, (3, 5), 0.5, ratio, aligned).unflatten(0, (2, 3))
    torch.testing.assert_close(found, expected)


def test_by_hand() -> None:
    """One place of two samples in the middle of features 0, 1 and 1, 2: a quarter each; outside of the map nothing."""
    features = torch.arange(4.0).view(1, 1, 1, 4).expand(1, 1, 4, 4).clone()
    found = roi_align(features, [[0.0, 0.0, 2.0, 2.0], [-9.0, 0.0, -5.0, 2.0]], 1, sampling_ratio=2)
    assert found.flatten().tolist() == [1.0, 0.0]
    assert float(roi_align(features, [[0.5, 0.0, 1.5, 1.0]], 1, sampling_ratio=1)) == 1.0
    assert float(roi_align(features, [[2.0, 2.0, 2.0, 3.0]], 1, aligned=True)) == 0.0  # No width, no sample.
    assert float(roi_align(features, [[2.0, 2.0, 2.0, 3.0]], 1, sampling_ratio=1, aligned=True)) == 1.5
    model = nn.Sequential()
    model.forward = lambda x: roi_align(x, [[0.5, 0.0, 2.5, 1.0]], 1, sampling_ratio=1).flatten(1)  # type: ignore
    x = torch.tensor([[[[1.0, 5.0, 3.0]]]])  # At 1.5 between 5 and 3, half each.
    found = fastlrp.explain(model.eval(), x, torch.full((1, 1, 1), 8.0), "lrp0")
    assert found.flatten().tolist() == [0.0, 5.0, 3.0]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"boxes": torch.ones(2, 4, 1)}, r"boxes must be \(N, 4\), left, top, right, bottom"),
        ({"size": 0}, r"size must be a number of places of at least 1, or \(rows, columns\), got 0"),
        ({"size": (1, 2, 3)}, r"size must be a number of places .* got \(1, 2, 3\)"),
        ({"size": 1.5}, r"size must be a number of places .* got 1.5"),
        ({"scale": 0}, "scale must be the size of the features by that of the image, such as 0.25, got 0"),
        ({"scale": float("nan")}, "scale must be the size of the features .* got nan"),
        ({"sampling_ratio": 1.5}, "sampling_ratio must be an int, -1 for as many as there are features, got 1.5"),
    ],
)
def test_what_cannot_be_sampled(given: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        roi_align(torch.rand(1, 2, 4, 4), **{"boxes": [[0.0, 0.0, 2.0, 2.0]], **given})


class Pyramid(nn.Module):
    """Maps of a half and a quarter of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        large = self.first(x).relu()
        return OrderedDict({"0": large, "1": self.second(large).relu(), "pool": large[:, :, ::8, ::8]})


class Two(nn.Module):
    """The head and the predictor of a detector."""

    def __init__(self) -> None:
        super().__init__()
        self.scores, self.sides = nn.Linear(16, 3), nn.Linear(16, 12)

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        return self.scores(h), self.sides(h)


def small() -> nn.Module:
    """A detector as torchvision's, with a pyramid of two levels."""
    torch.manual_seed(0)
    detector = nn.Module()
    detector.backbone, detector.roi_heads = Pyramid(), nn.Module()
    pool = SimpleNamespace(featmap_names=["0", "1"], output_size=(3, 3), sampling_ratio=2,
                           canonical_scale=32, canonical_level=2)  # fmt: skip
    detector.roi_heads.box_roi_pool = pool
    detector.roi_heads.box_head = nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.ReLU())
    detector.roi_heads.box_predictor = Two()
    return detector.double().eval()


def test_a_class_of_a_box_through_a_pyramid() -> None:
    """Each box from the level for its size, in the order in which boxes are given; every box as alone."""
    head, x = BoxHead(small(), BOXES), torch.randn(2, 3, 32, 48).double()
    explainer = fastlrp.Explainer(head, "gradient", output="scores")
    with explainer.forward(x) as record:
        assert record.scores.shape == (2, 4, 3)
        pairs = [(0, 1), (1, 2), (3, 0)]
        found = record.relevance(pairs, at="pairs", initial="one")
        point = x.clone().requires_grad_()
        scores = head(point)["scores"]
        for k, (box, label) in enumerate(pairs):
            (expected,) = torch.autograd.grad(scores[:, box, label].sum(), point, retain_graph=True)
            assert relative_error(found[:, k], expected) < 1e-12
        relevance = record.under("epsilon_plus").relevance(pairs, at="pairs")
        assert max(errors_of_steps(record.under("epsilon_plus")).values()) < LARGEST
    alone = fastlrp.Explainer(BoxHead(small(), BOXES[1:2]), "epsilon_plus", output="scores")
    torch.testing.assert_close(alone(x, [(0, 2)], at="pairs")[:, 0], relevance[:, 1])
    report = fastlrp.Explainer(head, "epsilon_plus", output="scores").verify(x, pairs, at="pairs")
    assert report.ok, str(report)
    levels = [head._level(box, (0.5, 0.25)) for box in head.boxes]
    assert levels == [0, 0, 0, 1]


@pytest.mark.slow
def test_faster_rcnn() -> None:
    """The scores are those of torchvision's own second stage; the gradient is autograd's through that."""
    import_models()
    from torchvision.models import detection
    from torchvision.ops import poolers

    torch.manual_seed(0)
    detector = detection.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=3).double().eval()
    x, boxes = (
        torch.rand(1, 3, 64, 96).double(),
        torch.tensor([[3.0, 4.0, 60.0, 50.0], [0.0, 0.0, 96.0, 64.0]]).double(),
    )
    heads = detector.roi_heads
    explainer = fastlrp.Explainer(BoxHead(detector, boxes), "gradient", output="scores")
    point = x.clone().requires_grad_()

    def align(features: Tensor, rois: Any, output_size: Any, spatial_scale: float, sampling_ratio: int) -> Tensor:
        return theirs(features, rois, output_size, spatial_scale, sampling_ratio)

    with mock.patch.object(poolers, "roi_align", align):
        inside = heads.box_roi_pool(detector.backbone(point), [boxes], [(64, 96)])
    scores = heads.box_predictor(heads.box_head(inside))[0]
    with explainer.forward(x) as record:
        torch.testing.assert_close(record.scores[0], scores.detach(), rtol=1e-9, atol=1e-9)
        found = record.relevance([(1, 2)], at="pairs", initial="one")
        (expected,) = torch.autograd.grad(scores[1, 2], point)
        assert relative_error(found[:, 0], expected) < 1e-9
        relevance = record.under("epsilon_plus").relevance([(1, 2)], at="pairs")
    assert bool(relevance.isfinite().all())
    assert bool(relevance.any())


def test_proposals_come_from_the_first_stage() -> None:
    detector = small()
    detector.rpn = lambda images, features: ([torch.tensor(BOXES)[: len(features)] + images.image_sizes[0][0]], {})
    found = outputs.proposals(detector, torch.randn(1, 3, 32, 48).double())
    torch.testing.assert_close(found[0], torch.tensor(BOXES)[:3] + 32)


def test_bad_input() -> None:
    maps = torch.rand(1, 2, 4, 4)
    for boxes, message in (
        ([], r"\(N, 4\)"), ([[1.0, 2.0, 3.0]], r"\(N, 4\)"), ([[0.0, 0.0, float("nan"), 1.0]], "finite"),
        (torch.ones(2, 2, 4), r"\(N, 4\)"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            roi_align(maps, boxes)
    with pytest.raises(ValueError, match=r"features must be \(B, C, H, W\)"):
        roi_align(maps[0], BOXES)
    with pytest.raises(TypeError, match="known beforehand"):
        roi_align(maps, ["left"])  # type: ignore[list-item]
    with pytest.raises(TypeError, match=r"has no backbone and roi_heads.*BackboneAndHead.*roi_align"):
        BoxHead(nn.Linear(1, 1), BOXES)
    with pytest.raises(TypeError, match="has no backbone and rpn"):
        outputs.proposals(nn.Linear(1, 1), maps)
