"""The textbook functions of all rules under one roof."""

from fastlrp.reference.redistribution import Affine, Ledger, vjp
from fastlrp.rules.alpha_beta import textbook as alpha_beta
from fastlrp.rules.epsilon import textbook as epsilon
from fastlrp.rules.flat import textbook as flat
from fastlrp.rules.gamma import textbook as gamma
from fastlrp.rules.modified_weights import textbook as modified_weights
from fastlrp.rules.wsquare import textbook as wsquare
from fastlrp.rules.zbox import textbook as zbox
from fastlrp.rules.zplus import textbook as zplus

__all__ = [
    "Affine",
    "Ledger",
    "alpha_beta",
    "epsilon",
    "flat",
    "gamma",
    "modified_weights",
    "vjp",
    "wsquare",
    "zbox",
    "zplus",
]
