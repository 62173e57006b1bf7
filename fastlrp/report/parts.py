"""Relevance of parts of an input (patches, tokens) for all classes at once, as the page of parts shows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastlrp.explainer import Explainer
from fastlrp.groups import Groups, Resolved
from fastlrp.report.collecting import pictures_of
from fastlrp.report.sample import check_targets
from fastlrp.run.names import input_values
from fastlrp.run.record import ForwardRecord
from fastlrp.run.up.grouped import resolved_groups
from fastlrp.targets.target_names import checked_names
from fastlrp.targets.target_names import target_names as names_of_targets

KEEP = 2000
"""Targets of a sample that are stored: those with the best scores, and the strongest of each part."""


@dataclass(frozen=True, eq=False)
class Parts:
    """One input in parts.

    Args:
        name: how the page calls it.
        targets, scores: K names and scores, of classes, next tokens or neurons.
        relevance: ``(K, G)``, of each part for each target.
        places: ``(h, w)`` integers, which part each place of the picture belongs to, -1 for none; or None.
        image: ``(H, W, 3)`` uint8, what the model saw; or None.
        tokens: G texts, of parts that are tokens, columns or whole inputs; or None, if there are places.
        mean: ``(G,)``, the mean relevance of each part over all targets, those left out too; None: over these.
        left_out: how many targets of the model are not among these. at: the token whose scores are explained.

    Raises:
        TypeError, ValueError: for shapes, lengths, types that do not agree, NaN and infinity.

    Example::

        from fastlrp import report

        found = np.array([[1.5, 0.6], [-0.2, -0.1]])
        parts = report.Parts("a text", ["good", "bad"], [2.1, -0.3], found, tokens=["not", "bad"])
    """

    name: str
    targets: Sequence[str]
    scores: Sequence[float]
    relevance: np.ndarray
    places: np.ndarray | None = None
    image: np.ndarray | None = None
    tokens: Sequence[str] | None = None
    mean: np.ndarray | None = None
    left_out: int = 0
    at: int | None = None

    def __post_init__(self) -> None:
        where = f"parts {self.name!r}"
        check_targets(self.targets, self.scores, where)
        R = np.asarray(self.relevance)
        if R.ndim != 2 or len(R) != len(self.targets) or not R.shape[1]:
            raise ValueError(f"{where}: relevance must be (K, G) = ({len(self.targets)}, G), got {R.shape}")
        if not np.isfinite(R).all():
            bad = int((~np.isfinite(R)).sum())
            raise ValueError(f"{where}: relevance has {bad} NaN or infinite entries of {R.size}")
        if self.tokens is not None and len(self.tokens) != R.shape[1]:
            raise ValueError(f"{where}: there are {R.shape[1]} parts and {len(self.tokens)} tokens")
        if self.tokens is None and self.places is None:
            raise ValueError(
                f"{where}: say with places where the parts are in the picture, or with tokens what they are"
            )
        if self.places is not None:
            places = np.asarray(self.places)
            if places.ndim != 2 or places.dtype.kind not in "iu" or places.max(initial=-1) >= R.shape[1]:
                raise ValueError(
                    f"{where}: places must be integers (h, w) below {R.shape[1]}, the number of parts, got "
                    f"{places.shape} {places.dtype} up to {places.max(initial=-1)}"
                )

    @property
    def average(self) -> np.ndarray:
        """The mean relevance of each part, ``(G,)``."""
        found: np.ndarray = np.asarray(self.relevance, np.float64).mean(0) if self.mean is None else self.mean
        return found


def collect_parts(
    explainer: Explainer,
    x: Any,
    groups: Groups,
    targets: Any = "all",
    *,
    at: int | Sequence[int] | None = None,
    layer: str | None = None,
    keep: int = KEEP,
    images: Sequence[Any] | None = None,
    names: Sequence[str] | None = None,
    target_names: Sequence[str] | Mapping[int, str] | None = None,
    tokens: Sequence[Sequence[str]] | None = None,
) -> list[Parts]:
    """Explain a batch for all targets at once and keep what the page of parts shows of it.

    Args:
        explainer: a :class:`fastlrp.Explainer`. x: the batch.
        groups: the parts, as for :meth:`fastlrp.ForwardRecord.relevance`: ``groups.patches(16)``, ``"tokens"``, ….
        targets: the classes, ``"all"`` of them unless given.
        at: of a language model ``(B, S, V)`` the position whose next tokens are explained, or several: each makes a
            sample of its own.
        layer: explain the neurons of this module's output in the place of classes
            (:meth:`fastlrp.ForwardRecord.contributions`): channels, summed over their positions.
        keep: how many targets of each sample are stored at most: half of them the best scores, the others those for
            which single parts speak most, beside what they say for all.
        images, names, target_names: as for :func:`fastlrp.report.collect`. tokens: for each sample the texts of its
            parts.

    Returns:
        :class:`Parts`, for each sample one, or one for each position.

    Raises:
        TypeError, ValueError, KeyError: for what does not fit; as for the explainer.

    Example::

        from fastlrp import report

        samples = report.collect_parts(explainer, x, groups.patches(8))
    """
    with explainer.forward(x) as record:
        resolved = resolved_groups(record.plan, groups, input_values(record.plan, record._inputs), record.batch)
        batch = record.batch
        titles = [f"sample {i}" for i in range(batch)] if names is None else checked_names(names, batch, "names")
        pictures = pictures_of(x, images)[0] if isinstance(x, Tensor) else [None] * batch
        words = [None] * batch if tokens is None else [list(row) for row in tokens]
        if len(words) != batch:
            raise ValueError(f"tokens has the parts of {len(words)} samples, there are {batch}: give a list for each")
        asked = _of_layer(record, groups, layer) if layer is not None else None
        found = []
        for position in _positions(at, record) if asked is None else [None]:
            labels, scores, R = asked or _of_targets(record, groups, targets, position, target_names)
            for i in range(batch):
                where = _where(position, words[i])
                texts = words[i] or (None if _places(resolved, i) is not None else _numbered(resolved.count))
                found.append(
                    _kept(
                        f"{titles[i]}{where}", labels[i], scores[i], R[i], keep, places=_places(resolved, i),
                        image=pictures[i], tokens=texts, at=position,
                    )
                )  # fmt: skip
    return found


def _positions(at: int | Sequence[int] | None, record: ForwardRecord) -> list[int | None]:
    if at is None:
        return [None]
    count = record.scores.shape[1]
    return [place + count if place < 0 else place for place in ([at] if isinstance(at, int) else list(at))]


def _where(position: int | None, words: Sequence[str] | None) -> str:
    if position is None:
        return ""
    return f": after token {position}" + (f", {words[position]!r}" if words and position < len(words) else "")


def _numbered(count: int) -> list[str]:
    return [f"part {g}" for g in range(count)]


def _of_targets(
    record: ForwardRecord, groups: Groups, targets: Any, at: int | None, names: Any
) -> tuple[list[list[str]], np.ndarray, np.ndarray]:
    """Names ``(B, K)``, scores ``(B, K)``, relevance ``(B, K, G)``."""
    asked = record.asked(targets, "output", at)
    labels = names_of_targets(asked, names)
    if at is not None and (names is not None or asked.labels is not None):  # The sample's name has the position.
        labels = [[name.removesuffix(f" at {at}") for name in row] for row in labels]
    found: Tensor = record.relevance(targets, at=at, groups=groups)
    return labels, asked.scores().detach().cpu().double().numpy(), found.detach().cpu().double().numpy()


def _of_layer(record: ForwardRecord, groups: Groups, layer: str) -> tuple[list[list[str]], np.ndarray, np.ndarray]:
    """The same of a layer's neurons, whose scores are their activations."""
    contributions = record.contributions(groups, [layer])
    parts, kept = contributions[layer], contributions.kept[layer]
    if parts.dim() > 3:  # (B, G, C, *S) has its channels in front, (B, G, S, D) behind.
        axis = 2 if parts.dim() > 4 else 3
        rest = [n for n in range(2, parts.dim()) if n != axis]
        parts, kept = parts.sum(rest), kept.sum([n - 1 for n in rest])
    values = torch.as_tensor(parts).detach().cpu().double().numpy().transpose(0, 2, 1)
    scores = values.sum(2) + kept.detach().cpu().double().numpy()
    return [[f"{layer} [{n}]" for n in range(values.shape[1])]] * len(values), scores, values


def _places(resolved: Resolved, i: int) -> np.ndarray | None:
    """Which part each place ``(h, w)`` of a picture ``(C, h, w)`` belongs to; None for other inputs."""
    found = resolved.maps[0]
    if len(resolved.maps) != 1 or found.is_floating_point() or found.dim() != 4:
        return None
    own = found[min(i, len(found) - 1)]
    return own[0].cpu().numpy().astype(np.int64) if bool((own == own[:1]).all()) else None


def _kept(name: str, labels: Sequence[str], scores: np.ndarray, R: np.ndarray, keep: int, **more: Any) -> Parts:
    """At most ``keep`` targets, best score first."""
    mean, count = R.mean(0), len(scores)
    order = np.argsort(-scores, kind="stable")
    chosen = order if count <= keep else _chosen(order, R - mean, keep)
    return Parts(
        name, [labels[k] for k in chosen], [float(scores[k]) for k in chosen], R[chosen], mean=mean,
        left_out=count - len(chosen), **more,
    )  # fmt: skip


def _chosen(order: np.ndarray, above: np.ndarray, keep: int) -> np.ndarray:
    """Half of the targets by their score; then of each part in turn the one for which it speaks most above all."""
    taken = dict.fromkeys(order[: max(1, keep // 2)].tolist())
    most = min(len(order), keep)
    by_part = np.argpartition(-above, most - 1, axis=0)[:most] if most < len(order) else np.arange(len(order))[:, None]
    ranked = np.take_along_axis(by_part, np.argsort(-np.take_along_axis(above, by_part, 0), axis=0), 0)
    for k in ranked.ravel():
        if len(taken) >= keep:
            break
        taken.setdefault(int(k))
    return order[np.isin(order, list(taken))]
