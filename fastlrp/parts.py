"""What relevance of groups makes cheap: similarity of two inputs, generated text, tokens by layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastlrp.composites import Composite
from fastlrp.explainer import Explainer
from fastlrp.groups import Groups
from fastlrp.run.record import ForwardRecord
from fastlrp.run.up.direction import Direction


def similarity(
    model: nn.Module | Explainer,
    a: Any,
    b: Any,
    groups: Groups,
    groups_b: Groups = None,
    composite: str | Composite = "gamma",
    direction: Direction = "auto",
    **options: Any,
) -> Tensor:
    """BiLRP: which parts of ``a`` together with which parts of ``b`` make the dot product of their features.

    ``R_pq = sum_m R_p(phi_m(a)) R_q(phi_m(b))``, with the relevance of part p for feature m of the model's output
    ``phi``. That is one way up for each input and one product, or D targets down for each, whichever costs less.

    Args:
        model: gives features ``(B, D)``; an :class:`~fastlrp.Explainer` is captured once for several calls.
        a, b: inputs of the same number of samples, compared one by one.
        groups: parts of ``a``, see :meth:`fastlrp.ForwardRecord.relevance`. groups_b: of ``b``; None: the same.
        composite, options: of the explainer, unless ``model`` is one. direction: ``"auto"``, ``"up"``, ``"down"``.

    Returns:
        ``(B, G_a, G_b)``. Its sum is ``phi(a) phi(b)`` less what biases and stabilizers keep.

    Raises:
        ValueError: for an output that is not ``(B, D)``, or batches of different sizes.

    Example::

        features = nn.Sequential(*list(model)[:-1])
        pairs = fastlrp.similarity(features, x[:1], x[1:], groups.patches(8))  # (1, 4, 4): patches by patches

    Source: Eberle et al. 2022 (BiLRP), eq. 5.
    """
    explainer = model if isinstance(model, Explainer) else Explainer(model, composite, **options)
    found = []
    for x, parts in ((a, groups), (b, groups if groups_b is None else groups_b)):
        with explainer.forward(x) as record:
            if record.scores.dim() != 2:
                raise ValueError(
                    f"similarity needs features (B, D), and the explained output is {tuple(record.scores.shape)}: give "
                    "output=lambda out: … that makes them, for example out.mean(1) or out.flatten(1)"
                )
            found.append(record.relevance("all", groups=parts, direction=direction))
    if len(found[0]) != len(found[1]):
        raise ValueError(f"a has {len(found[0])} samples and b has {len(found[1])}: they are compared one by one")
    return found[0].mT @ found[1]


def generated(record: ForwardRecord, prompt: int, groups: Groups = "tokens", direction: Direction = "auto") -> Tensor:
    """Each generated token of a text explained over all tokens before it.

    Args:
        record: of a language model with logits ``(B, S, V)`` on the whole text, prompt and continuation.
        prompt: tokens that were given; the others were generated.
        groups, direction: see :meth:`fastlrp.ForwardRecord.relevance`.

    Returns:
        ``(B, S - prompt, G)``: row n is the relevance for the logit of token ``prompt + n`` at the position before it.

    Raises:
        ValueError: if there is no such token.

    Example::

        with reader.forward(ids) as whole:
            relevance = fastlrp.generated(whole, prompt=2)  # (2, 2, 4): what made each of the last two tokens
    """
    shape = tuple(record.scores.shape)
    if len(shape) != 3 or not 1 <= prompt < shape[1]:
        raise ValueError(
            f"generated needs logits (B, S, V) and a prompt of 1 to S - 1 tokens, got an output {shape} and {prompt}"
        )
    at = range(prompt - 1, shape[1] - 1)
    found: Tensor = record.relevance("next", at=at, groups=groups, direction=direction)
    return found


def tokens_by_layers(record: ForwardRecord, target: Any, layers: Sequence[str], at: Any = None) -> Tensor:
    """Relevance of each position in each of these layers, ``(B, K, L, S)``.

    Args:
        target, at: see :meth:`fastlrp.ForwardRecord.relevance`. layers: module paths whose outputs are ``(B, S, D)``.
        record: of a model of texts.

    Raises:
        ValueError: for layers with other outputs.

    Example::

        with reader.forward(ids) as whole:
            relevance = fastlrp.tokens_by_layers(whole, 3, ["0"], at=-1)  # (2, 1, 1, 4)
    """
    found = record.relevance(target, at=at, layers=list(layers))
    rows = [found[name] for name in layers]
    shapes = {tuple(t.shape[2:-1]) for t in rows}
    if any(t.dim() != 4 for t in rows) or len(shapes) != 1:
        raise ValueError(
            "tokens_by_layers needs layers with outputs (B, S, D) of one length, got relevance of "
            + ", ".join(f"{name} {tuple(t.shape)}" for name, t in zip(layers, rows, strict=True))
        )
    return torch.stack([t.sum(-1) for t in rows], 2)
