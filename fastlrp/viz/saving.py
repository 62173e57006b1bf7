"""Pictures into files: whole or not at all."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from fastlrp.files import whole
from fastlrp.viz.libraries import need

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

PRINTED_DPI = 200
"""Dots per inch of figures in files: twice what a screen shows."""

VECTOR = (".pdf", ".svg", ".eps", ".ps")
"""Formats that matplotlib writes; all others are Pillow's."""


def to_image(figure: Figure, dpi: float | None = None) -> Image:
    """A figure, such as :func:`fastlrp.viz.grid` makes, as an RGB picture; ``dpi`` is the figure's own unless given.

    Args:
        figure: of matplotlib. dpi: dots per inch.

    Raises:
        TypeError: for anything but a matplotlib figure.

    Example::

        image = viz.to_image(viz.grid(relevance))
    """
    if not isinstance(figure, need("matplotlib.figure").Figure):
        raise TypeError(f"figure must be a matplotlib figure, got {type(figure).__name__}")
    canvas = need("matplotlib.backends.backend_agg").FigureCanvasAgg
    own = figure.dpi
    try:
        if dpi is not None:
            figure.dpi = dpi
        drawn = canvas(figure)
        drawn.draw()
        return need("PIL.Image").fromarray(_opaque(drawn.buffer_rgba()))
    finally:
        figure.dpi = own


def show_in_notebooks(figure: Figure) -> None:
    """Let a notebook show the figure where it is a cell's last line, though it is unknown to pyplot."""
    figure._repr_png_ = partial(_png, figure)  # type: ignore[attr-defined]


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    to_image(figure).save(file, format="PNG", dpi=(figure.dpi, figure.dpi))
    return file.getvalue()


def save(picture: Image | Figure, path: str | os.PathLike[str], **options: Any) -> Path:
    """Write a picture or a figure, under a temporary name first: the file is whole, or as it was before.

    Args:
        picture: a Pillow image or a matplotlib figure.
        path: ends in ``.png``, ``.jpg``, ``.webp``, or another format that Pillow writes; for figures also ``.pdf``,
            ``.svg``, ``.eps``. Its folder must be there.
        options: of the format, as Pillow's ``save`` takes them (``quality=90``), or ``dpi`` of a figure (200).

    Returns:
        the path.

    Raises:
        FileNotFoundError: if there is no such folder. IsADirectoryError: if the path is one. ValueError: for an ending
        that names no format. TypeError: for another object. OSError: from the system, such as a full disk; nothing is
        left behind.

    Example::

        viz.save(viz.heatmap(relevance[0, 0]), "heatmap.png")
        viz.save(viz.grid(relevance), "grid.pdf")
    """
    path = Path(path)
    write = _writer(picture, path, options)
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"there is no folder {str(path.parent)!r}: make it first, "
            f"pathlib.Path({str(path.parent)!r}).mkdir(parents=True, exist_ok=True)"
        )
    if path.is_dir():
        raise IsADirectoryError(f"{str(path)!r} is a folder: name a file in it")
    with whole(path) as file:
        write(file)
    return path


def _writer(picture: Any, path: Path, options: dict[str, Any]) -> Callable[[BinaryIO], None]:
    """What writes the picture into an open file."""
    suffix, pil = path.suffix.lower(), need("PIL.Image")
    if isinstance(picture, pil.Image):
        return _pillow_writer(picture, _pillow_format(path, suffix, figure=False), options)
    if not isinstance(picture, need("matplotlib.figure").Figure):
        raise TypeError(f"only a Pillow image or a matplotlib figure can be saved, got {type(picture).__name__}")
    dpi = options.pop("dpi", None) or max(picture.dpi, PRINTED_DPI)
    if suffix in VECTOR:
        # Pixels of heatmaps stay as they are; dpi is for what must be drawn as pixels.
        return lambda file: picture.savefig(file, format=suffix[1:], dpi=dpi, **options)
    form = _pillow_format(path, suffix, figure=True)
    return _pillow_writer(to_image(picture, dpi), form, {"dpi": (dpi, dpi), **options})


def _pillow_writer(picture: Image, form: str, options: dict[str, Any]) -> Callable[[BinaryIO], None]:
    return lambda file: picture.save(file, format=form, **options)


def _pillow_format(path: Path, suffix: str, figure: bool) -> str:
    pil = need("PIL.Image")
    known = pil.registered_extensions()
    form = known.get(suffix)
    if form not in pil.SAVE:
        more = ", .pdf, .svg" if figure else ""
        raise ValueError(f"{path.name!r} ends in {suffix or 'nothing'}: use .png, .jpg, .webp{more}")
    return str(form)


def _opaque(rgba: Any) -> Any:
    import numpy as np

    return np.ascontiguousarray(np.asarray(rgba)[..., :3])
