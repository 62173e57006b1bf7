"""Relevance in TensorBoard: pictures and histograms per layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fastlrp.targets.target_names import target_names, unnamed_targets
from fastlrp.targets.targets import Targets
from fastlrp.viz.arrays import as_array, check_finite
from fastlrp.viz.cells import channels_summed
from fastlrp.viz.colors import SOFT
from fastlrp.viz.heatmaps import colored
from fastlrp.viz.scale import Scale

if TYPE_CHECKING:
    from fastlrp.viz.colors import Cmap

_SIDE, _GAP = 112, 4


def add_to_tensorboard(
    writer: Any,
    relevance_by_layer: Mapping[str, Any],
    step: int | None,
    targets: Sequence[Any] | Targets | None = None,
    *,
    tag: str = "relevance",
    normalize: str = "symmetric",
    cmap: Cmap = SOFT,
    max_samples: int = 8,
) -> None:
    """Write, for each layer, a histogram of its relevance and, for each target, a picture of its maps.

    Tags are ``relevance/<layer>`` for histograms and ``relevance/<layer>/<target>`` for pictures. In a picture the
    first samples stand side by side. The pictures of a layer share one scale, so that targets and samples can be
    compared. Layers without axes of space (``(B, K, features)``) have a histogram only.

    Args:
        writer: a ``torch.utils.tensorboard.SummaryWriter``, or anything with its ``add_image(tag, array, step,
            dataformats="HWC")`` and ``add_histogram(tag, values, step)``.
        relevance_by_layer: what ``record.relevance(targets, layers=[…])`` returns: ``(B, K, …)`` by layer.
        step: the writer's global step.
        targets: K names, or ``record.asked(targets)``, which calls classes as the explainer knows them;
            ``"targets[0]"``, … unless given, and where a target is another class in each sample.
        tag: first part of all tags.
        normalize, cmap: see :func:`fastlrp.viz.heatmap`.
        max_samples: of a picture.

    Raises:
        TypeError: for a writer without those methods, or anything but a dict by layer. ValueError: for shapes, names or
        numbers that do not fit; nothing is written then.

    Example::

        class Writer:  # or torch.utils.tensorboard.SummaryWriter("runs/1")
            def add_image(self, tag, image, step, dataformats): ...
            def add_histogram(self, tag, values, step): ...

        viz.add_to_tensorboard(Writer(), explainer(x, [3, 1], layers=["3"]), step=10, targets=["cat", "dog"])
    """
    for method in ("add_image", "add_histogram"):
        if not callable(getattr(writer, method, None)):
            raise TypeError(
                f"writer must have {method}, as torch.utils.tensorboard.SummaryWriter has, got {type(writer).__name__}"
            )
    if not isinstance(relevance_by_layer, Mapping):
        raise TypeError(
            "relevance_by_layer must be a dict from layer to relevance, as record.relevance(targets, layers=[…]) "
            f"returns, got {type(relevance_by_layer).__name__}"
        )
    if isinstance(max_samples, bool) or not isinstance(max_samples, int) or max_samples < 1:
        raise ValueError(f"max_samples must be at least 1, got {max_samples!r}")
    layers = {name: _layer(name, given) for name, given in relevance_by_layer.items()}
    names = {name: _target_names(targets, name, values.shape[1]) for name, values in layers.items()}
    pictures = {
        name: _pictures(values[:max_samples], normalize, cmap) for name, values in layers.items() if values.ndim > 3
    }
    for name, values in layers.items():
        writer.add_histogram(f"{tag}/{name}", values.ravel(), step)
        for target, picture in zip(names[name], pictures.get(name, ()), strict=False):
            writer.add_image(f"{tag}/{name}/{target}", picture, step, dataformats="HWC")


def _layer(name: str, given: Any) -> np.ndarray:
    values = as_array(given, f"relevance_by_layer[{name!r}]")
    if values.ndim < 3 or values.size == 0:
        raise ValueError(f"relevance_by_layer[{name!r}] must be (B, K, …), got {values.shape}")
    check_finite(values, f"relevance_by_layer[{name!r}]")
    return values


def _target_names(targets: Sequence[Any] | Targets | None, layer: str, count: int) -> list[str]:
    if targets is None:
        return unnamed_targets(count)
    if isinstance(targets, Targets):
        by_target = [set(names) for names in zip(*target_names(targets), strict=True)]
        unnamed = unnamed_targets(len(by_target))
        targets = [names.pop() if len(names) == 1 else place for names, place in zip(by_target, unnamed, strict=True)]
    if isinstance(targets, str) or len(targets) != count:
        raise ValueError(f"targets must name the {count} targets of layer {layer!r}, got {targets!r}")
    return [str(target) for target in targets]


def _pictures(values: np.ndarray, normalize: str, cmap: Any) -> list[np.ndarray]:
    """For each target its samples side by side, ``(H, W, 3)`` uint8; ``values`` is ``(B, K, [C,] H, W)``."""
    maps = channels_summed(values)
    zoom = max(1, _SIDE // min(maps.shape[2:]))  # TensorBoard shows small pictures small.
    colors = colored(maps, Scale.of(normalize, None, [maps]), cmap)
    colors = colors.repeat(zoom, 2).repeat(zoom, 3)
    rows = []
    for of_target in colors.swapaxes(0, 1):
        padded = np.pad(of_target, ((0, 0), (0, 0), (0, _GAP), (0, 0)), constant_values=255)
        rows.append(np.concatenate(padded, 1)[:, :-_GAP])
    return rows
