"""The options that several commands share, in groups, with their help."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import click

from fastlrp.cli import parse
from fastlrp.cli.models import DTYPES
from fastlrp.cli.preprocess import FILTERS
from fastlrp.cli.sections import option
from fastlrp.composites import PROFILES
from fastlrp.precision import PRECISIONS

F = TypeVar("F", bound=Callable[..., Any])
_MODEL, _RULE, _INPUT, _TARGET = map(option, ("Model", "Relevance", "Input", "Targets"))
_SPEED, _MESSAGE = option("Speed"), option("Messages")
DEBUG = "fastlrp.debug"
"""Key in click's ``meta``: whether to show tracebacks."""


def _group(*options: Callable[[Any], Any]) -> Callable[[F], F]:
    def add(command: F) -> F:
        for add_one in reversed(options):
            command = add_one(command)
        return command

    return add


def _debug(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        ctx.meta[DEBUG] = True


argument = click.argument("model")
model = _group(
    _MODEL("--weights", metavar="FILE", help="Weights for MODEL: .pt, .pth (nothing in them is run) or .safetensors."),
    _MODEL(
        "--trust",
        is_flag=True,
        help="Load a .pt2 program in PyTorch's own way, which runs what the file says, and what Python an hf:FOLDER of "
        "texts brings: only for files of known origin.",
    ),
    _MODEL("--classes", type=click.IntRange(1), help="Number of classes of torchvision:NAME."),
    _MODEL("--seed", type=int, default=0, show_default=True, help="Of random weights."),
    _MODEL("--output", metavar="NAME", help="Which output to explain, if the model returns several."),
    _MODEL("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1, …"),
    _MODEL("--dtype", type=click.Choice(list(DTYPES)), default="float32", show_default=True),
    _MODEL("--max-memory", metavar="SIZE", help="Bound on what propagation holds at once, such as 2GB."),
    _MODEL(
        "--paths",
        type=click.Choice(["auto", "dense", "sparse"]),
        default="auto",
        show_default=True,
        help="How layers with weights are computed on a CPU.",
    ),
    _MODEL(
        "--precision",
        type=click.Choice(PRECISIONS),
        default="auto",
        show_default=True,
        help="What their products read on a CPU: bf16 is faster with AMX or AVX512-BF16, to about three digits.",
    ),
)
"""Which model, and where it runs."""

rule = _group(
    _RULE(
        "-c", "--composite", metavar="NAME", default="epsilon_plus", show_default=True,
        help="Which rule on which layer: epsilon_plus, epsilon_gamma_box, gamma, alpha_beta, gradient, … (a wrong name "
        "lists all).",
    ),
    _RULE(
        "-p", "--parameter", "parameters", type=parse.ASSIGNMENT, multiple=True,
        help="Parameter of the composite, such as -p epsilon=0.1 -p max_pool=ties.",
    ),
    _RULE("--profile", metavar="NAME", help=f"Conventions of other software: {', '.join(PROFILES)}."),
    _RULE(
        "--initial", type=click.Choice(["output", "one"]),
        help="What relevance starts with: the score, or 1 (default for gradient, deconvnet, guided_backprop).",
    ),
)  # fmt: skip
"""How relevance is propagated."""

inputs = _group(
    _INPUT("--list", metavar="FILE", help="Text with lines of PATH CLASS or PATH; # begins a comment."),
    _INPUT("--sample-shape", type=parse.SIZES, metavar="C,H,W", help="Of one sample of an array, such as 1,28,28."),
    _INPUT("--max-input", metavar="SIZE", help="Bound on a file of input and on what it unpacks to, such as 8GB."),
    _INPUT("--key", metavar="NAME", help="Which array of .npz and .mat files that hold several."),
    _INPUT(
        "--preprocessing", type=click.Choice(["auto", "none"]), default="auto", show_default=True,
        help="auto: the model's own, if it has any; none: pixels in [0, 1]. The options below change either.",
    ),
    _INPUT("--resize", type=parse.SIZE, metavar="N|HxW", help="Shorter side, or height x width."),
    _INPUT("--crop", type=parse.PAIR, metavar="N|HxW", help="Around the centre."),
    _INPUT("--interpolation", type=click.Choice(FILTERS), metavar="NAME", help=f"Of resizing: {', '.join(FILTERS)}."),
    _INPUT("--range", type=parse.LIMITS, metavar="LOW,HIGH", help="What black and white become; 0,1 unless given."),
    _INPUT("--mean", type=parse.NUMBERS, metavar="M[,M,M]", help="Subtracted after that."),
    _INPUT("--std", type=parse.NUMBERS, metavar="S[,S,S]", help="Divided by after that."),
    _INPUT("--grey", is_flag=True, help="One channel instead of three."),
)  # fmt: skip
"""What goes into the model."""


_TEXT = option("Text")
text = _group(
    _TEXT(
        "--text", multiple=True, is_eager=True, metavar="TEXT",
        help="Explain this text, with a model of texts (hf:FOLDER). May be given several times.",
    ),
    _TEXT(
        "--text-file", is_eager=True, metavar="FILE", help="One text in each line.",
    ),
    _TEXT(
        "--at", type=parse.PLACES, metavar="N,N",
        help="At which tokens scores are explained, if the model has some for each: -1 is the last. Unless given where "
        "[MASK] stands, or the last.",
    ),
    _TEXT("--context", metavar="TEXT", help="Where a model that answers questions looks; the question is --text."),
    _TEXT("--words", is_flag=True, help="One colour for each word: the sum of its tokens."),
    _TEXT("--text-scale", type=click.Choice(["shared", "each"]), default="shared", show_default=True,
          help="One scale of colours for all texts and targets, or for each its own."),
)  # fmt: skip
"""Texts instead of images."""


def targets(default: str) -> Callable[[F], F]:
    """What is explained."""
    return _group(
        _TARGET(
            "-t", "--targets", type=parse.TARGETS, default=default, show_default=True,
            help="top5 (any number), all, class numbers such as 207,281, or class: that of the --list. Of texts also "
            "labels, tokens (' Paris'), 'A vs B', and next: each next token.",
        ),
        _TARGET("--labels", metavar="FILE", help="Names of the classes: one in each line, or JSON."),
    )  # fmt: skip


layers = _TARGET(
    "--layers", type=parse.WORDS, metavar="PATH,PATH|all",
    help="Also the relevance of these modules' outputs (paths of named_modules()).",
)  # fmt: skip

batching = _group(
    _SPEED("--batch-size", type=click.IntRange(1), help="Inputs at once; what fits unless given."),
    _SPEED(
        "--workers", type=click.IntRange(1, 64), default=min(4, os.cpu_count() or 1), show_default=True,
        help="Threads that read, and as many that draw and write.",
    ),
)  # fmt: skip

messages = _group(
    _MESSAGE("-q", "--quiet", is_flag=True, help="Errors only."),
    _MESSAGE("--debug", is_flag=True, expose_value=False, callback=_debug, help="Show tracebacks."),
)
machine = _MESSAGE("--json", "machine", is_flag=True, help="Results as JSON, one object in each line of stdout.")
