"""Files: readable again, whole or not at all."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from PIL import Image

from fastlrp import viz

R = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(0))


def figure():
    return viz.grid(R[None, None], title="a figure")


@pytest.mark.parametrize("name", ["a.png", "a.PNG", "a.bmp", "a.tiff", "name with space.png", "ü.png"])
def test_pictures_are_read_again_as_they_were(tmp_path, name):
    picture = viz.heatmap(R, zoom=4)
    path = viz.save(picture, tmp_path / name)
    assert path == tmp_path / name
    with Image.open(path) as read:
        np.testing.assert_array_equal(np.asarray(read.convert("RGB")), np.asarray(picture))
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("name", ["a.jpg", "a.jpeg", "a.webp", "a.gif"])
def test_formats_that_lose_something(tmp_path, name):
    for picture, size in ((viz.heatmap(R, zoom=4), (32, 32)), (figure(), viz.to_image(figure(), 200).size)):
        with Image.open(viz.save(picture, str(tmp_path / name))) as read:
            assert read.size == size
    small, large = (viz.save(viz.heatmap(R, zoom=9), tmp_path / f"{q}.jpg", quality=q).stat().st_size for q in (10, 95))
    assert small < large


def test_figures(tmp_path):
    made = figure()
    expected = viz.to_image(made, 200)
    with Image.open(viz.save(made, tmp_path / "a.png")) as read:
        np.testing.assert_array_equal(np.asarray(read), np.asarray(expected))
        assert read.info["dpi"] == pytest.approx((200, 200), abs=0.1)
    with Image.open(viz.save(made, tmp_path / "b.png", dpi=100)) as read:
        assert read.size == viz.to_image(made).size == (expected.width // 2, expected.height // 2)
    assert viz.save(made, tmp_path / "a.pdf").read_bytes().startswith(b"%PDF")
    assert "<svg" in viz.save(made, tmp_path / "a.svg").read_text()
    assert sorted(os.listdir(tmp_path)) == ["a.pdf", "a.png", "a.svg", "b.png"]


def test_permissions_are_those_of_any_new_file(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    path = viz.save(viz.heatmap(R), tmp_path / "a.png")
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


class FullDisk(Image.Image):
    """Writes half a picture, then the disk is full."""

    def save(self, file, **options):
        file.write(b"\x89PNG half of it")
        raise OSError(28, "No space left on device")


class Interrupted(Image.Image):
    def save(self, file, **options):
        raise KeyboardInterrupt


@pytest.mark.parametrize(("kind", "error"), [(FullDisk, OSError), (Interrupted, KeyboardInterrupt)])
def test_what_was_there_stays_when_writing_fails(tmp_path, kind, error):
    path = viz.save(viz.heatmap(R), tmp_path / "a.png")
    before = path.read_bytes()
    with pytest.raises(error):
        viz.save(kind(), path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.png"]
    viz.save(viz.heatmap(-R), path)
    assert path.read_bytes() != before


def test_errors(tmp_path):
    picture = viz.heatmap(R)
    with pytest.raises(FileNotFoundError, match=r"there is no folder '.*new': make it first, pathlib.Path"):
        viz.save(picture, tmp_path / "new" / "a.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(IsADirectoryError, match="is a folder: name a file in it"):
        viz.save(picture, tmp_path / "folder.png")
    with pytest.raises(ValueError, match=r"'a' ends in nothing: use .png, .jpg, .webp$"):
        viz.save(picture, tmp_path / "a")
    with pytest.raises(ValueError, match=r"'a.xyz' ends in .xyz: use .png, .jpg, .webp, .pdf, .svg"):
        viz.save(figure(), tmp_path / "a.xyz")
    with pytest.raises(ValueError, match=r"'a.svg' ends in .svg: use .png"):
        viz.save(picture, tmp_path / "a.svg")
    with pytest.raises(TypeError, match="only a Pillow image or a matplotlib figure can be saved, got ndarray"):
        viz.save(np.zeros((2, 2, 3), np.uint8), tmp_path / "a.png")
    assert os.listdir(tmp_path) == ["folder.png"]
