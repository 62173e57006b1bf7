"""How one call computed one layer."""

from __future__ import annotations

from dataclasses import dataclass

from fastlrp.plan.forms import Affine, Way


@dataclass(eq=False)
class Path:
    """How one layer is computed: densities of the neurons that carry relevance above and below it.

    ``narrow``: whether its sparse products read bfloat16. ``arriving``: density of the entries that a sparse layer is
    given, fewer than ``above`` where a max-pool stands over it.
    """

    form: Affine
    sparse: bool
    above: float
    below: float
    narrow: bool = False
    arriving: float = 1.0

    @property
    def way(self) -> Way:
        """How it is computed."""
        return ("sparse bf16" if self.narrow else "sparse") if self.sparse else "dense"

    def __str__(self) -> str:
        narrow = self.narrow if self.sparse else self.form.is_narrow
        name = ("sparse" if self.sparse else "dense") + (" bf16" if narrow else "")
        return f"{name} {self.above:.2f} x {self.below:.2f}"
