"""The rules of LRP: one small frozen dataclass each, in a file of its own, with its formula and its source."""

from fastlrp.rules.alpha_beta import AlphaBeta
from fastlrp.rules.autograd_function import AutogradFunction
from fastlrp.rules.carry import Pass
from fastlrp.rules.custom import Custom
from fastlrp.rules.epsilon import Epsilon
from fastlrp.rules.fixed_sigma import FixedSigma
from fastlrp.rules.flat import Flat
from fastlrp.rules.gamma import Gamma
from fastlrp.rules.gradient import Deconvnet, Gradient, GuidedBackprop
from fastlrp.rules.heads import Heads
from fastlrp.rules.held_selection import HeldSelection
from fastlrp.rules.input_gradient import InputGradient
from fastlrp.rules.modified_weights import ModifiedWeights
from fastlrp.rules.norm import Norm
from fastlrp.rules.plain_gamma import PlainGamma
from fastlrp.rules.recurrent import Recurrent
from fastlrp.rules.rule import Rule, TwoCoefficientRule, WeightRule
from fastlrp.rules.taylor import Taylor
from fastlrp.rules.uniform import Uniform
from fastlrp.rules.value_only import ValueOnly
from fastlrp.rules.wsquare import WSquare
from fastlrp.rules.zbox import ZBox
from fastlrp.rules.zplus import ZPlus

__all__ = [
    "AlphaBeta",
    "AutogradFunction",
    "Custom",
    "Deconvnet",
    "Epsilon",
    "FixedSigma",
    "Flat",
    "Gamma",
    "Gradient",
    "GuidedBackprop",
    "Heads",
    "HeldSelection",
    "InputGradient",
    "ModifiedWeights",
    "Norm",
    "Pass",
    "PlainGamma",
    "Recurrent",
    "Rule",
    "Taylor",
    "TwoCoefficientRule",
    "Uniform",
    "ValueOnly",
    "WSquare",
    "WeightRule",
    "ZBox",
    "ZPlus",
]
