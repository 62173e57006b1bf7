"""What outputs must be before they are timed: nobody measured is the measure of the others, fastlrp least of all."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

from torch import Tensor, nn

from benchmarks import measure, precisions, providers
from benchmarks.attention_models import Workload
from benchmarks.measure import AGREES, COMPARED, Gate, disagreement

Model = tuple[nn.Module, Tensor]
"""A model and its input."""


WINNERS = 5e-4
"""Largest difference of an image's float32 explanation from float64. In some maps two entries under a max-pool are
equal to float32, and which of them wins depends on the order in which a library adds up. VGG-16, eight images,
EpsilonPlus: fastlrp 1e-6 to 3e-6 in four of them and at most 2.7e-4, Zennit 3e-7 to 7e-7 in five and 1.4e-4."""


def in_double(model: nn.Module, x: Tensor, rule: str, classes: Tensor) -> Gate:
    """Everybody's float32 is compared with the float64 of composed PyTorch operations, by the same measure."""
    exact, wide = copy.deepcopy(model).double(), x.double()
    expected = measure.run(providers.ours(exact, wide, rule, "torch"), wide, classes[:, :COMPARED])
    return Gate(expected.double(), WINNERS, WINNERS)


def of_transformer(work: Workload, rule: str) -> Callable[[Tensor], Gate]:
    """The gate of any targets ``(1, K)`` of a transformer: composed PyTorch operations in float64."""
    x = work.x if work.is_text else work.x.double()
    exact = replace(work, model=copy.deepcopy(work.model).double(), x=x)
    definition, _ = providers.of_transformer(exact, rule, backend="torch")
    return lambda classes: Gate(measure.run(definition, x, classes[:, :COMPARED]).double())


def made(exact: Model, own: Model, rule: str, classes: Tensor, name: str) -> Gate:
    """Outputs are compared with those of composed PyTorch operations in float32.

    In less than float32 fastlrp may be twice as far from them as these same operations are in that precision; others
    need only be nearer than nothing at all is. That their procedure is right is seen in float32.

    Args:
        exact, own: the model in float32, and in the precision that is measured.
        rule: a composite's name. classes: ``(B, K)``. name: of the precision, which the caller has switched to.
    """
    classes = classes[:, :COMPARED]
    with precisions.using("float32"):
        expected = measure.run(providers.ours(*exact, rule, "torch"), exact[1], classes).double()
    if name == "float32":
        return Gate(expected)
    composed = measure.run(providers.ours(*own, rule, "torch"), own[1], classes)
    off = disagreement(composed.double(), expected)
    return Gate(expected, max(AGREES, 2 * off) if off < 0.5 else 1.0, 1.0)
