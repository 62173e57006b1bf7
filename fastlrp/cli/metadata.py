"""Preprocessing from what a model brings along: torchvision's transforms, a ``preprocessor_config.json``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fastlrp.cli import texts
from fastlrp.cli.errors import Failure
from fastlrp.cli.preprocess import FILTERS, Preprocessing

UNDERSTOOD = (
    "Beit", "Bit", "CLIP", "ConvNext", "DeiT", "EfficientNet", "MobileNetV1", "MobileNetV2", "Siglip", "ViT",
)  # fmt: skip
"""Image processors of transformers whose settings say all that they do."""


def of_torchvision(transforms: Any, source: str) -> Preprocessing:
    """What ``weights.transforms()`` does.

    Raises:
        Failure: if it is not torchvision's preset for image classification.
    """
    try:
        (resize,), (crop,) = transforms.resize_size, transforms.crop_size
        return Preprocessing(
            source,
            resize=int(resize),
            crop=(int(crop), int(crop)),
            interpolation=str(transforms.interpolation.value),
            mean=tuple(transforms.mean),
            std=tuple(transforms.std),
        )
    except (AttributeError, TypeError, ValueError):
        raise Failure(
            f"the preprocessing of {source} is not torchvision's for image classification: say what it is with "
            f"--preprocessing none --resize … --crop … --mean … --std …"
        ) from None


def of_huggingface(folder: Path) -> Preprocessing | None:
    """What ``preprocessor_config.json`` says; None if there is no such file.

    Raises:
        Failure: for a file that is no JSON, or a processor that does more than its settings say.
    """
    path = folder / "preprocessor_config.json"
    if not path.exists():
        return None
    way_out = "say what is right with --preprocessing none --resize … --crop … --mean … --std …"
    try:
        if not path.is_file():
            raise ValueError("it is no regular file")
        config = json.loads(texts.read(path))
        if not isinstance(config, dict):
            raise ValueError("it is no table of settings")
    except (ValueError, OSError, RecursionError) as error:
        raise Failure(f"{path} cannot be read as JSON ({error}): mend it, or {way_out}") from None
    kind = str(config.get("image_processor_type") or config.get("feature_extractor_type") or "")
    stem = kind.removesuffix("Fast").removesuffix("ImageProcessor").removesuffix("FeatureExtractor")
    if stem not in UNDERSTOOD:
        raise Failure(f"{path} is for {kind or 'an unnamed processor'}, which fastlrp does not know: {way_out}")
    odd = [key for key in ("do_flip_channel_order", "do_pad") if config.get(key)]
    if odd:
        raise Failure(f"{path} asks for {odd[0]}, which the command line does not do: {way_out}")
    try:
        return _processor(config, stem, f"{path.name} ({kind})")
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise Failure(f"{path} does not say what {kind} needs ({error!r}): {way_out}") from None


def _processor(config: dict[str, Any], stem: str, source: str) -> Preprocessing:
    given: dict[str, Any] = {}
    if config.get("do_resize", True):
        given |= _resizing(config, stem)
    if config.get("do_center_crop", False):
        given["crop"] = _height_width(config["crop_size"])
    given |= {"low": 0.0, "high": 255.0}
    if config.get("do_rescale", True):
        factor = float(config.get("rescale_factor", 1 / 255))
        offset = -1.0 if config.get("rescale_offset", False) else 0.0
        given |= {"low": offset, "high": round(255 * factor, 9) + offset}
    if config.get("do_normalize", True):
        mean, std = tuple(map(float, config["image_mean"])), tuple(map(float, config["image_std"]))
        # EfficientNet with its head divides by the standard deviation twice.
        twice = stem == "EfficientNet" and config.get("include_top", True)
        given |= {"mean": mean, "std": tuple(s * s for s in std) if twice else std}
    return Preprocessing(source, **given)


def _resizing(config: dict[str, Any], stem: str) -> dict[str, Any]:
    size, found = config["size"], {"interpolation": FILTERS[int(config["resample"])]}
    if isinstance(size, int):  # Files of the first versions.
        size = {"height": size, "width": size} if stem in ("ViT", "DeiT", "Beit") else {"shortest_edge": size}
    if "height" in size:
        return {**found, "resize": (int(size["height"]), int(size["width"]))}
    edge = int(size["shortest_edge"])
    if stem != "ConvNext":
        return {**found, "resize": edge}
    if edge >= 384:
        return {**found, "resize": (edge, edge)}
    return {**found, "resize": int(edge / config.get("crop_pct", 224 / 256)), "crop": (edge, edge)}


def _height_width(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (int(size["height"]), int(size["width"]))
