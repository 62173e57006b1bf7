"""``fastlrp report``: one HTML file in which people explore relevance."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

import click
import numpy as np

from fastlrp.byte_sizes import parse_bytes
from fastlrp.cli import class_choice, parse, parts, places, rules, text_commands, text_run
from fastlrp.cli import options as shared
from fastlrp.cli.engine import Engine
from fastlrp.cli.errors import DONE, FAILED, INTERRUPTED, Failure, InputFailure, need, one_line
from fastlrp.cli.inputs import Item
from fastlrp.cli.prepare import Prepared, first_sample, prepare, under
from fastlrp.cli.reading import Sample
from fastlrp.cli.screen import Screen
from fastlrp.cli.sections import Command, option
from fastlrp.cli.stop import Stop
from fastlrp.errors import CaptureError, NotFiniteError

_RESULT = option("Results")


@click.command(cls=Command, short_help="One HTML file to explore in a browser.")
@shared.argument
@click.argument("inputs", nargs=-1)
@shared.targets("top5")
@shared.layers
@_RESULT("-o", "--out", type=parse.PLACE, default="report.html", show_default=True, metavar="FILE", help="The report.")
@_RESULT("--title", help="Of the page; the model unless given.")
@_RESULT(
    "--compare", multiple=True, metavar="NAME",
    help="A further composite beside that of -c, to look at both side by side. May be given several times.",
)  # fmt: skip
@_RESULT(
    "--parts", metavar="N|tokens|columns",
    help="Another page, for all classes at once: point at a patch of N (or HxW) pixels, a token, a column and see its "
    "classes or next tokens; choose a class and see its parts.",
)  # fmt: skip
@_RESULT("--max-size", default="20MB", show_default=True, metavar="SIZE", help="Maps get coarser to stay below it.")
@_RESULT(
    "--ledger", type=click.IntRange(0), default=3, show_default=True,
    help="For how many targets of each input to show where the score went; each costs a walk in float64.",
)  # fmt: skip
@shared.rule
@shared.inputs
@shared.text
@shared.model
@shared.batching
@shared.machine
@shared.messages
def report(**options: Any) -> None:
    """Write one HTML file about INPUTS (images, folders, arrays), to be opened in any browser, without a server.

    \b
    Examples
      fastlrp report torchvision:resnet18@DEFAULT photos/ --out report.html
      fastlrp report torchvision:vgg16@DEFAULT cat.jpg -c epsilon_plus --compare gamma
      fastlrp report hf:FOLDER --text "The capital of France is" -t top5
      fastlrp report hf:FOLDER --text "The capital of France is" --parts tokens
      fastlrp report torchvision:vit_b_16@DEFAULT cat.jpg --parts 16 -c attnlrp
      fastlrp report model.py:make --list files.txt -t all --labels names.txt --layers features.3

    Exit codes: 0 all done, 1 some inputs failed (the report has the others), 2 not possible as asked, 130 interrupted.
    """
    context, out = click.get_current_context(), Path(options["out"])
    limit = _limit(options["max_size"], out)
    places.check_folder(out.parent)
    if options["parts"] is not None:
        parts.check(options["parts"], context)
    if text_run.has_texts(options):
        context.exit(text_commands.report(context, options, out, limit))
    text_commands.check_no_texts(context)
    need("jinja2")
    for name in options["compare"]:
        rules.check(name, [], options["profile"])
    screen = Screen(options["machine"], options["quiet"])
    ready = prepare(options, screen)
    engine = ready.engine(options, "channels")
    first = first_sample(ready.reader, ready.items, ready.loaded.shape)
    engine.probe(first, options["batch_size"])
    title = options["title"] or ready.loaded.about
    screen.facts([*ready.facts(options), ("results", str(out)), ("inputs", str(len(ready.items)))])
    screen.start(len(ready.items), 0)
    pages, failed = _collect(options, screen, ready, engine)
    rule = ready.rule
    if options["compare"] and pages:
        pages, rule = _compared(options, screen, ready, pages)
    if not pages:
        raise Failure("no input could be explained: there is nothing to report", FAILED)
    if options["parts"] is not None:
        parts.write(out, pages, options, ready.loaded.about, rule, limit)
        _tell(screen, out, len(pages), failed)
    from fastlrp.report import write

    about = ready.loaded.about if options["title"] else ""
    write(out, pages, title=title, composite=rule, model=about, max_bytes=limit)
    _tell(screen, out, len(pages), failed)


def _tell(screen: Screen, out: Path, count: int, failed: int) -> NoReturn:
    """What was written; then the end."""
    size = out.stat().st_size
    screen.data({"event": "report", "file": str(out), "bytes": size, "inputs": count, "failed": failed})
    screen.line(f"{out}: {count} input{'s' if count != 1 else ''}, {size / 1e6:.1f} MB")
    click.get_current_context().exit(FAILED if failed else DONE)


def _limit(text: str, out: Path) -> int:
    try:
        limit = parse_bytes(text)
    except ValueError as error:
        raise Failure(f"--max-size: {str(error).replace('max_memory', 'the size')}") from error
    if out.is_dir():
        raise Failure(f"--out: {str(out)!r} is a folder: name the file, for instance {out / 'report.html'}")
    if out.exists() and not out.is_file():
        raise Failure(f"--out: {str(out)!r} is a device, socket or pipe: name a file, for instance report.html")
    assert limit is not None
    return limit


def _compared(options: dict[str, Any], screen: Screen, ready: Prepared, pages: list[Any]) -> tuple[list[Any], str]:
    """The pages joined with those of further composites, and the composites for people."""
    from fastlrp.report import compare

    ways, described = {options["composite"]: pages}, [ready.rule]
    for name in options["compare"]:
        if name in ways:
            raise Failure(f"--compare {name}: it is compared already")
        other = under(ready, options, name)
        engine = other.engine(options, "channels")
        engine.probe(first_sample(other.reader, other.items, other.loaded.shape), options["batch_size"])
        screen.start(len(other.items), 0)
        ways[name], _ = _collect(options, screen, other, engine)
        described.append(other.rule)
    # What failed in one of the ways has been told, and is left out of all.
    common = set.intersection(*({page.name for page in found} for found in ways.values()))
    kept = {way: [page for page in found if page.name in common] for way, found in ways.items()}
    return (compare(kept) if common else []), "; ".join(described)


def _collect(options: dict[str, Any], screen: Screen, ready: Prepared, engine: Engine) -> tuple[list[Any], int]:
    """All samples of the report, and how many inputs failed."""
    pages: list[Any] = []
    failed = 0
    message = "interrupted: a report is written as a whole, so nothing is"
    with ThreadPoolExecutor(options["workers"]) as pool, Stop(message) as stop:
        found = ready.reader.ahead(ready.items, pool, 2 * engine.batch + options["workers"])
        waiting: list[Sample] = []
        try:
            for item, sample in found:
                if stop.asked:
                    screen.end()
                    click.get_current_context().exit(INTERRUPTED)
                why = _unfit(engine, item, sample)
                if why is not None:
                    failed += 1
                    screen.advance()
                    screen.data({"event": "input", "input": str(item.path), "status": "failed", "error": why})
                    screen.error(f"{item.label}: {why}")
                    continue
                assert isinstance(sample, Sample)
                if waiting and (sample.x.shape != waiting[0].x.shape or len(waiting) == engine.batch):
                    failed += _explain(options, screen, ready, engine, waiting, pages)
                    waiting = []
                waiting.append(sample)
            if waiting:
                failed += _explain(options, screen, ready, engine, waiting, pages)
        finally:
            found.close()
            screen.end()
    return pages, failed


def _unfit(engine: Engine, item: Item, sample: Sample | InputFailure) -> str | None:
    if isinstance(sample, InputFailure):
        return one_line(sample)
    try:
        class_choice.check(engine.targets, item, engine.classes)
    except InputFailure as error:
        return one_line(error)
    return None


def _explain(
    options: dict[str, Any],
    screen: Screen,
    ready: Prepared,
    engine: Engine,
    samples: Sequence[Sample],
    pages: list[Any],
) -> int:
    """Add a batch; how many of it failed."""
    from fastlrp.report import collect

    x = engine.stacked(samples)
    more = len(x) - len(samples)  # The batch of a model that takes one size only is filled up.
    targets: Any = engine.targets
    if engine.of_places and isinstance(targets, str):
        with ready.explainer.forward(x) as record:
            items = [sample.item for sample in samples] + [samples[-1].item] * more
            targets = class_choice.choose(targets, record.scores, items).targets
    if isinstance(targets, str) and targets == class_choice.CLASS:
        targets = class_choice.of_items(
            [sample.item for sample in samples] + [samples[-1].item] * more, engine.classes, x
        )
    try:
        if options["parts"] is not None:
            pages += parts.of_batch(options, ready, engine, samples)
            return 0
        found = collect(
            ready.explainer,
            x,
            targets,
            images=[_pixels(sample) for sample in samples] + [None] * more,
            names=[sample.item.label for sample in samples] + [""] * more,
            target_names=ready.names,
            layers=engine.layers,
            ledger=options["ledger"],
            initial=ready.initial,
            truth=[sample.item.target for sample in samples] + [None] * more,
        )
    except CaptureError as error:
        for sample in samples:
            screen.error(
                f"{sample.item.label}: the model does not take an input {tuple(x.shape[1:])}: {one_line(error)}"
            )
        return len(samples)
    except NotFiniteError as error:
        for sample in samples:
            screen.error(f"{sample.item.label}: {one_line(error)}")
        return len(samples)
    finally:
        screen.advance(len(samples))
    pages += found[: len(samples)]
    return 0


def _pixels(sample: Sample) -> np.ndarray | None:
    return None if sample.picture is None else np.asarray(sample.picture.convert("RGB"))
