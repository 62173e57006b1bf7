"""Samples to write, and what stands in a written report, read back with Python's own parsers."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np

from fastlrp.report import Sample
from fastlrp.report.codec import unpack

HOSTILE = [
    "</script><script>document.title = 'broken'</script>",
    "<img src=x onerror=\"document.title='broken'\">",
    "<!-- & <script> &amp; &lt;",
    "quotes ' \" ` ${1} {{ 7 * 7 }} {% raw %}",
    "emoji 🦊👩‍🔬, 日本語, école",
    "שלום עולם and \u202eright to left",
    "line\u2028and\u2029paragraph\u0000\ufffe",
    "",
]


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    """Relevance with the heavy tails that real relevance has."""
    return np.random.default_rng(seed).laplace(size=shape).astype(np.float32)


def smooth(count: int, height: int, width: int) -> np.ndarray:
    """Waves of different lengths, of both signs."""
    y, x = np.mgrid[:height, :width]
    return np.stack([np.sin(0.05 * (k + 1) * x + 0.11 * y) * (k + 1) for k in range(count)]).astype(np.float32)


def sample(name: str = "a cat", count: int = 6, size: int = 12, **changes: Any) -> Sample:
    """An input with an image, three layers (the last of neurons), and a ledger for target 0 and for all."""
    image = np.random.default_rng(1).integers(0, 256, (size, size, 3), dtype=np.uint8)
    rows = [
        {"layer": "head", "operation": "linear", "rule": "Epsilon(1e-06)", "arrived": 2.5, "sent": 2.25, "bias": 0.25,
         "stabilizer": 0.0, "dead": 0.0, "error": 1e-7},
        {"layer": "conv", "operation": "conv2d", "rule": "ZPlus()", "arrived": 2.25, "sent": 2.0, "bias": None,
         "stabilizer": None, "dead": None, "error": None},
    ]  # fmt: skip
    given: dict[str, Any] = {
        "name": name,
        "image": image,
        "targets": [f"class {k}" for k in range(count)],
        "scores": [float(count - 2 * k) for k in range(count)],
        "relevance": {"input": noise(count, size, size), "conv": smooth(count, 3, 3), "head": noise(count, 1, 20)},
        "ledger": [{**row, "target": 0} for row in rows] + [{**row, "arrived": 1.0} for row in rows],
    }
    return Sample(**{**given, **changes})


class Page(HTMLParser):
    """A report taken apart. ``blocks``: id -> text of script elements; ``tags``: (tag, attributes) of all elements."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.blocks: dict[str, str] = {}
        self.texts: dict[str, str] = {}
        self._open: list[str] = []
        self._script = 0
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        self.meta: dict[str, Any] = json.loads(self.blocks["meta"])

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append((tag, found))
        self._open.append(tag)
        self._id = found.get("id") or "program"

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "script":
            self.blocks[self._id] = self.blocks.get(self._id, "") + data
        elif self._open:
            self.texts[self._open[-1]] = self.texts.get(self._open[-1], "") + data

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def shown(self, s: int, layer: str, k: int) -> tuple[np.ndarray, dict[str, Any]]:
        """The values that the page shows for target k, ``(h, w)``, and the layer's entry in the index."""
        found = self.meta["samples"][s]["layers"]
        number = next(i for i, item in enumerate(found) if item["name"] == layer)
        index = found[number]
        first, last = index["places"][k : k + 2]
        text = self.blocks[f"maps-{s}-{number}"][first:last]
        return unpack(text, index["kinds"][k], index["scales"][k], tuple(index["stored"])), index
