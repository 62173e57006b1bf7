"""From pictures to inputs: what torchvision's evaluation transforms make of them, and every kind of picture."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from fastlrp.cli import metadata, preprocess
from fastlrp.cli.errors import Failure
from fastlrp.cli.preprocess import IMAGENET, Preprocessing
from tests.torchvision_models import import_models

NONE = {
    "preprocessing": "auto", "resize": None, "crop": None, "interpolation": None, "range": None, "mean": None,
    "std": None, "grey": False,
}  # fmt: skip


def picture(height=37, width=50, mode="RGB", seed=0):
    generator = np.random.default_rng(seed)
    return Image.fromarray(generator.integers(0, 255, (height, width, 3), np.uint8)).convert(mode)


@pytest.mark.parametrize("size", [(37, 50), (50, 37), (64, 64), (301, 299), (224, 224), (10, 400)])
@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0", "vit_b_16", "convnext_tiny"])
def test_it_is_what_torchvision_does(name, size):
    transforms = import_models().get_model_weights(name).DEFAULT.transforms()
    ours = metadata.of_torchvision(transforms, name)
    image = picture(*size)
    torch.testing.assert_close(ours.tensor(ours.picture(image)), transforms(image), rtol=0, atol=1e-6)


def test_imagenet_is_torchvisions_first_recipe():
    transforms = import_models().get_model_weights("resnet18").IMAGENET1K_V1.transforms()
    assert metadata.of_torchvision(transforms, IMAGENET.source) == IMAGENET


def test_another_kind_of_transforms():
    with pytest.raises(Failure, match=r"is not torchvision's for image classification: .* --preprocessing none"):
        metadata.of_torchvision(lambda image: image, "torchvision:raft@X")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "0:1"),
        ({"range": (-1.0, 1.0)}, "-1:1"),
        ({"range": (0.0, 255.0)}, "0:255"),
        ({"mean": (0.5,), "std": (0.25,)}, "-2:2"),
        ({"range": (0.0, 255.0), "mean": (127.5,), "std": (255.0,)}, "-0.5:0.5"),
    ],
)
def test_ranges(given, expected):
    ours = preprocess.chosen(None, {**NONE, **given})
    black, white = (ours.tensor(ours.picture(Image.new("RGB", (2, 2), colour))) for colour in ("black", "white"))
    assert f"{float(black.max()):g}:{float(white.min()):g}" == expected
    low, high = ours.bounds()
    torch.testing.assert_close(low.expand(1, 3, 2, 2)[0], black)
    torch.testing.assert_close(high.expand(1, 3, 2, 2)[0], white)


def test_options_change_a_models_own():
    changed = preprocess.chosen(IMAGENET, {**NONE, "resize": 64})
    assert (changed.resize, changed.crop, changed.mean) == (64, None, IMAGENET.mean)
    assert changed.source == "ImageNet defaults, changed by options"
    assert preprocess.chosen(IMAGENET, {**NONE, "preprocessing": "none"}) == Preprocessing()
    assert preprocess.chosen(IMAGENET, NONE) is IMAGENET
    with pytest.raises(Failure, match="--grey: the model's mean is for three channels: give --mean with one number"):
        preprocess.chosen(IMAGENET, {**NONE, "grey": True})
    one = preprocess.chosen(IMAGENET, {**NONE, "grey": True, "mean": (0.5,), "std": (0.2,)})
    assert one.tensor(one.picture(picture())).shape == (1, 224, 224)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "1", "CMYK", "LA", "I;16", "I", "F", "HSV", "YCbCr"])
def test_every_kind_of_picture_is_an_input(mode):
    image = picture().convert("L").convert("I;16") if mode == "I;16" else picture(mode=mode)
    for grey in (False, True):
        x = Preprocessing(grey=grey).tensor(Preprocessing(grey=grey).picture(image))
        assert x.shape == (1 if grey else 3, 37, 50)
        assert x.dtype == torch.float32
        assert x.is_contiguous()
        assert 0 <= float(x.min()) <= float(x.max()) <= 1


@pytest.mark.parametrize("crop", [(4, 4), (5, 9), (11, 8), (13, 3)])
@pytest.mark.parametrize("size", [(1, 5), (8, 6), (10, 13)])
def test_a_crop_of_a_smaller_picture_is_torchvisions(crop, size):
    import_models()
    from torchvision.transforms.functional import center_crop

    image = picture(*size)
    np.testing.assert_array_equal(Preprocessing(crop=crop).picture(image), center_crop(image, list(crop)))


def written(path, values):
    if path.suffix == ".pgm":
        largest = 4095 if "12" in path.name else 65535
        numbers = np.rint(values * largest).astype(">u2")
        path.write_bytes(b"P5 4 1 %d\n" % largest + numbers.tobytes())
    elif "float" in path.name:
        Image.fromarray((values * (255 if "bytes" in path.name else 1)).astype(np.float32)).save(path)
    else:
        kind = {"16": np.uint16, "32": np.int32}[path.name[:2]]
        Image.fromarray(np.rint(values * 65535).astype(kind)).save(path)


@pytest.mark.parametrize("name", ["16.png", "16.tif", "32.tif", "16.pgm", "12.pgm", "float.tif", "float_bytes.tif"])
def test_pictures_of_more_than_bytes_are_scaled(tmp_path, name):
    values = np.array([[0.0, 0.25, 0.5, 1.0]])
    written(tmp_path / name, values)
    grey = Preprocessing(grey=True)
    with Image.open(tmp_path / name) as image:
        x = grey.tensor(grey.picture(image))
    np.testing.assert_allclose(x[0], values, atol=1 / 255)


@pytest.mark.parametrize(
    ("numbers", "says"),
    [
        (np.array([[-1, 3]], np.int32), "image is of integers from -1 to 3: scale them to 8 or 16 bits"),
        (np.array([[0, 70000]], np.int32), "image is of integers from 0 to 70000"),
        (np.array([[0.0, 256.0]], np.float32), r"image is of floats from 0 to 256: scale them to \[0, 1\], or to 0"),
        (np.array([[0.0, np.nan]], np.float32), "image is of floats from nan to nan"),
    ],
)
def test_pictures_of_other_numbers_are_refused(numbers, says):
    with pytest.raises(ValueError, match=says):
        Preprocessing().picture(Image.fromarray(numbers))


def test_upright_and_opaque(tmp_path):
    image = Image.new("RGB", (30, 20), "black")
    image.paste("white", (0, 0, 15, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # The camera was turned: the left side is up.
    image.save(tmp_path / "turned.png", exif=exif)
    upright = Preprocessing().picture(Image.open(tmp_path / "turned.png"))
    assert upright.size == (20, 30)
    assert upright.getpixel((10, 2)) == (255, 255, 255)
    assert upright.getpixel((10, 27)) == (0, 0, 0)
    clear = Image.new("RGBA", (2, 2), (0, 0, 0, 0))
    assert Preprocessing().picture(clear).getpixel((0, 0)) == (255, 255, 255)


def config(**fields):
    defaults = {"do_resize": True, "do_rescale": True, "do_normalize": True, "rescale_factor": 1 / 255, "resample": 3}
    return {**defaults, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.1, 0.2, 0.3], **fields}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (
            config(image_processor_type="ViTImageProcessor", size={"height": 20, "width": 30}, resample=2),
            {"resize": (20, 30), "crop": None, "interpolation": "bilinear"},
        ),
        (
            config(feature_extractor_type="ViTFeatureExtractor", size=20),
            {"resize": (20, 20), "crop": None, "interpolation": "bicubic"},
        ),
        (
            config(image_processor_type="ConvNextImageProcessor", size={"shortest_edge": 224}, crop_pct=0.875),
            {"resize": 256, "crop": (224, 224)},
        ),
        (
            config(image_processor_type="ConvNextImageProcessorFast", size={"shortest_edge": 384}),
            {"resize": (384, 384), "crop": None},
        ),
        (
            config(
                image_processor_type="CLIPImageProcessor", size={"shortest_edge": 20}, do_center_crop=True, crop_size=16
            ),
            {"resize": 20, "crop": (16, 16)},
        ),
        (
            config(image_processor_type="EfficientNetImageProcessor", size={"height": 9, "width": 9}, include_top=True),
            {"std": (0.1**2, 0.2**2, 0.3**2)},
        ),
        (
            config(
                image_processor_type="EfficientNetImageProcessor", size={"height": 9, "width": 9}, include_top=False,
                rescale_factor=1 / 127.5, rescale_offset=True,
            ),
            {"low": -1.0, "high": 1.0, "std": (0.1, 0.2, 0.3)},
        ),
        (
            config(image_processor_type="BitImageProcessor", do_resize=False, do_rescale=False, do_normalize=False),
            {"resize": None, "low": 0.0, "high": 255.0, "mean": (0.0,), "std": (1.0,)},
        ),
    ],
)  # fmt: skip
def test_preprocessor_configs(tmp_path, fields, expected):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(fields))
    found = metadata.of_huggingface(tmp_path)
    for name, value in expected.items():
        same = getattr(found, name) == (value if value is None or isinstance(value, str) else pytest.approx(value))
        assert same, (name, getattr(found, name), value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read as JSON"),
        (
            json.dumps(config(image_processor_type="OwlImageProcessor")),
            "is for OwlImageProcessor, which fastlrp does not",
        ),
        (json.dumps(config()), "is for an unnamed processor"),
        (json.dumps(config(image_processor_type="ViTImageProcessor", do_pad=True)), "asks for do_pad"),
        (json.dumps(config(image_processor_type="ViTImageProcessor")), "does not say what ViTImageProcessor needs"),
    ],
)
def test_preprocessor_configs_that_are_not_understood(tmp_path, text, message):
    (tmp_path / "preprocessor_config.json").write_text(text)
    with pytest.raises(Failure, match=message) as caught:
        metadata.of_huggingface(tmp_path)
    assert "--preprocessing none --resize … --crop … --mean … --std …" in str(caught.value)


def test_no_preprocessor_config(tmp_path):
    assert metadata.of_huggingface(tmp_path) is None
