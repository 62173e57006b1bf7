"""The report's file: what stands in it, and how it is written."""

from __future__ import annotations

import base64
import math
import os
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from fastlrp.files import whole
from fastlrp.report import png
from fastlrp.report.budget import Layer, Storage, encode, estimate, ladder
from fastlrp.report.page_text import policy, safe_json, short, template
from fastlrp.report.sample import LEDGER_NUMBERS, Sample

MAX_BYTES = 20_000_000
"""Size of a report unless :func:`write` is told otherwise."""

SCRIPTS = (
    "data", "codec", "colour", "scale", "state", "list", "thumbs", "draw", "panel", "overview", "save", "ledger",
    "controls", "keys", "app",
)  # fmt: skip
_PER_MAP = 80  # Bytes of a map's entry in the index: scale, bound, sum, place.


def write(
    path: str | os.PathLike[str],
    samples: Sequence[Sample],
    *,
    title: str,
    composite: str = "",
    model: str = "",
    unit: str = "score",
    bits: int = 8,
    resolution: int | None = None,
    max_bytes: int | None = MAX_BYTES,
) -> Path:
    """Write one HTML file that needs no server, no network and no other file.

    Each map is stored with its own scale: ``R`` is shown as ``q * scale``, ``q`` an integer of ``bits`` bits,
    ``scale = max|R| / (2^(bits-1) - 1)``, so a shown value is within ``scale / 2`` of the relevance (8 bits:
    ``max|R| / 254``). If the file would become larger than ``max_bytes``, bits go down to 6 and then the resolution is
    halved, as often as needed; each cell is then the *sum* of the relevance of its positions. The page says what it
    stores, and shows the bound beside every value.

    Args:
        path: where to; folders are made. The file appears when it is complete, or not at all.
        samples: from :func:`fastlrp.report.collect`, or made by hand.
        title: of the page. composite: a line about how relevance was computed. model: which model was explained.
        unit: what relevance adds up to.
        bits: 4 to 8, the most that are used.
        resolution: longest side of a map in cells, at most; None: as it is.
        max_bytes: size of the file at most; None: no limit, everything as asked for.

    Returns:
        the path.

    Raises:
        ValueError: without samples; for NaN in relevance; if not even the coarsest storage is small enough.
        TypeError, ValueError: for other arguments. ImportError: without Jinja2.
        IsADirectoryError, OSError: if it cannot be written.

    Example::

        from fastlrp import report

        report.write("report.html", report.collect(explainer, x, "top3", ledger=False), title="two pictures")
    """
    samples = list(samples)
    _check(samples, bits, resolution, max_bytes)
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: name the file, for instance {path / 'report.html'}")
    about = {"title": str(title), "composite": str(composite), "model": str(model), "unit": str(unit)}
    page = _Page(samples, about)
    pieces = page.fit(bits, resolution, math.inf if max_bytes is None else max_bytes)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as file:
        file.writelines(pieces)
    return path


def _check(samples: list[Sample], bits: int, resolution: int | None, max_bytes: int | None) -> None:
    if not samples:
        raise ValueError("samples is empty: a report shows at least one; fastlrp.report.collect makes them")
    for sample in samples:
        if not isinstance(sample, Sample):
            raise TypeError(f"samples must be fastlrp.report.Sample objects, got {type(sample).__name__}")
    if bits not in range(4, 9):
        raise ValueError(f"bits must be 4 to 8, got {bits!r}")
    for name, value in (("resolution", resolution), ("max_bytes", max_bytes)):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise ValueError(f"{name} must be a positive integer or None, got {value!r}")


class _Page:
    """Everything that stands in the file, whatever its maps are stored as."""

    def __init__(self, samples: list[Sample], about: dict[str, str]) -> None:
        self.samples, self.about = samples, about
        self.lists: list[list[str]] = []
        self.heads = [self._head(sample) for sample in samples]
        self.images = [
            None if s.image is None else base64.b64encode(png.encode(s.image)).decode() for s in samples
        ]  # fmt: skip
        files = resources.files("fastlrp.report") / "templates"
        self.style = "".join((files / f"{name}.css").read_text(encoding="utf-8") for name in ("base", "report"))
        code = "\n".join((files / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS)
        self.script = f"(() => {{\n'use strict';\n{code}\n}})();\n"
        self.template = template((files / "report.html.j2").read_text(encoding="utf-8"))

    def fit(self, bits: int, resolution: int | None, limit: float) -> list[bytes]:
        """The file in pieces, as fine as the limit allows."""
        rungs = list(ladder(self.samples, bits, resolution))
        asked, native = rungs[0], next(ladder(self.samples, bits, None)).side
        maps = sum(len(s.relevance) * len(s.targets) for s in self.samples)
        without = self._render("", False, [[] for _ in self.samples])
        fixed = sum(map(len, without)) + 1000 + maps * _PER_MAP
        if fixed > limit:
            raise ValueError(
                f"max_bytes={limit:.0f} is less than the {fixed} bytes of the page, images and names without maps: "
                f"raise max_bytes, give smaller images, or fewer samples and targets"
            )
        smallest = math.inf
        for storage in rungs:
            smallest = fixed + (estimate(self.samples, storage) if limit < math.inf else 0)
            if smallest > limit and storage != rungs[-1]:
                continue
            layers = encode(self.samples, storage, limit - fixed)
            if layers is not None:
                return self._render(_storage_text(storage, asked, native, limit), storage != asked, layers)
        last = rungs[-1]
        raise ValueError(
            f"{maps} maps need about {smallest:.0f} bytes even with {last.bits} bits at {last.side}x{last.side}, "
            f"max_bytes={limit:.0f}: raise max_bytes, or write fewer samples, layers or targets in one report"
        )

    def _render(self, storage: str, reduced: bool, layers: list[list[Layer]]) -> list[bytes]:
        meta = {
            **self.about,
            "storage": storage,
            "reduced": reduced,
            "lists": self.lists,
            "samples": [
                {**head, "layers": [_index(layer) for layer in found]}
                for head, found in zip(self.heads, layers, strict=True)
            ],
        }
        blocks = {
            f"maps-{i}-{j}": "".join(item.text for item in layer.maps)
            for i, found in enumerate(layers)
            for j, layer in enumerate(found)
        }
        blocks |= {f"image-{i}": text for i, text in enumerate(self.images) if text is not None}
        pieces = self.template.generate(
            **self.about, style=self.style, script=self.script, policy=policy(self.style, self.script),
            meta=safe_json(meta), blocks=blocks,
        )  # fmt: skip
        # A lone surrogate in a title has no UTF-8; as a reference the browser shows its replacement character.
        return [piece.encode("utf-8", "xmlcharrefreplace") for piece in pieces]

    def _head(self, sample: Sample) -> dict[str, Any]:
        names = list(sample.targets)
        if names not in self.lists:
            self.lists.append(names)
        shape = sample.relevance["input"].shape
        return {
            "name": sample.name,
            "targets": self.lists.index(names),
            "scores": [short(score) for score in sample.scores],
            "image": sample.image is not None,
            "height": int(shape[1]),
            "width": int(shape[2]),
            "classes": _classes(sample),
            "truth": sample.truth,
            "note": sample.image_note,
            "place": _true_places(sample),
            "probability": sample.probability,
            "probabilities": None if sample.probabilities is None else [short(p) for p in sample.probabilities],
            "methods": None if sample.methods is None else list(sample.methods),
            "ledger": None if sample.ledger is None else _ledger(sample.ledger),
        }


def _classes(sample: Sample) -> list[int] | None:
    """The targets' classes, None where they are their places in the list."""
    if sample.classes is None:
        return None
    found = [int(number) for number in sample.classes]
    return None if found == list(range(len(found))) else found


def _true_places(sample: Sample) -> list[int]:
    """The places in the list of targets of the true class."""
    classes = range(len(sample.targets)) if sample.classes is None else sample.classes
    return [k for k, number in enumerate(classes) if sample.true_class is not None and number == sample.true_class]


def _index(layer: Layer) -> dict[str, Any]:
    """What the page must know of a layer to read its maps."""
    places = [0]
    for item in layer.maps:
        places.append(places[-1] + len(item.text))
    return {
        "name": layer.name,
        "shape": layer.shape,
        "stored": layer.stored,
        "factor": layer.factor,
        "places": places,
        "kinds": "".join(item.kind for item in layer.maps),
        "scales": [item.scale for item in layer.maps],
        "errors": [float(f"{1.005 * item.error:.3g}") for item in layer.maps],  # Rounded, but not below the bound.
        "totals": [short(item.total) for item in layer.maps],
    }


def _ledger(rows: Sequence[Any]) -> dict[str, Any]:
    """Layers once, and for each target the number of the layer and what it did: 1000 targets have the same layers."""
    layers: dict[tuple[str, str, str], int] = {}
    found: dict[str, list[list[float | int | None]]] = {}
    for row in rows:
        what = (str(row["layer"]), str(row.get("operation") or ""), str(row.get("rule") or ""))
        number = layers.setdefault(what, len(layers))
        target = row.get("target")
        numbers = [None if row.get(name) is None else short(row[name]) for name in LEDGER_NUMBERS]
        found.setdefault("all" if target is None else str(int(target)), []).append([number, *numbers])
    return {"layers": list(layers), "rows": found}


def _storage_text(storage: Storage, asked: Storage, native: int, limit: float) -> str:
    """What a reader must know of the numbers shown; ``native`` is the longest side of any map as it came."""
    bound = 2 * (2 ** (storage.bits - 1) - 1)
    text = f"{storage.bits} bits per value: what is shown is within 1/{bound} of the largest value of its map."
    if storage.side < native:
        text += f" Maps are at most {storage.side} cells wide and high, not {native};"
        text += " each cell is the sum of its positions."
    if storage != asked:
        more = f"{asked.bits} bits" + (f" and {asked.side} cells" if storage.side < asked.side else "")
        text += f" Coarser than the {more} asked for, to stay below {limit / 1e6:g} MB."
    return text
