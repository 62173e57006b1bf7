"""``--composite NAME -p key=value --profile NAME``: the composite, and what relevance starts with."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastlrp.cli.errors import Failure
from fastlrp.cli.preprocess import Preprocessing
from fastlrp.composites import PRESETS, PROFILES, Composite, preset
from fastlrp.composites.advice import unknown_preset

DERIVATIVES = ("gradient", "deconvnet", "guided_backprop")
"""Composites that compute derivatives: relevance starts with 1, not with the score."""


def check(name: str, parameters: Sequence[tuple[str, Any]], profile: str | None) -> dict[str, Any]:
    """The parameters, after everything that can be said before there is a model.

    Raises:
        Failure: for an unknown composite, profile or parameter, or a value of the wrong kind.
    """
    if name not in PRESETS:
        raise Failure(unknown_preset(name, PRESETS))
    if profile is not None and profile not in PROFILES:
        raise Failure(f"unknown profile {profile!r}: expected one of {', '.join(PROFILES)}")
    known = inspect.signature(PRESETS[name]).parameters
    for key, value in parameters:
        if key not in known:
            raise Failure(f"{name} has no parameter {key!r}: it takes {', '.join(known) or 'none'}")
        _check_value(key, value, str(known[key].annotation))
    given = dict(parameters)
    if len(given) < len(parameters):
        raise Failure("-p gives a parameter twice")
    if ("low" in given) != ("high" in given):
        raise Failure(f"{name} takes both bounds: -p low=… -p high=…")
    return given


def _check_value(key: str, value: Any, kind: str) -> None:
    several = isinstance(value, tuple)
    if kind == "bool":
        fits, expected = isinstance(value, bool), "true or false"
    elif kind == "MaxPoolMode":
        fits, expected = value in ("winner", "ties", "average", "sum"), "winner, ties, average or sum"
    elif "Tensor" in kind:
        fits, expected = several or type(value) is float, "a number, or one for each channel: -2.1,-2.0,-1.8"
    else:
        fits, expected = type(value) is float, "a number"
    if not fits:
        raise Failure(f"-p {key}: expected {expected}, got {','.join(map(str, value)) if several else value}")


def composite(
    name: str, given: dict[str, Any], profile: str | None, bounds: Preprocessing | None, like: torch.Tensor
) -> Composite:
    """The composite.

    Args:
        given: from :func:`check`. bounds: how pictures become input, which says what the box rule's box is unless it
            is given; None if the inputs are arrays. like: a tensor on the model's device, of its dtype.

    Raises:
        Failure: for a box rule without a box, or values that the composite refuses.
    """
    given = {key: _tensor(value) if isinstance(value, tuple) else value for key, value in given.items()}
    if name == "epsilon_gamma_box" and "low" not in given:
        if bounds is None:
            raise Failure("epsilon_gamma_box needs the bounds of arrays: -p low=… -p high=…")
        given["low"], given["high"] = bounds.bounds()
    given = {key: value.to(like) if isinstance(value, Tensor) else value for key, value in given.items()}
    try:
        return preset(name, profile or "zennit", **given)
    except (ValueError, TypeError) as error:
        raise Failure(f"--composite {name}: {error}") from error


def _tensor(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).view(1, -1, 1, 1)


def initial(name: str, asked: str | None) -> str:
    """What relevance starts with: as asked for, else 1 for derivatives and the score for all others."""
    return asked or ("one" if name in DERIVATIVES else "output")


def described(name: str, given: dict[str, Any], profile: str | None, start: str) -> str:
    """Composite, parameters, profile and start in one line for people."""
    values = ((key, ",".join(map(str, v)) if isinstance(v, tuple) else str(v)) for key, v in given.items())
    numbers = ", ".join(f"{key}={value}" for key, value in values)
    extra = f", profile {profile}" if profile else ""
    return f"{name}({numbers}){extra}, starting from {'the score' if start == 'output' else '1'}"
