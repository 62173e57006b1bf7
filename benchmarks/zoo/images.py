"""Models of torchvision and timm on small images."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from benchmarks.zoo import names
from benchmarks.zoo.case import Case, Maker, randomised
from tests.torchvision_models import import_models

_SIZES = (64, 96, 128, 160, 192, 224, 240, 256, 299, 331, 512)


def _image(side: int, frames: int | None = None) -> Tensor:
    shape = (2, 3, side, side) if frames is None else (2, 3, frames, side, side)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def _runs(model: nn.Module, x: Tensor) -> bool:
    """Whether the model takes the input and gives several scores for each sample that depend on it."""
    try:
        with torch.no_grad():
            first, second = model(x), model(x * 1.1)
    except (AssertionError, RuntimeError, ValueError, IndexError, TypeError):
        return False
    return not isinstance(first, Tensor) or (len(first) == 2 and not torch.equal(first, second))


def _smallest(make: Any, name: str, extra: dict[str, Any]) -> tuple[nn.Module, Tensor]:
    """The model for the smallest image that it takes: made for that size, or as it is.

    Raises:
        ValueError: if it takes none.
    """
    for options in ({**extra, "img_size": 64}, extra, {}):
        try:
            model = randomised(make(name, **options))
        except (AssertionError, TypeError, RuntimeError, ValueError, KeyError, IndexError):
            continue
        for side in (64,) if "img_size" in options else _SIZES:
            if _runs(model, _image(side)):
                return model, _image(side)
            if _runs(model.float(), _image(side).float()):  # Some hold tensors of their own in float32.
                return model, _image(side).float()
            model.double()
    raise ValueError(f"{name} takes no image of {_SIZES}")


def timm_model(name: str) -> Case:
    import_models()
    import timm

    extra: dict[str, Any] = {"num_classes": 10}
    extra |= {"depth": 2} if name in names.SHALLOW else {}
    extra |= {"depths": (2, 2, 2, 2)} if name in names.SHALLOW_STAGES else {}
    return Case(*_smallest(timm.create_model, name, extra))


def _torchvision(module: str, name: str, **extra: Any) -> nn.Module:
    models = import_models()
    make = getattr(getattr(models, module) if module else models, name)
    quick = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    return randomised(make(weights=None, **quick, **extra))


def classifier(name: str) -> Case:
    model = _torchvision("", name, num_classes=10, **({"image_size": 64} if name.startswith("vit") else {}))
    return Case(model, _image(names.SIDES.get(name, 64)))


def segmenter(name: str) -> Case:
    model = _torchvision("segmentation", name, weights_backbone=None, num_classes=5)
    return Case(model, _image(64), "out")


def video(name: str) -> Case:
    if name.startswith("mvit"):
        return _mvit(name)
    x = _image(names.SIDES.get(name, 64), 16 if name == "s3d" else 8)
    return Case(_torchvision("video", name, num_classes=10), x)


def _mvit(name: str) -> Case:
    """Torchvision's builder of these names the size of the frames itself: a smaller one in its place."""
    import_models()
    from torchvision.models.video import mvit

    whole = mvit._mvit
    small = {"spatial_size": (64, 64), "temporal_size": 8}
    with mock.patch.object(mvit, "_mvit", lambda *args, **options: whole(*args, **{**options, **small})):
        return Case(_torchvision("video", name, num_classes=10), _image(64, 8))


class Flow(nn.Module):
    """The flow between an image and the same moved, of the last of a few refinements."""

    def __init__(self, model: nn.Module, x: Tensor) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("other", x[:1].roll(2, -1))

    def forward(self, x: Tensor) -> Tensor:
        flow: Tensor = self.model(x, self.other.expand_as(x), num_flow_updates=2)[-1]
        return flow


def optical_flow(name: str) -> Case:
    x = _image(128).float()  # Its grid of positions is.
    return Case(Flow(_torchvision("optical_flow", name).float(), x).eval(), x)


def detector(name: str) -> Case:
    """The backbone and the head of a detector; the whole of one branches on data."""
    from examples.detection import BackboneAndHead

    model = _torchvision("detection", name, weights_backbone=None, num_classes=5)
    return Case(BackboneAndHead(model).eval(), _image(names.SIDES.get(name, 96)), "scores")


def cases() -> Iterable[tuple[str, str, Maker]]:
    """Group, name, and the function that makes the case."""
    groups = (
        ("torchvision classification", classifier, names.CLASSIFICATION),
        ("torchvision segmentation", segmenter, names.SEGMENTATION),
        ("torchvision video", video, names.VIDEO),
        ("torchvision detection", detector, names.DETECTION),
        ("torchvision optical flow", optical_flow, names.OPTICAL_FLOW),
        ("timm files", timm_model, tuple(names.TIMM_FILES.values())),
        ("timm families", timm_model, names.TIMM_FAMILIES),
    )
    for group, make, members in groups:
        for name in members:
            yield group, name, lambda make=make, name=name: make(name)  # type: ignore[misc]
