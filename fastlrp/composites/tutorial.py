"""The two recipes of the heatmapping.org tutorial (Montavon et al. 2019): an MLP on digits, VGG-16 on photographs.

Both add their stabilizers without a sign, ``z + 1e-9`` and ``z + epsilon rms(z)``, with the root mean square of the
whole tensor: so relevance under epsilon depends on what else is in the batch. Explain one image at a time to compare
with the tutorial.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastlrp import rules
from fastlrp.composites.composite import Composite, Layer, Matcher, kind, span
from fastlrp.composites.everything_else import everything_else
from fastlrp.rules import Rule
from fastlrp.stabilizer import Stabilizer

TINY = Stabilizer(1e-9, signed=False)
"""The tutorial's ``z + 1e-9``."""

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

VGG_GAMMA_LAYERS = {"vgg11": 4, "vgg13": 6, "vgg16": 7, "vgg19": 8}
"""Convolutions up to the third max-pool; ``gamma_layers`` of :func:`tutorial_vgg16`."""


def pixel_bounds(
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    low: float = 0.0,
    high: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Lowest and highest value of each channel of an image in ``[low, high]`` that is normalised, ``(1, C, 1, 1)``.

    Args:
        mean, std: of the normalisation, one number per channel.
        low, high: bounds of a pixel before it.

    Raises:
        ValueError: if there are not as many means as standard deviations, or one of the latter is not positive.

    Example::

        low, high = composites.pixel_bounds()  # of images in [0, 1], normalised as for ImageNet
        composite = composites.epsilon_gamma_box(low, high)
    """
    if len(mean) != len(std) or not all(value > 0 for value in std):
        raise ValueError(f"mean and std must be of one length and std > 0, got mean={mean!r}, std={std!r}")
    shift, scale = (torch.tensor(values, dtype=torch.float64).view(1, -1, 1, 1) for values in (mean, std))
    return (low - shift) / scale, (high - shift) / scale


def increment(epsilon: float) -> Stabilizer:
    """The tutorial's ``incr``: ``z + epsilon rms(z)``, always added; ``z + 1e-9`` where epsilon is 0.

    Beside a positive epsilon its 1e-9 are left out: they are 1e-8 of the increment where ``rms(z)`` is 1.
    """
    return Stabilizer(epsilon, relative="tensor", signed=False) if epsilon else TINY


def tutorial_vgg16(
    low: float | Tensor | None = None,
    high: float | Tensor | None = None,
    gamma: float = 0.25,
    epsilon: float = 0.25,
    gamma_layers: int = 7,
    gamma_pools: int = 3,
    top_layers: int = 3,
) -> Composite:
    """The tutorial's rules for VGG-16: zB at the pixels, gamma below, epsilon in the middle, LRP-0 above.

    ======================================  ==========================================  =======================
    torchvision's ``features``, tutorial's  layers with a weight, max-pools             rule, denominator
    ======================================  ==========================================  =======================
    0                                       the first                                   zB, ``z + 1e-9``
    1 to 16                                 up to ``gamma_layers``, ``gamma_pools``     gamma, ``z + 1e-9``
    17 to 30                                the rest below the top                      ``z + epsilon rms(z)``
    31 and up                               the last ``top_layers``                     LRP-0, ``z + 1e-9``
    ======================================  ==========================================  =======================

    Max-pools are treated as average pools. An adaptive average pool, which the tutorial leaves out, shares in
    proportion without a stabilizer; at the training size it is the identity.

    Args:
        low, high: bounds of the model's input (zB), both or neither; by default those of :func:`pixel_bounds`.
        gamma, epsilon: of the two zones; epsilon in units of the root mean square of the denominators.
        gamma_layers: layers with a weight up to the third pool, the first included: 4, 6, 7 and 8 for torchvision's
            VGG-11, 13, 16 and 19 (:data:`VGG_GAMMA_LAYERS`).
        gamma_pools: max-pools (of average pools, counted apart, too) in the gamma zone.
        top_layers: layers with a weight that get LRP-0: the classifier's, linear or 1x1 convolutions.

    Raises:
        ValueError: if one bound is given without the other, or ``low`` exceeds ``high``.

    Example::

        composite = composites.tutorial_vgg16(gamma_layers=4)  # of VGG-11

    Source: Montavon et al. 2019, sections 10.2 and 10.3.
    """
    if (low is None) != (high is None):
        raise ValueError(f"tutorial_vgg16 needs both bounds of the input or neither, got low={low!r}, high={high!r}")
    lowest, highest = pixel_bounds() if low is None or high is None else (low, high)
    middle = increment(epsilon)

    def lower_pool(layer: Layer) -> bool:
        return layer.kind in ("max_pool", "avg_pool") and layer.kind_index < gamma_pools

    entries: tuple[tuple[Matcher, Rule], ...] = (
        (span(0, 1), rules.ZBox(lowest, highest, TINY)),
        (span(-top_layers) if top_layers else span(0, 0), rules.Epsilon(TINY)),
        (span(1, gamma_layers), rules.PlainGamma(gamma, TINY)),
        (kind("conv", "linear"), rules.Epsilon(middle)),
        (lower_pool, rules.Norm(TINY)),
        (kind("max_pool", "avg_pool"), rules.Norm(middle)),
        *_elsewhere(),
    )
    return Composite(entries, "average", "tutorial_vgg16")


def tutorial_mlp(
    low: float | Tensor = -1.0,
    high: float | Tensor = 1.0,
    gamma: Sequence[float] = (0.1, 0.0, 0.0),
    epsilon: Sequence[float] = (0.0, 0.1, 0.0),
) -> Composite:
    """The tutorial's rules for its network on digits in [-1, 1]: zB at the pixels, then layer by layer.

    Layer ``l`` (1 is the one above the pixels') has ``rho(w) = w + gamma[l - 1] w+`` for weight and bias, and the
    denominator ``z + epsilon[l - 1] rms(z)``, ``z + 1e-9`` where that is 0; layers above the lists have LRP-0. By
    default: gamma 0.1, then epsilon 0.1 rms, then LRP-0. The tutorial's network, 784-300-100-10, has three layers: so
    its top one is the epsilon layer, and LRP-0 is for one more.

    Args:
        low, high: bounds of the pixels.
        gamma, epsilon: one number per layer above the first, from below.

    Raises:
        ValueError: if a number is negative, or ``low`` exceeds ``high``.

    Example::

        mlp = nn.Sequential(nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 10)).eval()
        relevance = fastlrp.explain(mlp, torch.rand(1, 784), "top1", composites.tutorial_mlp())

    Source: Montavon et al. 2019, section 10.2; Montavon et al. 2017, eq. 13.
    """
    count = max(len(gamma), len(epsilon))
    gammas, epsilons = (tuple(values) + (0.0,) * (count - len(values)) for values in (gamma, epsilon))
    entries: list[tuple[Matcher, Rule]] = [(span(0, 1), rules.ZBox(low, high, TINY))]
    for position, (g, e) in enumerate(zip(gammas, epsilons, strict=True), start=1):
        rule = rules.PlainGamma(g, increment(e)) if g else rules.Epsilon(increment(e))
        entries.append((span(position, position + 1), rule))
    entries.append((kind("conv", "linear"), rules.Epsilon(TINY)))
    return Composite((*entries, *_elsewhere()), name="tutorial_mlp")


def _elsewhere() -> tuple[tuple[Matcher, Rule], ...]:
    return ((kind("adaptive_avg_pool"), rules.Norm(0.0)), *everything_else(TINY))
