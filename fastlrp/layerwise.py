"""All layers of a model in one call, in the style of the small functions that people paste from tutorials."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fastlrp.composites import Composite
from fastlrp.explainer import Explainer


def lrp(
    model: nn.Module,
    x: Tensor,
    target: Any = None,
    composite: str | Composite = "epsilon_plus",
    at: Any = None,
    **options: Any,
) -> dict[str, Tensor]:
    """Relevance of every layer's output, from the model's output down to its input.

    Args:
        model, composite, options: see :class:`fastlrp.Explainer`.
        x: ``(B, …)``.
        target: a class; None for each sample's highest score; or anything that :class:`fastlrp.Explainer` takes as
            ``targets``, which gives every relevance a target axis.
        at: positions of the target, as :class:`fastlrp.Explainer` takes them; several give a target axis too.

    Returns:
        name -> relevance ``(B, *shape of the layer's output)``, ``(B, K, …)`` where several targets were asked for:
        ``"output"`` first, then modules by path and functional calls as ``path.operation`` (``"relu"``,
        ``"block.add_1"``), ``"input"`` last. Layers whose output does not have the batch as first axis are left out.

    Example::

        layers = fastlrp.lrp(model, x)
        assert list(layers)[0] == "output" and layers["input"].shape == x.shape
    """
    single = target is None or (isinstance(target, int) and not isinstance(target, bool))
    single = single and (at is None or isinstance(at, (int, tuple)))
    explainer = Explainer(model, composite, **options)
    with explainer.forward(x) as record:
        names = record.layer_names
        found = record.relevance("top1" if target is None else target, layers=names, at=at)
    ordered = {"output": found["output"], **{name: found[name] for name in reversed(names)}, "input": found["input"]}
    return {name: relevance[:, 0] if single else relevance for name, relevance in ordered.items()}
