"""The relevance formula types of the LRP Toolbox's Caffe tool, by number. What each means is one table.

The tool has no stabilizer in alpha-beta: a part that is zero is left out. Here it has 1e-16, the Toolbox's own number
elsewhere. Where flat, w2 and zB differ from the tool's, see ``docs/from_caffe.md``.

Source: Lapuschkin et al. 2016, and the tool's own behaviour; the rules themselves are in :mod:`fastlrp.rules`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fastlrp import rules
from fastlrp.composites.composite import Composite, Matcher, first, kind, span
from fastlrp.composites.everything_else import everything_else
from fastlrp.composites.zennit import deconvnet, gradient, guided_backprop
from fastlrp.rules import Rule

Parameters = dict[str, Any]

_RULES: dict[str, Callable[[Parameters], Rule]] = {
    "epsilon": lambda p: rules.Epsilon(p["epsilon"]),
    "alpha-beta": lambda p: rules.AlphaBeta(1.0 + p["beta"], p["beta"], p["stabilizer"]),
    "flat": lambda p: rules.Flat(p["stabilizer"]),
    "w2": lambda p: rules.WSquare(p["stabilizer"], zero_bias=True),
    "zB": lambda p: rules.ZBox(p["low"], p["high"], p["stabilizer"]),
}
_METHODS: dict[str, Callable[[], Composite]] = {
    "gradient": gradient,
    "deconvnet": deconvnet,
    "guided backprop": guided_backprop,
}

_REQUIRED = object()
_NEEDS: dict[str, tuple[str, ...]] = {"epsilon": ("epsilon",), "alpha-beta": ("beta",), "zB": ("low", "high")}
_DEFAULTS: Parameters = {
    "epsilon": 1e-6, "beta": 1.0, "low": _REQUIRED, "high": _REQUIRED, "lowest": 1, "max_pool": "winner",
    "stabilizer": 1e-16,
}  # fmt: skip


@dataclass(frozen=True)
class _Formula:
    """How one formula type treats layers; names are those of :data:`_RULES` or, for ``method``, :data:`_METHODS`.

    Attributes:
        convolution, dense: convolutions, and linear layers.
        lowest: the layers at the bottom, if they are treated otherwise: the first for zB, ``lowest`` many else.
        method: a whole method instead, which has no parameters. note: what else is to be said.
    """

    convolution: str = ""
    dense: str = ""
    lowest: str = ""
    method: str = ""
    note: str = ""

    def parameters(self) -> Parameters:
        """Name -> default of what this type takes, :data:`_REQUIRED` where there is none."""
        if self.method:
            return {}
        names = [name for rule in (self.convolution, self.dense, self.lowest) for name in _NEEDS.get(rule, ())]
        if self.lowest and self.lowest != "zB":
            names.append("lowest")
        found = {name: _DEFAULTS[name] for name in (*names, "max_pool", "stabilizer")}
        if self.lowest == "alpha-beta":
            found["lowest"] = _REQUIRED  # Which layers are the lower ones is the whole point of this type.
        return found

    def __str__(self) -> str:
        if self.method:
            return self.method + self.note
        text = self.convolution
        if self.dense != self.convolution:
            text += f" on convolutions, {self.dense} on dense layers"
        if self.lowest == "zB":
            text += "; zB at the first layer"
        elif self.lowest:
            text += f"; {self.lowest} in the lowest layers"
        return f"{text} ({_signature(self.parameters())})"


def _signature(parameters: Parameters) -> str:
    return ", ".join(k if v is _REQUIRED else f"{k}={v!r}" for k, v in parameters.items())


_FORMULAS: dict[int, _Formula] = {
    0: _Formula("epsilon", "epsilon"),
    2: _Formula("alpha-beta", "alpha-beta"),
    6: _Formula("alpha-beta", "alpha-beta", lowest="zB"),
    8: _Formula("epsilon", "epsilon", lowest="zB"),
    11: _Formula(method="gradient"),
    26: _Formula(method="deconvnet"),
    54: _Formula("epsilon", "epsilon", lowest="flat"),
    56: _Formula("epsilon", "epsilon", lowest="w2"),
    58: _Formula("alpha-beta", "alpha-beta", lowest="flat"),
    60: _Formula("alpha-beta", "alpha-beta", lowest="w2"),
    99: _Formula(method="gradient", note=": apply sensitivity() to the result"),
    100: _Formula("alpha-beta", "epsilon"),
    102: _Formula("alpha-beta", "epsilon", lowest="flat"),
    104: _Formula("alpha-beta", "epsilon", lowest="w2"),
    114: _Formula("epsilon", "epsilon", lowest="alpha-beta"),
    166: _Formula(method="guided backprop"),
}

FORMULA_TYPES: dict[int, str] = {code: str(formula) for code, formula in _FORMULAS.items()}
"""What each formula type means, a line each, with its parameters and their defaults."""


def _lowest_from_index(index: Any) -> int:
    if index != 0:
        raise ValueError(
            f"auxiliaryvariable_maxlayerindexforflatdistinconv={index!r} counts all layers of a Caffe model, "
            "activations and pools included: pass lowest=, the number of convolutions and dense layers up to that one "
            "(in CaffeNet index 0 is lowest=1, 4 is 2, 8 is 3, 10 is 4, 12 is 5)"
        )
    return 1


def _max_pool_from_switch(value: Any) -> str:
    if value not in (0, 1):
        raise ValueError(f"maxpoolingtoavgpoolinginbackwardpass must be 0 or 1, got {value!r}")
    return "average" if value else "winner"


ALIASES: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "epsstab": ("epsilon", lambda value: value),
    "alphabeta_beta": ("beta", lambda value: value),
    "auxiliaryvariable_maxlayerindexforflatdistinconv": ("lowest", _lowest_from_index),
    "maxpoolingtoavgpoolinginbackwardpass": ("max_pool", _max_pool_from_switch),
}
"""The Caffe tool's names for parameters -> ours, and how its value becomes ours."""


def from_formula_type(code: int, **parameters: Any) -> Composite:
    """The composite of a relevance formula type (``relpropformulatype``) of the LRP Toolbox's Caffe tool.

    Args:
        code: 0, 2, 6, 8, 11, 26, 54, 56, 58, 60, 99, 100, 102, 104, 114 or 166; ``FORMULA_TYPES[code]`` says what it
            means and which of these parameters it takes.
        epsilon: of the epsilon rule (the tool's ``epsstab``).
        beta: of alpha-beta, ``alpha = 1 + beta`` (``alphabeta_beta``); at least 0.
        lowest: how many of the lowest layers with a weight are treated otherwise.
        low, high: bounds of the model's input, numbers or tensors ``(1, C, 1, 1)`` or ``(1, C, H, W)``; of an input
            in 0..255 less a mean: ``-mean`` and ``255 - mean``.
        max_pool: who takes the relevance of max-pools (``maxpoolingtoavgpoolinginbackwardpass`` 0: ``"winner"``,
            1: ``"average"``).
        stabilizer: of all other denominators, pools included.

    Types 11, 26, 99 and 166 compute derivatives. The tool starts them, too, at the score; with ``initial="one"`` they
    are the derivatives themselves. 99 (and the tool's 11) is the norm over colour channels of the gradient, which no
    propagation rule can be: the composite is that of the gradient, and :func:`sensitivity` does the rest.

    Raises:
        ValueError: for an unknown code, a parameter that is missing, given twice or out of range.
        TypeError: for a parameter that this type does not take.

    Example::

        relevance = record.under(composites.from_formula_type(100, epsilon=0.1, beta=1)).relevance("top1")
    """
    if not isinstance(code, int) or isinstance(code, bool) or code not in _FORMULAS:
        raise ValueError(f"unknown formula type {code!r}: expected one of {', '.join(map(str, _FORMULAS))}")
    formula = _FORMULAS[code]
    values = _complete(code, formula.parameters(), _translated(parameters))
    if formula.method:
        return Composite(_METHODS[formula.method]().entries, name=f"formula type {code}")
    _check(values)
    entries: list[tuple[Matcher, Rule]] = [
        (kind("conv"), _RULES[formula.convolution](values)),
        (kind("linear"), _RULES[formula.dense](values)),
        *everything_else(values["stabilizer"]),
    ]
    if formula.lowest:
        where = first() if formula.lowest == "zB" else span(0, values["lowest"])
        entries.insert(0, (where, _RULES[formula.lowest](values)))
    return Composite(tuple(entries), values["max_pool"], f"formula type {code}")


def sensitivity(gradient: Tensor) -> Tensor:
    """Sensitivity maps as the Caffe tool makes them: the 2-norm of the gradient over the channels of each pixel.

    Args:
        gradient: ``(B, K, C, *S)``, the result under ``from_formula_type(99)``; ``(B, K, F)`` has no channels, and
            each entry's norm is its absolute value.

    Returns:
        ``(B, K, *S)``, or ``(B, K, F)``; never negative. The tool writes the same map into each channel:
        ``sensitivity(g).unsqueeze(2).expand_as(g)``. Elsewhere sensitivity is the squared gradient: ``g.square()``.

    Raises:
        ValueError: for a tensor of fewer than three axes.

    Example::

        gradients = record.under(composites.from_formula_type(99)).relevance("top1", initial="one")
        maps = composites.sensitivity(gradients)  # (2, 1, 16, 16)

    Source: Simonyan et al. 2014 (maximum over channels there); the Caffe tool.
    """
    if gradient.dim() < 3:
        raise ValueError(f"gradient must be (B, K, C, *S) or (B, K, F), got {tuple(gradient.shape)}")
    return gradient.abs() if gradient.dim() == 3 else gradient.square().sum(2).sqrt()


def _translated(parameters: Parameters) -> Parameters:
    """The Caffe tool's parameters under the names that rules have here."""
    found: Parameters = {}
    for name, value in parameters.items():
        ours, convert = ALIASES.get(name, (name, None))
        if ours in found or (convert is not None and ours in parameters):
            raise ValueError(f"{ours} is given twice: {name!r} is the Caffe tool's name for it")
        found[ours] = value if convert is None else convert(value)
    return found


def _complete(code: int, known: Parameters, given: Parameters) -> Parameters:
    """All parameters of this type, defaults filled in."""
    takes = f"formula type {code} is {FORMULA_TYPES[code]}"
    superfluous = [name for name in given if name not in known]
    if superfluous:
        some = f"it takes {', '.join(known)}" if known else "it takes no parameters"
        raise TypeError(f"{superfluous[0]!r} is no parameter of formula type {code}: {some}. {takes}")
    values = {**known, **given}
    missing = [name for name, value in values.items() if value is _REQUIRED]
    if missing:
        raise ValueError(f"formula type {code} needs {' and '.join(missing)}. {takes}")
    return values


def _check(values: Parameters) -> None:
    beta, lowest = values.get("beta", 0.0), values.get("lowest", 1)
    if isinstance(beta, bool) or not isinstance(beta, (int, float)) or not beta >= 0:
        raise ValueError(f"beta must be a number >= 0 (alpha is 1 + beta), got {beta!r}")
    if isinstance(lowest, bool) or not isinstance(lowest, int) or lowest < 1:
        raise ValueError(f"lowest must be a number of layers, at least 1, got {lowest!r}")
