"""Rounds beside the LRP Toolbox's procedure, on its own network and digits."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from benchmarks import (
    density,
    peers,
    providers,
    toolbox,
)
from benchmarks.measure import AGREES, Case, disagreement
from benchmarks.models import lenet5
from benchmarks.providers import Provider
from benchmarks.rounds import Options, Round, spread_out
from fastlrp import rules
from fastlrp.composites import Composite, kind

DIGITS = 50


def toolbox_rules(variant: str) -> Composite:
    """The Toolbox's stabilizers for fastlrp.

    Both divide by ``z + epsilon sgn(z)`` with the bias in z. The Toolbox's pools weigh the plain sum S of a window;
    the module returns ``S / sqrt(h w)``, here S / 2, so its epsilon is half of theirs.
    """
    weighted, pool = toolbox.VARIANTS[variant]
    entries = (
        (kind("conv", "linear"), rules.Epsilon(weighted)),
        (kind("activation"), rules.Pass()),
        (kind("avg_pool"), rules.Norm(pool / 2)),
    )
    return Composite(entries, name=f"toolbox_{variant}")


def lrp_toolbox(options: Options) -> Iterator[Round]:
    """LeNet-5 of the LRP Toolbox, ten classes of 50 digits, beside the Toolbox's own procedure.

    Raises:
        GoldensMissingError: without its network and digits.
        RuntimeError: if fastlrp does not give the Toolbox's numbers.
    """
    network = toolbox.read(toolbox.golden("LeNet-5.txt"))
    model = lenet5(network)
    x = torch.from_numpy(toolbox.digits(DIGITS, np.float32).transpose(0, 3, 1, 2).copy())
    classes = spread_out(10, 10, DIGITS)
    share = density.measure(model, x)
    for variant in options.composites or ("simple", "epsilon_0.1"):
        own = [providers.ours(model, x, toolbox_rules(variant), backend) for backend in options.backends]
        for part in own:
            _check_golden(part, x, variant)
        theirs = [peers.toolbox_procedure(variant, dtype) for dtype in (np.float32, np.float64)]
        beside = providers.gradients(model, 10) if "gradient" in options.others else []
        beside += [providers.floor(model, x)] if "floor" in options.others else []
        case = Case("toolbox", "LeNet-5", variant, classes, 32, None, share)
        yield Round(case, [*own, *theirs, *beside], x, options.repeats or 3)


SWEEP = (0.01, 0.1, 1.0)
"""Epsilons of the sweep; the Toolbox's own numbers for the last two are among the goldens."""


def sweep(options: Options) -> Iterator[Round]:
    """LeNet-5, ten classes of 50 digits under three epsilons: one forward pass aware of LRP, then only ``lrp``.

    Raises:
        GoldensMissingError: without the Toolbox's network and digits.
        RuntimeError: if fastlrp does not give the Toolbox's numbers.
    """
    own = providers.thin(toolbox.golden("LeNet-5.txt"), SWEEP)
    x = torch.from_numpy(toolbox.digits(DIGITS, np.float32).transpose(0, 3, 1, 2).copy())
    for number, variant in ((1, "epsilon_0.1"), (2, "epsilon_1")):
        _check_golden(own, x, variant, 10 * number)
    theirs = [peers.toolbox_sweep(SWEEP, dtype) for dtype in (np.float32, np.float64)]
    classes = spread_out(10, 10, DIGITS).repeat(1, len(SWEEP))
    case = Case("sweep", "LeNet-5", "epsilon", classes, 32, None, None)
    yield Round(case, [own, *theirs], x, options.repeats or 5)


def _check_golden(part: Provider, x: Tensor, variant: str, start: int = 0) -> None:
    """Ten targets from ``start`` on are those of the golden."""
    with np.load(toolbox.golden("lenet5_mnist_relevance.npz"), allow_pickle=False) as arrays:
        golden = torch.from_numpy(arrays[variant]).float()
    found = part.run(x[:10], spread_out(10, 10, 10), lambda: None)
    assert found is not None
    error = disagreement(found[:, start : start + 10, 0], golden)
    if not error <= AGREES:
        raise RuntimeError(f"{part.name} differs from the LRP Toolbox's own numbers ({variant}) by {error:.1e}")
