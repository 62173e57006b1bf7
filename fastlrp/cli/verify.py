"""``fastlrp verify``: one input's relevance against the reference, layer by layer."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any

import click

from fastlrp.cli import options as shared
from fastlrp.cli.class_choice import Chosen
from fastlrp.cli.engine import Engine
from fastlrp.cli.errors import DONE, FAILED, Failure, one_line
from fastlrp.cli.prepare import Prepared, first_sample, prepare
from fastlrp.cli.reading import Sample
from fastlrp.cli.screen import Screen
from fastlrp.cli.sections import Command, option
from fastlrp.errors import NotFiniteError


@click.command(cls=Command, short_help="Check one input's relevance against the reference.")
@shared.argument
@click.argument("input", metavar="INPUT")
@shared.targets("top1")
@option("Check")("--tolerance", type=click.FloatRange(0), help="Largest error of a layer that is right.")
@shared.rule
@shared.inputs
@shared.model
@shared.machine
@shared.messages
def verify(**options: Any) -> None:
    """Check the relevance of one INPUT against a slow textbook computation in float64.

    Prints each layer's error, and where the score went: what biases, stabilizers and dead neurons kept.

    \b
    Examples
      fastlrp verify torchvision:resnet18@DEFAULT cat.jpg
      fastlrp verify model.py:make digits.npy --dtype float64 -t all -c gamma

    Exit codes: 0 every layer is within the tolerance, 1 it is not, 2 not possible as asked, 130 interrupted.
    """
    screen = Screen(options["machine"], options["quiet"])
    ready = prepare({**options, "inputs": [options["input"]], "list": options["list"]}, screen)
    sample = first_sample(ready.reader, ready.items, ready.loaded.shape)
    if len(ready.items) > 1:
        screen.note(f"{sample.item.label} is the first of {len(ready.items)} samples; the others are not looked at")
    engine = ready.engine(options)
    engine.probe(sample, 1)
    screen.facts([*ready.facts(options), ("sample", sample.item.label)])
    chosen = engine.targets_of(sample)
    if not all(math.isfinite(score) for score in chosen.scores[0]):
        raise Failure(_why(ready, engine, sample, chosen), FAILED)
    verification = ready.explainer.verify(
        engine.stacked([sample]), chosen.targets, initial=ready.initial, tolerance=options["tolerance"]
    )
    if options["machine"]:
        click.echo(json.dumps(_as_json(verification, sample.item.label)))
    elif not options["quiet"]:
        click.echo(str(verification))
    if not verification.ok:
        screen.error(f"a layer is off by {verification.max_error:.1e}, more than {verification.tolerance:.0e}")
    click.get_current_context().exit(DONE if verification.ok else FAILED)


def _why(ready: Prepared, engine: Engine, sample: Sample, chosen: Chosen) -> str:
    """Why there is nothing to verify: the model's scores are NaN or infinite."""
    try:
        ready.explainer(engine.stacked([sample]), chosen.targets, initial=ready.initial)
    except NotFiniteError as error:
        return f"{sample.item.label}: {one_line(error)}"
    return f"{sample.item.label}: the model's scores are NaN or infinite, so there is nothing to verify"


def _as_json(verification: Any, label: str) -> dict[str, Any]:
    numbers = {
        name: getattr(verification, name) for name in ("max_error", "end_to_end", "tolerance", "score", "relevance")
    }
    found = {"event": "verify", "input": label, "ok": verification.ok, **numbers, "kept": verification.kept}
    return _finite({**found, "layers": [asdict(row) for row in verification.rows]})


def _finite(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
