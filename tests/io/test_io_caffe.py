"""Outputs of the LRP Toolbox's Caffe tool, and how every file is replaced."""

from __future__ import annotations

import os
import stat

import numpy as np
import pytest
import torch

from fastlrp import io, nn
from fastlrp.files import replacing
from fastlrp.io import FormatError, read_raw_heatmap, read_top_scores, write_raw_heatmap, write_top_scores
from tests.io import toolbox


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_raw_heatmap_round_trip_is_exact(dtype, tmp_path):
    relevance = torch.randn(3, 5, 4, dtype=dtype) * torch.exp2(torch.randint(-60, 60, (3, 5, 4)).to(dtype))
    write_raw_heatmap(relevance, tmp_path / "cat.png_rawhm.txt")
    back = read_raw_heatmap(tmp_path / "cat.png_rawhm.txt", dtype)
    assert back.dtype == dtype
    assert torch.equal(back, relevance)


def test_raw_heatmap_as_the_caffe_tool_writes_it(tmp_path):
    path = tmp_path / "a_rawhm.txt"
    path.write_text("2\n1 3\n0.5 -1 2e-05 \n-0 4 5 \n")
    assert read_raw_heatmap(path, torch.float64).tolist() == [[[0.5, -1, 2e-05]], [[0, 4, 5]]]
    write_raw_heatmap(np.array([[[0.5, -1.0, 2e-5]], [[0, 4, 5]]]), path)
    assert path.read_text() == "2\n1 3\n0.5 -1.0 2e-05 \n0.0 4.0 5.0 \n"


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("3 3\n", 1, "found 2 values, expected 1: channels"),
        ("0\n", 1, "channels is 0, expected at least 1"),
        ("1\n", 1, "the file ends here, expected height and width"),
        ("1\n2\n", 2, "found 1 values, expected 2: height width"),
        ("1\n2 2\n1 2\n", 3, "the file ends here, expected row 2 of 2 of channel 1 of 1"),
        ("1\n1 2\n1 2 3\n", 3, "found 3 numbers, expected 2: row 1 of 1 of channel 1 of 1"),
        ("1\n1 2\n1 nan\n", 3, "is 'nan': expected a finite number"),
        ("1\n1 2\n1 2\n3 4\n", 4, "found '3 4' after the last row, expected the end of the file"),
        ("999999999\n999999999 1\n1\n", 3, "the file ends here, expected row 2 of 999999999"),
    ],
)
def test_malformed_raw_heatmaps(text, line, message, tmp_path):
    path = tmp_path / "a_rawhm.txt"
    path.write_text(text)
    with pytest.raises(FormatError, match=message) as caught:
        read_raw_heatmap(path)
    assert caught.value.line == line


def test_what_is_no_heatmap_is_not_written(tmp_path):
    path = tmp_path / "a_rawhm.txt"
    with pytest.raises(
        ValueError, match=r"must be \(channels, height, width\), got the shape \(1, 2, 3, 4, 4\).*relevance\[0, 0\]"
    ):
        write_raw_heatmap(torch.rand(1, 2, 3, 4, 4), path)
    with pytest.raises(ValueError, match="relevance contains NaN or infinite entries"):
        write_raw_heatmap(torch.full((1, 1, 1), float("nan")), path)
    with pytest.raises(TypeError, match=r"relevance must be floating-point, got torch\.int64"):
        write_raw_heatmap(torch.ones(1, 1, 1, dtype=torch.int64), path)
    assert not path.exists()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_top_scores_round_trip_is_exact(dtype, tmp_path):
    scores = torch.randn(100, dtype=dtype)
    write_top_scores(scores, tmp_path / "a_toptenscores.txt")
    back = read_top_scores(tmp_path / "a_toptenscores.txt", dtype)
    values, classes = scores.topk(10)
    assert torch.equal(back.classes, classes)
    assert torch.equal(back.scores, values)


def test_top_scores_layout(tmp_path):
    path = tmp_path / "a_toptenscores.txt"
    write_top_scores(torch.tensor([0.25, 3.0, -1.5, 3.0]), path)
    assert path.read_text() == "1 3.0\n3 3.0\n0 0.25\n2 -1.5\n"
    write_top_scores(torch.arange(4.0), path, count=1)
    assert path.read_text() == "3 3.0\n"


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("1 2 3\n", 1, "found 3 values, expected 2: class score"),
        ("1 2\n-1 3\n", 2, "class is -1, expected at least 0"),
        ("1 2\n1 3\n", 2, "class 1 stands here for the second time"),
        ("1 x\n", 1, "number 1 of the score is 'x': expected a number"),
        ("\n", 1, "the file holds no score"),
    ],
)
def test_malformed_top_scores(text, line, message, tmp_path):
    path = tmp_path / "a_toptenscores.txt"
    path.write_text(text)
    with pytest.raises(FormatError, match=message) as caught:
        read_top_scores(path)
    assert caught.value.line == line


def test_top_scores_of_a_batch_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"scores must be those of one sample, \(classes,\), got the shape \(2, 3\)"):
        write_top_scores(torch.rand(2, 3), tmp_path / "a.txt")
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        write_top_scores(torch.rand(3), tmp_path / "a.txt", count=0)


# Every writer replaces its file in one step.

MODEL = nn.Sequential(nn.Linear(2, 2))
WRITERS = {
    "model": ("a.txt", lambda path: io.write_model(MODEL, path)),
    "npy": ("a.npy", lambda path: io.write_array(np.ones((2, 2)), path)),
    "npz": ("a.npz", lambda path: io.write_array(np.ones((2, 2)), path)),
    "mat": ("a.mat", lambda path: io.write_array(np.ones((2, 2)), path)),
    "text": ("a.txt", lambda path: io.write_array(np.ones((2, 2)), path)),
    "heatmap": ("a_rawhm.txt", lambda path: write_raw_heatmap(torch.ones(1, 2, 2), path)),
    "scores": ("a_toptenscores.txt", lambda path: write_top_scores(torch.ones(3), path)),
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file(writer, step, tmp_path, monkeypatch):
    name, write = WRITERS[writer]
    (tmp_path / name).write_text("old")

    def full(*arguments):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(OSError, match="no space left"):
        write(tmp_path / name)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "old"
    write(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_bytes() != b"old"


def test_a_model_that_fails_half_way_leaves_the_old_file(tmp_path, monkeypatch):
    from fastlrp.io import model_text

    path = tmp_path / "net.txt"
    path.write_text(toolbox.TEXT)
    written = []

    def fails_at_the_third(values):
        written.append(values)
        if len(written) == 3:
            raise MemoryError
        return ["1"] * values.size

    monkeypatch.setattr(model_text, "shortest", fails_at_the_third)
    with pytest.raises(MemoryError):
        io.write_model(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), path)
    assert path.read_text() == toolbox.TEXT
    assert len(list(tmp_path.iterdir())) == 1


def test_replacing_keeps_links_and_modes(tmp_path):
    (tmp_path / "real.txt").write_text("old")
    (tmp_path / "real.txt").chmod(0o640)
    (tmp_path / "link.txt").symlink_to("real.txt")
    io.write_model(MODEL, tmp_path / "link.txt")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "real.txt").read_text().startswith("Linear 2 2\n")
    assert stat.S_IMODE((tmp_path / "real.txt").stat().st_mode) == 0o640


def test_where_nothing_can_be_written(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no such folder to write to"):
        io.write_model(MODEL, tmp_path / "no" / "net.txt")
    with pytest.raises(ValueError, match="exists and is not a regular file: it is not replaced"), replacing(tmp_path):
        pass
