"""TensorBoard: what is written under which tag; with a writer that remembers, and with the real one where it is."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import fastlrp
from fastlrp import viz


class Writer:
    """Remembers what it was given."""

    def __init__(self) -> None:
        self.images, self.histograms = {}, {}

    def add_image(self, tag, array, step, dataformats="CHW"):
        assert dataformats == "HWC"
        assert tag not in self.images
        self.images[tag] = (array, step)

    def add_histogram(self, tag, values, step):
        assert tag not in self.histograms
        self.histograms[tag] = (values, step)


def layers() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 6 * 8, 5)).eval()
    return fastlrp.Explainer(model, "epsilon")(torch.rand(3, 1, 6, 8), [4, 0], layers=["1", "2"])


@pytest.mark.slow
def test_pictures_and_histograms_per_layer():
    writer, relevance = Writer(), layers()
    viz.add_to_tensorboard(writer, relevance, 7, targets=["five", 0])
    assert set(writer.histograms) == {f"relevance/{name}" for name in ("1", "2", "output", "input")}
    assert set(writer.images) == {f"relevance/{n}/{t}" for n in ("1", "input") for t in ("five", "0")}
    for name, (values, step) in writer.histograms.items():
        np.testing.assert_array_equal(values, relevance[name.removeprefix("relevance/")].numpy().ravel())
        assert step == 7
    picture, step = writer.images["relevance/1/0"]
    assert step == 7
    assert picture.dtype == np.uint8
    # 112 // 6 = 18 pixels for each entry; three samples side by side, with white gaps of 4.
    assert picture.shape == (6 * 18, 3 * 8 * 18 + 2 * 4, 3)
    level = viz.shared_level(relevance["1"])
    for sample in range(3):
        start = sample * (8 * 18 + 4)
        expected = np.asarray(viz.heatmap(relevance["1"][sample, 1], level=level, zoom=18))
        np.testing.assert_array_equal(picture[:, start : start + 8 * 18], expected)
    assert (picture[:, 144:148] == 255).all()


def test_options():
    writer = Writer()
    viz.add_to_tensorboard(writer, {"x": torch.randn(5, 1, 150, 160)}, None, tag="lrp", max_samples=2, cmap="gray")
    picture, step = writer.images["lrp/x/targets[0]"]
    assert step is None
    assert picture.shape == (150, 2 * 160 + 4, 3)
    assert (picture[..., 0] == picture[..., 2]).all()
    viz.add_to_tensorboard(empty := Writer(), {}, 0)
    assert not empty.histograms


def test_tags_are_the_names_of_classes():
    """Where a target is another class in each sample it keeps its number."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).eval()
    x = torch.randn(2, 1, 3, 4)
    with fastlrp.Explainer(model, "epsilon", labels=["cat", "dog", "eel"]).forward(x) as record:
        for targets, tags in (
            ([2, {"dog": 1, "cat": -1}], ["eel", "dog - cat"]),
            (torch.tensor([[1, 0], [1, 2]]), ["dog", "targets[1]"]),
        ):
            viz.add_to_tensorboard(writer := Writer(), {"input": record.relevance(targets)}, 0, record.asked(targets))
            assert list(writer.images) == [f"relevance/input/{tag}" for tag in tags]
        with pytest.raises(ValueError, match="targets must name the 1 targets of layer 'input'"):
            viz.add_to_tensorboard(Writer(), {"input": record.relevance(1)}, 0, record.asked([1, 2]))


@pytest.mark.parametrize(
    ("writer", "given", "options", "error", "says"),
    [
        (object(), {"x": torch.ones(1, 1, 2, 2)}, {}, TypeError, "writer must have add_image"),
        (Writer(), torch.ones(1, 1, 2, 2), {}, TypeError, "must be a dict from layer to relevance"),
        (Writer(), {"x": torch.ones(2, 2)}, {}, ValueError, r"relevance_by_layer\['x'\] must be \(B, K, …\)"),
        (Writer(), {"x": torch.ones(0, 1, 2, 2)}, {}, ValueError, r"must be \(B, K, …\)"),
        (
            Writer(),
            {"x": torch.ones(1, 2, 2, 2)},
            {"targets": ["a"]},
            ValueError,
            "must name the 2 targets of layer 'x'",
        ),
        (Writer(), {"x": torch.ones(1, 2, 2, 2)}, {"targets": "ab"}, ValueError, "must name the 2 targets"),
        (Writer(), {"a": torch.ones(1, 1, 2), "x": torch.ones(1, 1, 2, 2) / 0}, {}, ValueError, "4 NaN or infinite"),
        (Writer(), {"x": torch.ones(1, 1, 2, 2)}, {"max_samples": 0}, ValueError, "max_samples must be at least 1"),
        (Writer(), {"x": torch.ones(1, 1, 2, 2)}, {"normalize": "no"}, ValueError, "unknown normalize"),
    ],
)
def test_errors_come_before_anything_is_written(writer, given, options, error, says):
    with pytest.raises(error, match=says):
        viz.add_to_tensorboard(writer, given, 0, **options)
    assert not isinstance(writer, Writer) or not (writer.images or writer.histograms)


def test_real_writer(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    relevance = layers()
    with SummaryWriter(tmp_path) as writer:
        for step in (1, 2):
            viz.add_to_tensorboard(writer, relevance, step)
    events = EventAccumulator(str(tmp_path), size_guidance={"images": 0, "histograms": 0})
    events.Reload()
    assert set(events.Tags()["histograms"]) == {f"relevance/{name}" for name in relevance}
    first = events.Images("relevance/input/targets[0]")
    assert [event.step for event in first] == [1, 2]
    read = np.asarray(Image.open(io.BytesIO(first[0].encoded_image_string)))
    remembered = Writer()
    viz.add_to_tensorboard(remembered, relevance, 1)
    np.testing.assert_array_equal(read, remembered.images["relevance/input/targets[0]"][0])
    histogram = events.Histograms("relevance/input")[0].histogram_value
    assert histogram.num == relevance["input"].numel()
    assert histogram.sum == pytest.approx(float(relevance["input"].sum()), rel=1e-4)
