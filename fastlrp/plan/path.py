"""How one call computed one layer."""

from __future__ import annotations

from dataclasses import dataclass

from fastlrp.plan.forms import Affine


@dataclass(eq=False)
class Path:
    """Dense or for alive neurons only; densities of the neurons that carry relevance above and below the layer."""

    form: Affine
    sparse: bool
    above: float
    below: float

    def __str__(self) -> str:
        name = "sparse" if self.sparse else "dense bf16" if self.form.is_reduced else "dense"
        return f"{name} {self.above:.2f} x {self.below:.2f}"
