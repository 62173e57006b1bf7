"""How one call computed one layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fastlrp.plan.forms import Affine, Way


@dataclass(eq=False)
class Path:
    """How one layer is computed: densities of the neurons that carry relevance above and below it.

    ``narrow``: whether its sparse products read bfloat16. ``arriving``: density of the entries that a sparse layer is
    given, fewer than ``above`` where a max-pool stands over it. ``share``: of the samples for which it was computed so,
    where a batch went in parts and not all of them one way.
    """

    form: Affine
    sparse: bool
    above: float
    below: float
    narrow: bool = False
    arriving: float = 1.0
    share: float = 1.0

    @staticmethod
    def of_parts(paths: Sequence[Path], lengths: Sequence[int]) -> Path:
        """Of a batch whose parts, of so many samples, went these ways: the way of most samples, densities of all."""
        samples: dict[Way, int] = {}
        for path, n in zip(paths, lengths, strict=True):
            samples[path.way] = samples.get(path.way, 0) + n
        most, total = max(samples, key=lambda way: samples[way]), sum(lengths)
        first = next(path for path in paths if path.way == most)

        def mean(densities: list[float]) -> float:
            return sum(d * n for d, n in zip(densities, lengths, strict=True)) / total

        return replace(
            first, above=mean([p.above for p in paths]), below=mean([p.below for p in paths]),
            arriving=mean([p.arriving for p in paths]), share=samples[most] / total,
        )  # fmt: skip

    @property
    def way(self) -> Way:
        """The way that the layer went, as estimates and rates name it."""
        return ("sparse bf16" if self.narrow else "sparse") if self.sparse else "dense"

    def __str__(self) -> str:
        narrow = self.narrow if self.sparse else self.form.is_narrow
        name = ("sparse" if self.sparse else "dense") + (" bf16" if narrow else "")
        some = f", {self.share:.0%} of samples" if self.share < 1 else ""
        return f"{name} {self.above:.2f} x {self.below:.2f}{some}"
