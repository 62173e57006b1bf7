"""The text files that the LRP Toolbox's Caffe tool leaves beside an image: ``_rawhm.txt`` and ``_toptenscores.txt``.

Source: LRP Toolbox, manual, "Caffe output formats".
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastlrp.files import PathLike, read_bytes, replacing
from fastlrp.io.lines import Lines, shortest

_TEXT_BYTES = 2**30


class TopScores(NamedTuple):
    """Classes (K,) int64 from 0 and their scores (K,), as they stand in the file: the highest first."""

    classes: Tensor
    scores: Tensor


def read_raw_heatmap(path: PathLike, dtype: torch.dtype = torch.float32, *, max_bytes: int = _TEXT_BYTES) -> Tensor:
    """Relevance (channels, height, width) from a ``_rawhm.txt``.

    The Caffe tool puts the channels in the order red, green, blue.

    Args:
        path: the file. dtype: of the result.
        max_bytes: the largest file that is read.

    Raises:
        fastlrp.io.FormatError: with the line, what was found and what was expected. OSError: as :func:`open`.

    Example::

        fastlrp.io.write_raw_heatmap(relevance[0, 0], "cat_rawhm.txt")
        assert torch.equal(fastlrp.io.read_raw_heatmap("cat_rawhm.txt"), relevance[0, 0])
    """
    lines = Lines(path, read_bytes(path, max_bytes))
    (channels,) = lines.integers(lines.take("the number of channels").split(), "channels")
    height, width = lines.integers(lines.take("height and width").split(), "height width")
    rows = []
    for channel in range(1, channels + 1):
        for row in range(1, height + 1):
            what = f"row {row} of {height} of channel {channel} of {channels}"
            rows.append(lines.numbers(lines.take(what).split(), width, what))
    lines.end("the last row")
    lines.check_last()
    return torch.from_numpy(np.stack(rows).reshape(channels, height, width)).to(_floating(dtype))


def write_raw_heatmap(relevance: Tensor | np.ndarray, path: PathLike) -> None:
    """Write relevance (channels, height, width) as a ``_rawhm.txt``. The file is replaced in one step.

    Each number has the fewest digits that read back as the same float32 or float64.

    Args:
        relevance: of one sample and target. path: the file.

    Raises:
        ValueError: another number of axes, an empty one, NaN or infinity. TypeError: no floats.

    Example::

        fastlrp.io.write_raw_heatmap(relevance[0, 0], "cat_rawhm.txt")
    """
    values = _floats(relevance, "relevance")
    if values.ndim != 3 or 0 in values.shape:
        raise ValueError(
            f"relevance must be (channels, height, width), got the shape {values.shape}: of an explainer's result "
            "(B, K, C, H, W) take one, relevance[0, 0]"
        )
    channels, height, width = values.shape
    with replacing(path) as stream:
        stream.write(f"{channels}\n{height} {width}\n".encode("ascii"))
        for row in values.reshape(-1, width):
            # The Caffe tool puts a blank behind every number, the last one too.
            stream.write(" ".join([*shortest(row), "\n"]).encode("ascii"))


def read_top_scores(path: PathLike, dtype: torch.dtype = torch.float32) -> TopScores:
    """Classes and scores from a ``_toptenscores.txt`` (the tool itself calls it ``_top10scores.txt``).

    Args:
        path: the file. dtype: of the scores.

    Raises:
        fastlrp.io.FormatError: with the line, what was found and what was expected. OSError: as :func:`open`.

    Example::

        fastlrp.io.write_top_scores(torch.tensor([0.5, 2.0, 1.0]), "cat_toptenscores.txt")
        classes, scores = fastlrp.io.read_top_scores("cat_toptenscores.txt")
        assert classes.tolist() == [1, 2, 0]
    """
    lines = Lines(path, read_bytes(path, _TEXT_BYTES))
    classes, scores = [], []
    while (line := lines.take_or_end()) is not None:
        if not line.strip():
            lines.end("an empty line")
            break
        words = line.split()
        if len(words) != 2:
            lines.fail(f"found {len(words)} values, expected 2: class score")
        classes += lines.integers(words[:1], "class", least=0)
        scores += lines.numbers(words[1:], 1, "the score", finite=False).tolist()
        if classes[-1] in classes[:-1]:
            lines.fail(f"class {classes[-1]} stands here for the second time")
    if not classes:
        lines.fail("the file holds no score")
    lines.check_last()
    return TopScores(torch.tensor(classes), torch.tensor(scores, dtype=torch.float64).to(_floating(dtype)))


def write_top_scores(scores: Tensor | np.ndarray, path: PathLike, count: int = 10) -> None:
    """Write the highest scores (classes,) of one sample as a ``_toptenscores.txt``: lines of ``class score``.

    At most ``count`` lines, the highest first; of equal scores the lower class first. The file is replaced in one step.

    Args:
        scores: of one sample. path: the file. count: of lines.

    Raises:
        ValueError: another number of axes, none, NaN or infinity. TypeError: no floats.

    Example::

        fastlrp.io.write_top_scores(torch.tensor([0.5, 2.0, 1.0]), "cat_toptenscores.txt", count=2)
    """
    values = _floats(scores, "scores")
    if values.ndim != 1 or not len(values):
        raise ValueError(f"scores must be those of one sample, (classes,), got the shape {values.shape}")
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    best = np.argsort(-values, kind="stable")[:count]
    with replacing(path) as stream:
        for number, score in zip(best.tolist(), shortest(values[best]), strict=True):
            stream.write(f"{number} {score}\n".encode("ascii"))


def _floats(values: Tensor | np.ndarray, name: str) -> np.ndarray:
    tensor = values.detach().cpu() if isinstance(values, Tensor) else torch.from_numpy(np.array(values))
    if not tensor.is_floating_point():
        raise TypeError(f"{name} must be floating-point, got {tensor.dtype}")
    array = (tensor if tensor.dtype == torch.float64 else tensor.float()).contiguous().numpy()
    if not np.isfinite(array).all():
        raise ValueError(f"{name} contains NaN or infinite entries")
    return array


def _floating(dtype: torch.dtype) -> torch.dtype:
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(f"dtype must be a floating-point torch.dtype, got {dtype}")
    return dtype
