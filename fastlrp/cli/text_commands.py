"""``fastlrp explain`` and ``fastlrp report`` for texts."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from fastlrp.cli import parts, text_files, text_run
from fastlrp.cli.errors import DONE, FAILED, Failure, one_line
from fastlrp.cli.screen import Screen
from fastlrp.cli.text_run import Explained, TextJob
from fastlrp.files import whole

_OF_IMAGES = (
    "overlay", "alpha", "cmap", "normalize", "zoom", "map_shape", "sum_channels", "minimal", "sample_shape", "key",
    "resize", "crop", "interpolation", "range", "mean", "std", "grey", "preprocessing", "max_input", "classes",
    "compare",
)  # fmt: skip
_OF_TEXTS = ("at", "words", "text_scale")


def check_no_texts(ctx: click.Context) -> None:
    """Raises:
    Failure: for options of texts where there is none.
    """
    for name in _OF_TEXTS:
        if ctx.get_parameter_source(name) == ParameterSource.COMMANDLINE:
            raise Failure(f"--{name.replace('_', '-')} is for texts: give some with --text or --text-file")


def explain(ctx: click.Context, options: dict[str, Any]) -> int:
    """All of ``fastlrp explain`` for texts; the exit code."""
    screen = Screen(options["machine"], options["quiet"])
    formats = options["formats"] or ("html", "csv")
    unknown = [name for name in formats if name not in text_files.FORMATS]
    if unknown:
        raise Failure(f"--format: unknown {unknown[0]!r}, expected for texts some of {', '.join(text_files.FORMATS)}")
    job, explained, failed = _explained(ctx, options, screen)
    files = text_files.write(Path(options["out"]), formats, job, explained)
    for one in explained:
        screen.data(text_files.record(one, files))
    view = job.view(explained)
    screen.line(view.terminal())
    screen.data({"event": "end", "inputs": len(explained) + failed, "done": len(explained), "failed": failed})
    if not (screen.quiet or screen.machine):
        click.echo(f"{', '.join(files)} in {options['out']}", err=True)
    return FAILED if failed else DONE


def report(ctx: click.Context, options: dict[str, Any], out: Path, limit: int) -> int:
    """All of ``fastlrp report`` for texts; the exit code."""
    screen = Screen(options["machine"], options["quiet"])
    if options["parts"] is not None:
        return _parts(ctx, options, screen, out, limit)
    job, explained, failed = _explained(ctx, options, screen)
    after = "".join(_ledger(job, one, options["ledger"]) for one in explained) if options["ledger"] else ""
    data = text_files.page(job, explained, options["title"], after)
    if len(data) > limit:
        raise Failure(f"the report has {len(data)} bytes, --max-size allows {limit}: explain fewer targets or texts")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with whole(out) as file:
            file.write(data)
    except OSError as error:
        raise Failure(f"--out: cannot write {str(out)!r}: {one_line(error)}") from error
    screen.data({"event": "report", "file": str(out), "bytes": len(data), "inputs": len(explained), "failed": failed})
    screen.line(f"{out}: {len(explained)} text{'s' if len(explained) != 1 else ''}, {len(data) / 1e6:.1f} MB")
    return FAILED if failed else DONE


def _parts(ctx: click.Context, options: dict[str, Any], screen: Screen, out: Path, limit: int) -> int:
    """``--parts tokens``: the next tokens or classes of each token."""
    job = _job(ctx, options, screen)
    pages, failed = parts.of_texts(job, options)
    failed = [*job.failed, *failed]
    for name, why in failed:
        screen.data({"event": "text", "text": name, "status": "failed", "error": why})
        screen.error(why if name in why else f"{name}: {why}")
    if not pages:
        raise Failure("no text could be explained", FAILED)
    parts.write(out, pages, options, job.about, job.rule, limit)
    size, count = out.stat().st_size, len(job.found) + len(job.failed) - len(failed)
    screen.data({"event": "report", "file": str(out), "bytes": size, "inputs": count, "failed": len(failed)})
    screen.line(f"{out}: {count} text{'s' if count != 1 else ''}, {size / 1e6:.1f} MB")
    return FAILED if failed else DONE


def _explained(ctx: click.Context, options: dict[str, Any], screen: Screen) -> tuple[TextJob, list[Explained], int]:
    job = _job(ctx, options, screen)
    failed = list(job.failed)
    explained: list[Explained] = []
    for found in text_run.explain(job):
        if isinstance(found, Explained):
            explained.append(found)
        else:
            failed.append(found)
    for name, why in failed:
        screen.data({"event": "text", "text": name, "status": "failed", "error": why})
        screen.error(why if name in why else f"{name}: {why}")
    if not explained:
        raise Failure("no text could be explained", FAILED)
    return job, explained, len(failed)


def _job(ctx: click.Context, options: dict[str, Any], screen: Screen) -> TextJob:
    for name in _OF_IMAGES:
        if name in options and ctx.get_parameter_source(name) == ParameterSource.COMMANDLINE:
            raise Failure(f"--{name.replace('_', '-')} is for images and arrays: leave it out with --text")
    given = ctx.get_parameter_source("composite") == ParameterSource.COMMANDLINE
    targets_given = ctx.get_parameter_source("targets") == ParameterSource.COMMANDLINE
    job = text_run.prepare({**options, "targets_given": targets_given}, screen, given)
    facts = [("model", job.about), ("composite", job.rule), ("targets", str(options["targets"])),
             ("texts", str(len(job.found) + len(job.failed)))]  # fmt: skip
    screen.facts(facts)
    return job


def _ledger(job: TextJob, one: Explained, most: int) -> str:
    """Where the score of the best targets went, which are walked through in float64."""
    heads = ("target", "score", "tokens", "biases", "stabilizers", "nothing arrives", "elsewhere")
    lines = ["".join(f"<td>{head}</td>" for head in heads)]
    for name, score, tokens, kept in text_run.kept(job, one, most):
        numbers = [score, tokens, kept["bias"], kept["stabilizer"], kept["dead"]]
        numbers.append(score - sum(numbers[1:]))
        cells = "".join(f'<td class="number">{number:+.4g}</td>' for number in numbers)
        lines.append(f"<td>{html.escape(name)}</td>{cells}")
    title = "Where the score went" if len(job.found) == 1 else f"Where the score of {one.text.name} went"
    return f"<h2>{html.escape(title)}</h2><table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"
