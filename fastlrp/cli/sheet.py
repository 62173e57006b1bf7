"""The results of one input: drawn block by block of targets, written when they are complete."""

from __future__ import annotations

import io
import math
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from fastlrp import viz
from fastlrp.cli.drawing import Look, fixed_percent
from fastlrp.cli.errors import Failure
from fastlrp.cli.inputs import Item
from fastlrp.cli.store import Record, Store
from fastlrp.io import write_raw_heatmap, write_top_scores
from fastlrp.viz.numbers import fixed

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("png", "npy", "npz", "raw")


@dataclass(frozen=True)
class Wanted:
    """Which files are made.

    Attributes:
        formats: of :data:`FORMATS`. layers: names in the result beside ``"input"``. ranked: targets are the best ones,
            and files say which. map_shape: (height, width) of an input without positions. sum_channels: in arrays too.
    """

    formats: tuple[str, ...]
    look: Look = field(default_factory=Look)
    overlay: bool = False
    ranked: bool = False
    map_shape: tuple[int, int] | None = None
    sum_channels: bool = False

    @property
    def reduce(self) -> str | None:
        """What the explainer may do to make less: nobody looks at the channels of a picture."""
        arrays = not self.sum_channels and ("npy" in self.formats or "npz" in self.formats)
        return None if "raw" in self.formats or arrays else "channels"

    def drawable(self, shape: Sequence[int]) -> tuple[int, ...] | None:
        """The shape in which one target's relevance of the input is drawn; None if it cannot be."""
        if self.map_shape is not None:
            return self.map_shape
        return tuple(shape) if len(shape) in (2, 3) else None

    def check(self, shape: Sequence[int], has_picture: bool, is_table: bool = False) -> None:
        """Raises:
        Failure: if no picture can be made of an input of this shape, or there is none to draw over.
        """
        if self.overlay and not (has_picture and self.map_shape is None):
            raise Failure(f"--overlay draws over pictures, and an input {tuple(shape)} is none: leave it out")
        size = int(np.prod(shape))
        if self.map_shape is not None and size != self.map_shape[0] * self.map_shape[1]:
            raise Failure(f"--map-shape {self.map_shape[0]}x{self.map_shape[1]} does not fit an input {tuple(shape)}")
        if "png" in self.formats and self.drawable(shape) is None and not is_table:
            raise Failure(
                f"an input {tuple(shape)} is no picture: say with --map-shape HxW how to draw it, or choose "
                f"--format npy"
            )


@dataclass(frozen=True, eq=False)
class Features:
    """A row of a table: the names of its columns, None without a header, and its numbers."""

    names: Sequence[str] | None
    values: Tensor


class Sheet:
    """One input's results.

    Args:
        classes, scores: K of each. outputs: all scores of the model, ``(C,)``. picture: what the model saw.
        names: of these classes. winners: the class that wins at each place ``(H, W)``, of models that segment.
        name_of: the name of any class.
    """

    def __init__(
        self,
        item: Item,
        stamp: list[int],
        wanted: Wanted,
        classes: Sequence[int],
        scores: Sequence[float],
        outputs: Tensor,
        picture: Image | None,
        names: Sequence[str] | None = None,
        winners: Tensor | None = None,
        name_of: Callable[[int], str] = str,
    ) -> None:
        self.item, self.stamp, self.wanted = item, stamp, wanted
        self.classes, self.scores, self.outputs, self.picture = classes, scores, outputs, picture
        self._names = [str(number) for number in classes] if names is None else names
        self._winners = None if winners is None else winners.cpu().numpy()
        self._name_of = name_of
        self._drawn: dict[tuple[int, str], bytes] = {}
        self._arrays: dict[str, np.ndarray] = {}
        self._left, self._lock = len(classes), threading.Lock()

    def add(self, positions: range, relevance: dict[str, Tensor]) -> bool:
        """A block of targets: ``(k, …)`` of each layer, on the host. Says whether that was the last one.

        Raises:
            ValueError: for NaN or infinity.
        """
        for name, values in relevance.items():
            self._check(name, values)
            for k, one in zip(positions, values, strict=True):
                self._draw(k, name, one)
            if set(self.wanted.formats) - {"png"}:
                self._keep(name, positions, values)
        with self._lock:
            self._left -= len(positions)
            return self._left == 0

    def _check(self, name: str, values: Tensor) -> None:
        if not math.isfinite(float(values.sum())) and not bool(values.isfinite().all()):
            bad = int((~values.isfinite()).sum())
            where = "the input" if name == "input" else f"layer {name}"
            raise ValueError(
                f"the relevance of {where} has {bad} NaN or infinite entries: a larger epsilon or stabilizer (-p) or a "
                f"wider --dtype keeps denominators away from zero"
            )

    def _draw(self, k: int, name: str, one: Tensor) -> None:
        wanted, look = self.wanted, self.wanted.look
        if "png" not in wanted.formats:
            return
        tag = self._tag(k, name)
        if name != "input":
            if one.dim() in (2, 3) and one.shape[-2:].numel() > 1:  # One position has no pattern.
                array = one.numpy()
                drawn = look.heatmap(array, self._zoom(one)) if look.plain else self._figure(k, array, f"at {name}")
                self._drawn[k, f"{tag}.png"] = drawn
            return
        if self.features is not None and wanted.map_shape is None and one.dim() == 1:
            self._drawn[k, f"{tag}.png"] = self._bars(k, one)
            return
        shape = one.shape if wanted.map_shape is None else wanted.map_shape
        values = one.reshape(shape).numpy()
        # What a model says of each place is looked at over the picture.
        over = self.picture if self._winners is not None and wanted.map_shape is None else None
        self._drawn[k, f"{tag}.png"] = look.heatmap(values) if look.plain else self._figure(k, values, "", over)
        if wanted.overlay and self.picture is not None:
            laid = look.overlay(values, self.picture) if look.plain else self._figure(k, values, "", self.picture)
            self._drawn[k, f"{tag}_overlay.png"] = laid

    def _title(self, k: int) -> str:
        number, name = str(self.classes[k]), self._names[k]
        title = number if name == number else f"{name} ({number})"
        if self._winners is None:
            return f"{title}, score {fixed(self.scores[k])}"
        share = float((self._winners == self.classes[k]).mean())
        return f"{title}, wins at {fixed_percent(share)} of the places, sum of scores {fixed(self.scores[k])}"

    def _figure(self, k: int, values: np.ndarray, where: str = "", picture: Image | None = None) -> bytes:
        return self.wanted.look.figure(values, self._title(k), f"{self.item.label} {where}".strip(), picture)

    def _bars(self, k: int, one: Tensor) -> bytes:
        assert self.features is not None
        title = f"{self._title(k)}\n{self.item.label}"
        stream = io.BytesIO()
        figure = viz.bars(
            one, self.features.names, values=self.features.values, title=title, cmap=self.wanted.look.cmap
        )
        viz.to_image(figure, 200).save(stream, "PNG", compress_level=1)
        return stream.getvalue()

    features: Features | None = None
    """What a row of a table holds; None for other inputs."""

    def _zoom(self, one: Tensor) -> int:
        """Maps of hidden layers are about as large as the picture."""
        size = max(self.picture.size) if self.picture is not None else 224
        return max(1, self.wanted.look.zoom * size // max(one.shape[-2:]))

    def _tag(self, k: int, name: str) -> str:
        rank = f"top{k + 1}_" if self.wanted.ranked else ""
        layer = "" if name == "input" else f"@{file_name(name)}"
        return f"_{rank}{self.classes[k]}{layer}"

    def _keep(self, name: str, positions: range, values: Tensor) -> None:
        block = values.numpy()
        if len(positions) == len(self.classes):
            self._arrays[name] = block
            return
        with self._lock:
            if name not in self._arrays:
                self._arrays[name] = np.empty((len(self.classes), *block.shape[1:]), block.dtype)
        self._arrays[name][positions.start : positions.stop] = block

    def write(self, store: Store) -> list[str]:
        """All files. Gives their names in the store's folder.

        Raises:
            OSError: from the system, such as a full disk.
        """
        files: dict[str, bytes | memoryview] = {}
        if self._winners is not None and self.picture is not None and "png" in self.wanted.formats:
            drawn = self.wanted.look.areas(self._winners, self._name_of, self.picture, self.item.label)
            self._drawn[len(self.classes), "_segments.png"] = drawn
        files |= {f"{self.item.name}{tail}": data for (_, tail), data in sorted(self._drawn.items())}
        files |= self._array_files()
        for name, data in files.items():
            store.write(name, data)
        return [*files, *(self._raw(store) if "raw" in self.wanted.formats else ())]

    def _array_files(self) -> dict[str, bytes | memoryview]:
        files: dict[str, bytes | memoryview] = {}
        base, formats = f"{self.item.name}_relevance", self.wanted.formats
        if "npy" in formats:
            for name, values in self._arrays.items():
                stream = io.BytesIO()
                np.save(stream, self._summed(values), allow_pickle=False)
                files[f"{base}{'' if name == 'input' else f'@{file_name(name)}'}.npy"] = stream.getbuffer()
        if "npz" in formats:
            stream = io.BytesIO()
            named = {
                "relevance" if k == "input" else f"relevance@{k}": self._summed(v) for k, v in self._arrays.items()
            }
            classes, scores = np.array(self.classes, np.int64), np.array(self.scores, np.float64)
            np.savez(stream, classes=classes, scores=scores, **named)  # type: ignore[arg-type]
            files[f"{base}.npz"] = stream.getbuffer()
        return files

    def _summed(self, values: np.ndarray) -> np.ndarray:
        return values.sum(1) if self.wanted.sum_channels and self.wanted.reduce is None and values.ndim > 2 else values

    def _raw(self, store: Store) -> list[str]:
        names = []
        for k, one in enumerate(self._arrays["input"]):
            names.append(f"{self.item.name}{'' if len(self.classes) == 1 else self._tag(k, 'input')}_rawhm.txt")
            wide = self.wanted.map_shape or one.shape
            write_raw_heatmap(one.reshape((1,) * (3 - len(wide)) + tuple(wide)), store.place(names[-1]))
        names.append(f"{self.item.name}_toptenscores.txt")
        write_top_scores(self.outputs, store.place(names[-1]))
        return names


def record(item: Item, status: str, **fields: Any) -> Record:
    """One input's line for machines: see docs/command_line.md."""
    return {
        "event": "input", "input": str(item.path), "sample": item.sample, "status": status, "targets": [], "files": [],
        "error": None, **fields,
    }  # fmt: skip


def file_name(layer: str) -> str:
    """A module path as part of a file's name."""
    return re.sub(r"[^\w.-]", "-", layer)
