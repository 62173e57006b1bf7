"""``fastlrp report --parts``: the classes of each patch, token or column, and the parts of each class."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import torch
from click.core import ParameterSource

from fastlrp import groups
from fastlrp.cli import class_choice, tables, text_run
from fastlrp.cli.engine import Engine
from fastlrp.cli.errors import Failure, one_line
from fastlrp.cli.prepare import Prepared
from fastlrp.cli.reading import Sample
from fastlrp.cli.text_run import TextJob
from fastlrp.errors import CaptureError, NotFiniteError
from fastlrp.report.parts import Parts, collect_parts
from fastlrp.viz.pieces import as_text

FORMS = "16 or 16x32 (patches of that many pixels), tokens, or columns (of tables and vectors)"


def check(spec: str, context: click.Context) -> None:
    """Raises:
    Failure: for parts that are none, and for options that this page has no use for.
    """
    if spec not in ("tokens", "columns") and not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)?", spec):
        raise Failure(f"--parts: {spec!r} is no part of an input: expected {FORMS}")
    for name in ("compare", "ledger"):
        if context.get_parameter_source(name) == ParameterSource.COMMANDLINE:
            raise Failure(f"--{name} is not for the page of --parts: leave it out")


def _targets(options: dict[str, Any]) -> Any:
    """All of them, unless others were asked for: a way up gives all at once."""
    context = click.get_current_context()
    given = context.get_parameter_source("targets") == ParameterSource.COMMANDLINE
    return options["targets"] if given else "all"


def _layer(options: dict[str, Any]) -> str | None:
    layers = options["layers"]
    if layers is not None and (len(layers) != 1 or layers == ("all",)):
        raise Failure("--parts with --layers shows the neurons of one layer: name one")
    return None if layers is None else str(layers[0])


def of_batch(options: dict[str, Any], ready: Prepared, engine: Engine, samples: Sequence[Sample]) -> list[Parts]:
    """The parts of a batch of images, arrays or rows of tables.

    Raises:
        Failure, CaptureError, NotFiniteError: for what cannot be explained.
    """
    x = engine.stacked(samples)
    more = len(x) - len(samples)
    spec, item = options["parts"], samples[0].item
    words: list[list[str]] | None = None
    found: Any = "tokens"
    if spec == "columns":
        if x.dim() != 2:
            raise Failure(f"--parts columns is for tables and vectors, and the input is {tuple(x.shape[1:])}")
        found = groups.features(range(x.shape[1]))
        heads = (tables.read(item.path).names if item.is_table else None) or [f"column {n}" for n in range(x.shape[1])]
        words = [[str(name) for name in heads]] * len(x)
    elif spec != "tokens":
        sizes = [int(n) for n in spec.split("x")]
        found = groups.patches(sizes[0] if len(sizes) == 1 else sizes)
    targets = _targets(options)
    if targets == class_choice.CLASS:
        raise Failure("--parts shows all classes of each part: leave -t class out")
    try:
        pages = collect_parts(
            ready.explainer, x, found, targets, layer=_layer(options),
            images=[None if s.picture is None else s.picture.convert("RGB") for s in samples] + [None] * more,
            names=[s.item.label for s in samples] + [""] * more, target_names=ready.names, tokens=words,
        )  # fmt: skip
    except (CaptureError, NotFiniteError):
        raise
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise Failure(f"--parts {spec}: {one_line(error)}") from error
    return pages[: len(samples)]


def of_texts(job: TextJob, options: dict[str, Any]) -> tuple[list[Parts], list[tuple[str, str]]]:
    """The parts of all texts, and names and errors of those that cannot be explained.

    Raises:
        Failure: for what no text can do.
    """
    if options["parts"] != "tokens":
        raise Failure(f"--parts {options['parts']}: texts have tokens, --parts tokens")
    device = next(job.explainer.model.parameters()).device
    found: list[Parts] = []
    failed: list[tuple[str, str]] = []
    names: list[str] | None = None
    for one in job.found:
        inputs = job.reader.batch([one], device, len(one.ids))
        places = text_run._places(job, one) if job.reader.of_positions else None
        try:
            text_run._check_places(job, one)
            if names is None:
                with torch.no_grad():
                    scores = job.explainer.forward(inputs).scores
                names = [job.name(number) for number in range(scores.shape[-1])]
            if job.reader.scores == "spans":
                names = [text_run._of_token(job, one, number) for number in range(len(one.ids))]
            targets = _targets(options)
            if isinstance(targets, str) and not re.fullmatch(r"all|top[1-9]\d*", targets):
                raise Failure("--parts shows all classes or tokens, or the best: -t all or -t top100")
            found += collect_parts(
                job.explainer, inputs, "tokens", targets, at=places, layer=_layer(options), names=[one.name],
                target_names=names, tokens=[[as_text(token, job.reader.marks) for token in one.tokens]],
            )  # fmt: skip
        except (CaptureError, NotFiniteError, text_run.InputFailure) as error:
            failed.append((one.name, one_line(error)))
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise Failure(one_line(error)) from error
    return found, failed


def write(out: Path, pages: Sequence[Parts], options: dict[str, Any], about: str, rule: str, limit: int) -> None:
    """Write the page of parts."""
    from fastlrp.report.parts_page import write_parts

    title = options["title"] or about
    try:
        write_parts(out, pages, title=title, composite=rule, model=about if options["title"] else "", max_bytes=limit)
    except OSError as error:
        raise Failure(f"--out: cannot write {str(out)!r}: {one_line(error)}") from error
