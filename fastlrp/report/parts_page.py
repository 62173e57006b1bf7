"""The page of parts: point at a patch or token and see its classes, choose a class and see its parts."""

from __future__ import annotations

import base64
import math
import os
import zlib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from fastlrp.files import whole
from fastlrp.report import png
from fastlrp.report.page import MAX_BYTES
from fastlrp.report.page_text import policy, safe_json, short, template
from fastlrp.report.parts import Parts

SCRIPTS = ("data", "codec", "colour", "parts_state", "parts_stage", "parts_list", "parts_app")
_TOP = 2**15 - 1
LARGEST = 256
"""Cells of the map of places along its longer side; finer ones lose nothing that a screen shows."""


def write_parts(
    path: str | os.PathLike[str],
    samples: Sequence[Parts],
    *,
    title: str,
    composite: str = "",
    model: str = "",
    unit: str = "score",
    max_bytes: int | None = MAX_BYTES,
) -> Path:
    """Write one HTML file that shows the classes of each part and the parts of each class, without a server.

    Relevance is stored as ``q * scale`` with an integer ``q`` of 16 bits and a scale for each target, so that what is
    shown is off by ``max|R| / 65534`` of the target's largest part at most.

    Args:
        path: where to; folders are made. samples: from :func:`fastlrp.report.collect_parts`, or made by hand.
        title, composite, model, unit: as for :func:`fastlrp.report.write`.
        max_bytes: size of the file at most; None: no limit.

    Returns:
        the path.

    Raises:
        ValueError: without samples, or for a file that would be larger. ImportError: without Jinja2.
        OSError: if it cannot be written.
        IsADirectoryError: where ``path`` is a folder.

    Example::

        from fastlrp import report

        report.write_parts("parts.html", report.collect_parts(explainer, x, groups.patches(8)), title="two pictures")
    """
    samples = list(samples)
    if not samples or not all(isinstance(sample, Parts) for sample in samples):
        raise ValueError("samples must be at least one fastlrp.report.Parts; fastlrp.report.collect_parts makes them")
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: name the file, for instance {path / 'parts.html'}")
    about = {"title": str(title), "composite": str(composite), "model": str(model), "unit": str(unit)}
    pieces = _pieces(samples, about)
    size, limit = sum(map(len, pieces)), math.inf if max_bytes is None else max_bytes
    if size > limit:
        raise ValueError(
            f"the page has {size} bytes, max_bytes={max_bytes}: keep fewer targets (collect_parts(…, keep=500)), take "
            f"larger parts, or write fewer samples in one page"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as file:
        file.writelines(pieces)
    return path


def _pieces(samples: list[Parts], about: dict[str, str]) -> list[bytes]:
    blocks: dict[str, str] = {}
    heads = [_head(sample, i, blocks) for i, sample in enumerate(samples)]
    files = resources.files("fastlrp.report") / "templates"
    style = "".join((files / f"{name}.css").read_text(encoding="utf-8") for name in ("base", "parts"))
    code = "\n".join((files / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS)
    script = f"(() => {{\n'use strict';\n{code}\n}})();\n"
    pieces = template((files / "parts.html.j2").read_text(encoding="utf-8")).generate(
        **about, style=style, script=script, policy=policy(style, script),
        meta=safe_json({**about, "samples": heads}), blocks=blocks,
    )  # fmt: skip
    return [piece.encode("utf-8", "xmlcharrefreplace") for piece in pieces]


def _head(sample: Parts, i: int, blocks: dict[str, str]) -> dict[str, Any]:
    R = np.asarray(sample.relevance, np.float64)
    scales = np.abs(R).max(1) / _TOP
    q = np.rint(R / np.where(scales > 0, scales, 1.0)[:, None]).astype("<i2")
    # All low bytes, then all high bytes, which deflate joins far better.
    blocks[f"parts-{i}"] = _packed(q.reshape(-1, 1).view(np.uint8).T)
    step = 1 if sample.places is None else -(-max(np.asarray(sample.places).shape) // LARGEST)
    places = None if sample.places is None else np.asarray(sample.places)[step // 2 :: step, step // 2 :: step]
    if places is not None:
        blocks[f"places-{i}"] = _packed(places.astype("<i4"))
    if sample.image is not None:
        blocks[f"image-{i}"] = base64.b64encode(png.encode(sample.image)).decode()
    return {
        "name": sample.name,
        "targets": list(sample.targets),
        "scores": [short(score) for score in sample.scores],
        "scales": scales.tolist(),
        "count": int(np.asarray(sample.relevance).shape[1]),
        "mean": [short(value) for value in sample.average],
        "places": None if places is None else list(places.shape),
        "step": step,
        "tokens": None if sample.tokens is None else [str(token) for token in sample.tokens],
        "image": sample.image is not None,
        "left": int(sample.left_out),
        "at": None if sample.at is None else int(sample.at),
    }


def _packed(values: np.ndarray) -> str:
    return base64.b64encode(zlib.compress(np.ascontiguousarray(values).tobytes(), 9)).decode()
