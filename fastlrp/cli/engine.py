"""The explainer as the command line uses it: batches of samples in, blocks of relevance on the host out."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastlrp.cli import class_choice, labels
from fastlrp.cli.class_choice import Chosen
from fastlrp.cli.errors import Failure, one_line
from fastlrp.cli.reading import Sample
from fastlrp.errors import CaptureError, NotFiniteError, UnsupportedOperationError
from fastlrp.explainer import Explainer

BLOCK_BYTES = 256 << 20
"""Relevance of one block of targets."""
_BATCH_BYTES, _BATCH_NUMBERS, _MOST = 24 << 20, 1_250_000, 64
"""Of a batch whose size nobody gave: all its relevance, all its input numbers, samples."""


@dataclass
class Engine:
    """An explainer, and what it is asked for each batch.

    Attributes:
        targets: as :func:`fastlrp.cli.class_choice.choose` takes them. initial, layers, reduce: as for an explainer.
        fixed: the only batch size that the model takes. batch: samples at once. classes: of the model; both are known
            after :meth:`probe`.
    """

    explainer: Explainer
    targets: str | list[int]
    initial: str = "output"
    layers: str | Sequence[str] | None = None
    reduce: str | None = None
    fixed: int | None = None
    batch: int = 1
    classes: int = 0
    labels: tuple[Mapping[int, str], str] | None = None
    default: bool = False
    """Whether nobody asked for these targets: of the best ones, fewer will do."""
    of_places: bool = False
    """Whether the output has scores for each place of a picture, ``(B, C, H, W)``; known after :meth:`probe`."""

    def probe(self, sample: Sample, batch: int | None) -> None:
        """Capture the model with a first sample, and find out everything that would fail for all.

        Args:
            batch: size that was asked for, or None: what fits.

        Raises:
            Failure: if the model cannot be explained, or has no such targets or layers.
        """
        try:
            with self.explainer.forward(self.stacked([sample])) as record:
                self.classes = class_choice.count(record.scores)
                self.of_places = record.scores.dim() == 4
                if self.default:
                    self.targets = class_choice.at_most(self.targets, self.classes)
                if self.labels is not None:
                    labels.check(*self.labels, self.classes)
                item = sample.item
                chosen = class_choice.choose(self.targets, record.scores, [item] * len(record.scores))
                fit = self._fit(record, sample.x.numel(), len(chosen.classes[0]))
        except UnsupportedOperationError as error:
            raise Failure(one_line(error)) from error
        except CaptureError as error:
            raise Failure(
                f"with an input {tuple(sample.x.shape)}, such as {sample.item.label}: {one_line(error)} (options that "
                f"change the input: --resize, --crop, --grey, --sample-shape)"
            ) from error
        except (KeyError, TypeError, ValueError) as error:
            raise Failure(one_line(error)) from error
        self.batch = batch or fit
        if self.fixed is not None:
            self.batch = self.fixed if batch is None else min(batch, self.fixed)

    def _fit(self, record: Any, numbers: int, targets: int) -> int:
        """Samples at once, of this many numbers and targets each. Refuses layers that the model does not have."""
        names = record.values_of(self.layers)
        fit = max(1, min(_BATCH_BYTES // (4 * numbers * targets), _BATCH_NUMBERS // numbers, _MOST))
        limit = self.explainer.max_memory
        if limit is None:
            return fit
        record.budget.check(names, self.reduce)
        steps = record.plan.schedule(tuple(dict.fromkeys(names.values()))).steps
        return int(max(1, min(fit, limit * record.batch // record.budget.need(steps, names, self.reduce, 1))))

    def explain(self, samples: Sequence[Sample]) -> Generator[Any, None, None]:
        """First ``(all scores (B, C), Chosen)``, then ``(positions, {"input": (B, k, …), layer: …})`` for each block.

        Raises:
            CaptureError: for samples of a shape that the model does not take. NotFiniteError: for a score or relevance
            of one of them. Failure: for what no batch can do.
        """
        count = len(samples)
        try:
            with self.explainer.forward(self.stacked(samples)) as record:
                padded = [sample.item for sample in samples] + [samples[-1].item] * (len(record.scores) - count)
                chosen = class_choice.choose(self.targets, record.scores, padded)
                scores = record.scores.float().reshape(len(padded), self.classes, -1).sum(2)
                yield scores[:count].cpu(), chosen
                block = None if self.explainer.max_memory is not None else self._block(record, chosen)
                for positions, found in record.stream(chosen.targets, self.initial, self.layers, self.reduce, block):
                    yield positions, {k: _host(t)[:count] for k, t in self._named(found).items()}
        except torch.OutOfMemoryError as error:
            raise Failure(
                f"out of memory on the device: give --max-memory, or --batch-size below {self.batch}"
            ) from error
        except (CaptureError, NotFiniteError):
            raise
        except ValueError as error:
            hint = ": give --batch-size 1" if "max_memory" in str(error) and count > 1 else ""
            raise Failure(f"{one_line(error)}{hint}") from error

    def targets_of(self, sample: Sample) -> Chosen:
        """What is explained of one sample."""
        with self.explainer.forward(self.stacked([sample])) as record:
            items = [sample.item] * len(record.scores)
            return class_choice.choose(self.targets, record.scores, items)

    def stacked(self, samples: Sequence[Sample]) -> Tensor:
        """A batch, filled up with its last sample where the model takes one size only."""
        x = [sample.x for sample in samples]
        if self.fixed is not None:
            x += [x[-1]] * (self.fixed - len(x))
        return torch.stack(x)

    def _block(self, record: Any, chosen: Chosen) -> int:
        """Targets at once: all, if their relevance is not too large."""
        values = record.values_of(self.layers).values()
        each = sum(math.prod(v.sizes[1:] if self.reduce and len(v.sizes) > 1 else v.sizes) for v in values)
        return max(1, min(len(chosen.classes[0]), BLOCK_BYTES // (4 * each * len(record.scores))))

    def _named(self, found: Any) -> dict[str, Tensor]:
        """The input first; the output only if somebody asked for it."""
        if self.layers is None:
            return {"input": found}
        names = [self.layers] if isinstance(self.layers, str) else self.layers
        return {k: t for k, t in found.items() if k != "output" or "output" in names}


def _host(t: Tensor) -> Tensor:
    t = t.detach().cpu()
    return t.float() if t.dtype == torch.bfloat16 else t
