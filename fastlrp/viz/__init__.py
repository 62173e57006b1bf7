"""Pictures of relevance: heatmaps, overlays, outlines, grids, coloured text, TensorBoard.

Importing this package loads neither matplotlib nor Pillow; calling a function that needs one of them does. Both come
with ``pip install "fastlrp[viz]"``. No function touches pyplot or another global state of matplotlib, so that pictures
can be made in several threads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastlrp.viz.areas import segments
from fastlrp.viz.boards import add_to_tensorboard
from fastlrp.viz.colors import colormap, colormaps
from fastlrp.viz.grids import UNIT, grid
from fastlrp.viz.heatmaps import heatmap, overlay, shared_level
from fastlrp.viz.outlines import outline
from fastlrp.viz.pictures import picture
from fastlrp.viz.profiles import bars, curve
from fastlrp.viz.saving import save, to_image
from fastlrp.viz.text_view import Text, text
from fastlrp.viz.texts import text_html, text_terminal
from fastlrp.viz.token_layers import token_layers

if TYPE_CHECKING:
    COLORMAPS: list[str]
    """Names of all colour maps: Zennit's, the Toolbox's, ours, matplotlib's."""

__all__ = [
    "COLORMAPS",
    "UNIT",
    "Text",
    "add_to_tensorboard",
    "bars",
    "colormap",
    "curve",
    "grid",
    "heatmap",
    "outline",
    "overlay",
    "picture",
    "save",
    "segments",
    "shared_level",
    "text",
    "text_html",
    "text_terminal",
    "to_image",
    "token_layers",
]


def __getattr__(name: str) -> Any:
    if name == "COLORMAPS":  # Made when asked for: the list has matplotlib's names in it.
        return colormaps()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
