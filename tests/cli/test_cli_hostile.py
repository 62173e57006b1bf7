"""What the command line reads: pipes, devices, bombs, lists without end."""

from __future__ import annotations

import os
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from fastlrp.cli import arrays, labels, metadata, texts, weights
from fastlrp.cli.errors import Failure, InputFailure
from fastlrp.cli.inputs import Item
from fastlrp.cli.preprocess import Preprocessing
from fastlrp.cli.reading import Reader
from fastlrp.files import whole
from tests.cli.conftest import MODEL

READER = Reader(Preprocessing(), torch.float32, torch.device("cpu"))


def test_pipes_and_devices_as_inputs(tmp_path):
    os.mkfifo(tmp_path / "x.png")
    os.mkfifo(tmp_path / "x.npy")
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    (tmp_path / "zero.npy").symlink_to("/dev/zero")
    for name in ("x.png", "x.npy", "zero.jpg", "zero.npy"):
        with pytest.raises(InputFailure, match="expected a regular file, found a device, socket or pipe"):
            READER.read(Item(tmp_path / name, name))


def test_a_pipe_among_the_inputs_is_one_failed_input(run, tmp_path):
    os.mkfifo(tmp_path / "x.npy")
    done = run("explain", MODEL, tmp_path / "x.npy", "-o", tmp_path / "out")
    assert done.code == 1
    assert "expected a regular file" in done.err


def test_lists_and_names_without_end(run, tmp_path, monkeypatch):
    monkeypatch.setattr(texts, "TEXT_BYTES", 1000)
    monkeypatch.setattr(texts.read, "__defaults__", (1000,))
    with pytest.raises(Failure, match="more than 1000 bytes"):
        labels.read(Path("/dev/zero"))
    done = run("explain", MODEL, "--list", "/dev/zero", "-o", tmp_path / "out")
    assert done.code == 2
    assert "more than 1000 bytes" in done.err
    for name, text in (("a.json", "[" * 900), ("b.json", '{"a": 1}'), ("c.json", "3"), ("d.json", '["a"')):
        (tmp_path / name).write_text(text)
        with pytest.raises(Failure, match="is neither a JSON list of names nor"):
            labels.read(tmp_path / name)
    with pytest.raises(Failure, match="is no UTF-8 text"):
        labels.read(tmp_path)


def test_settings_of_a_processor_that_are_none(tmp_path):
    path = tmp_path / "preprocessor_config.json"
    for text in ("[]", "3", "[" * 10**5, '{"a": ', ""):
        path.write_text(text)
        with pytest.raises(Failure, match="cannot be read as JSON"):
            metadata.of_huggingface(tmp_path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(Failure, match="it is no regular file"):
        metadata.of_huggingface(tmp_path)


def test_max_input_raises_and_lowers_the_bound(run, tmp_path):
    np.savez_compressed(tmp_path / "x.npz", x=np.zeros((1, 3, 20, 24), np.float32))
    words = ("explain", MODEL, tmp_path / "x.npz", "-f", "npy", "-o", tmp_path / "out")
    refused = run(*words, "--max-input", "1KB")
    assert refused.code == 1
    assert "more than max_bytes=1024" in refused.err
    assert run(*words, "--max-input", "1MB").code == 0
    wrong = run(*words, "--max-input", "much")
    assert wrong.code == 2
    assert "--max-input" in wrong.err
    assert arrays.limit({"max_input": None}) is None


def chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def png(width: int, height: int, rows: bytes) -> bytes:
    size = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x00\x00\x00\x00"
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_images_that_declare_too_much(tmp_path):
    (tmp_path / "bomb.png").write_bytes(png(100_000, 100_000, b"\0"))
    with pytest.raises(InputFailure, match="decompression bomb"):
        READER.read(Item(tmp_path / "bomb.png", "bomb.png"))
    (tmp_path / "strip.png").write_bytes(png(60_000, 1, bytes(60_001)))
    strip = Reader(Preprocessing(resize=256), torch.float32, torch.device("cpu"))
    with pytest.raises(InputFailure, match="resized it would be 256 x 15360000 pixels, more than"):
        strip.read(Item(tmp_path / "strip.png", "strip.png"))


def test_postscript_under_the_name_of_an_image_is_not_interpreted(tmp_path, monkeypatch):
    """Pillow goes by content, and gives PostScript to Ghostscript, another program."""
    from PIL import EpsImagePlugin, Image

    ran = []

    def mark(*arguments, **options):
        ran.append(arguments)
        return Image.new("RGB", (8, 8)).im

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", mark)
    path = tmp_path / "x.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n")
    with Image.open(path) as image:
        image.load()
    assert ran, "Pillow by itself would"
    ran.clear()
    with pytest.raises(InputFailure, match="is no image that Pillow knows"):
        READER.read(Item(path, "x.png"))
    assert not ran


@pytest.mark.parametrize(
    "kind", ["png", "jpg", "jpeg", "bmp", "gif", "tif", "tiff", "webp", "ppm", "pgm", "pbm", "pnm"]
)
def test_every_kind_of_image_is_read(kind, tmp_path):
    from PIL import Image

    mode = {"pgm": "L", "pbm": "1"}.get(kind, "RGB")
    Image.new("RGB", (6, 5), (255, 0, 0)).convert(mode).save(tmp_path / f"x.{kind}")
    assert READER.read(Item(tmp_path / f"x.{kind}", f"x.{kind}")).x.shape == (3, 5, 6)


def test_an_image_cut_anywhere_is_refused_or_read(tmp_path):
    whole = png(3, 2, b"\0abc\0def")
    (tmp_path / "whole.png").write_bytes(whole)
    expected = READER.read(Item(tmp_path / "whole.png", "whole.png")).x
    for end in range(len(whole)):
        (tmp_path / "x.png").write_bytes(whole[:end])
        try:
            found = READER.read(Item(tmp_path / "x.png", "x.png")).x
        except InputFailure:
            continue
        assert torch.equal(found, expected), "only a check sum or the end mark is missing"


def test_weights_that_unpack_to_more_than_they_are(tmp_path):
    torch.save({"w": torch.zeros(10**5)}, tmp_path / "w.pt")
    with zipfile.ZipFile(tmp_path / "w.pt") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    assert weights.read(tmp_path / "w.pt")["w"].shape == (10**5,)
    with pytest.raises(Failure, match="is a compressed archive"):
        weights.read(tmp_path / "bomb.pt")


def test_weights_cut_anywhere_are_refused(tmp_path):
    torch.save({"w": torch.ones(2)}, tmp_path / "whole.pt")
    whole = (tmp_path / "whole.pt").read_bytes()
    for end in range(0, len(whole), 37):
        (tmp_path / "w.pt").write_bytes(whole[:end])
        with pytest.raises(Failure):
            weights.read(tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"0": "cat", "1": "dog", "0": "fox"}', "names class 0 twice, 'cat' and 'fox'"),
        ('{"0": "cat", "00": "fox"}', "names class 0 twice, 'cat' and 'fox'"),
        ('{"cat": 0, "dog": 1}', "'cat' is no number: it leads from name to number, turn it around"),
        ('["cat", null]', "class 1 is called None, which is no text"),
        ('{"0": ["cat", "dog"]}', r"class 0 is called \['cat', 'dog'\], which is no text"),
        ('"abcd"', 'neither a JSON list of names nor {"0": "name", …}: it holds \'abcd\''),
        ("[" * 100_000, "neither a JSON list of names"),
    ],
)
def test_names_that_would_be_others(text, says, tmp_path):
    path = tmp_path / "names.json"
    path.write_text(text)
    with pytest.raises(Failure, match=says):
        labels.read(path)


def test_names_of_imagenets_index(tmp_path):
    path = tmp_path / "imagenet_class_index.json"
    path.write_text('{"0": ["n01440764", "tench"], "1": ["n01443537", "goldfish"]}')
    assert labels.read(path) == {0: "tench", 1: "goldfish"}


def test_a_name_is_a_line(tmp_path):
    """Not what else ends a line for Python: the classes behind it would have the name of the one before."""
    path = tmp_path / "names.txt"
    path.write_bytes("cat\u2028kitten\r\ndog\x0c\nfox\x85\n".encode())
    assert labels.read(path) == {0: "cat\u2028kitten", 1: "dog", 2: "fox"}


def test_the_class_that_is_none_is_named():
    with pytest.raises(Failure, match=r"x.json names class -1, and the model has 10 classes"):
        labels.check({2: "cat", -1: "dog"}, "x.json", 10)


def test_a_report_takes_no_devices_place(run, photos, tmp_path):
    """Renamed over, as root may, ``/dev/null`` would be a file from then on."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    done = run("report", MODEL, photos / "a.png", "-o", pipe)
    assert done.code == 2
    assert "is a device, socket or pipe: name a file, for instance report.html" in done.err
    with pytest.raises(FileExistsError, match="it is no regular file, and is not replaced"), whole(pipe):
        pass
    assert pipe.is_fifo()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["photos", "pipe"]
