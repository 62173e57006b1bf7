"""``fastlrp explain``: relevance of many inputs, as pictures, arrays and text in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fastlrp.cli import options as shared
from fastlrp.cli import parse, places, text_commands, text_files, text_run
from fastlrp.cli.drawing import Look
from fastlrp.cli.errors import FAILED, INTERRUPTED, Failure, one_line
from fastlrp.cli.prepare import Prepared, first_sample, prepare
from fastlrp.cli.run import Run
from fastlrp.cli.screen import Screen, Tally
from fastlrp.cli.sections import Command, option
from fastlrp.cli.sheet import FORMATS, Wanted
from fastlrp.cli.stop import Stop
from fastlrp.cli.store import Store
from fastlrp.viz.colors import SOFT
from fastlrp.viz.scale import NORMALIZE

_RESULT = option("Results")
_AGAIN = "the same command goes on from here"


@click.command(cls=Command, short_help="Explain images, folders, arrays: pictures and numbers in a folder.")
@shared.argument
@click.argument("inputs", nargs=-1)
@shared.targets("top1")
@shared.layers
@_RESULT(
    "-o", "--out", type=parse.PLACE, default="fastlrp-out", show_default=True, metavar="FOLDER",
    help="Where results go.",
)  # fmt: skip
@_RESULT(
    "-f",
    "--format",
    "formats",
    type=parse.WORDS,
    metavar="LIST",
    help=f"Some of {','.join(FORMATS)}; png unless given. Of texts {','.join(text_files.FORMATS)}; html,csv.",
)
@_RESULT("--minimal", is_flag=True, help="The two text files of the LRP Toolbox for each input, nothing else.")
@_RESULT("--overlay", is_flag=True, help="Also draw each map over its input.")
@_RESULT(
    "--alpha", metavar="A", default="relevance", show_default=True, help="Opacity of overlays: 0 to 1, or relevance."
)
@_RESULT("--cmap", default=SOFT, show_default=True, metavar="NAME", help="Colour map: soft, bwr, coldnhot, viridis, …")
@_RESULT(
    "--normalize", type=click.Choice(NORMALIZE), default="symmetric", show_default=True, help="See docs/pictures.md."
)
@_RESULT(
    "--level",
    type=parse.POSITIVE,
    metavar="R",
    help="|R| at the end of the colour map; each map's largest unless given.",
)
@_RESULT("--plain", is_flag=True, help="The pixels of each map alone, without class, score and colour bar.")
@_RESULT("--zoom", type=click.IntRange(1, 64), default=1, show_default=True, help="Pixels for each entry of a map.")
@_RESULT("--map-shape", type=parse.PAIR, metavar="HxW", help="How to draw inputs without positions, such as 28x28.")
@_RESULT("--sum-channels", is_flag=True, help="Arrays without the channel axis.")
@shared.rule
@shared.inputs
@shared.text
@shared.model
@shared.batching
@_RESULT("--overwrite", is_flag=True, help="Remove the results that are in the folder, and start anew.")
@shared.machine
@shared.messages
def explain(**options: Any) -> None:
    """Explain INPUTS (images, folders, arrays) with MODEL.

    \b
    MODEL is one of
      torchvision:resnet18                random weights (to try things out)
      torchvision:resnet18@IMAGENET1K_V1  trained weights from the local cache
      torchvision:resnet18 --weights FILE your own weights
      hf:FOLDER                           a Hugging Face image classifier on disk; with --text a model of texts
      path/to/file.py:factory             what your function returns
      model.pt2                           a program of torch.export.save
      network.txt, network.nn             a model of the LRP Toolbox

    \b
    Examples
      fastlrp explain torchvision:vgg16@DEFAULT cat.jpg --out out
      fastlrp explain torchvision:resnet18 --weights r18.pth photos/ -t top5 --overlay
      fastlrp explain model.py:make photos/ --resize 64 --crop 64 -c gamma -p gamma=0.1
      fastlrp explain model.py:make --list files.txt -t class -f npz --layers features.3
      fastlrp explain hf:FOLDER --text "The capital of France is" -t " Paris, Rome"
      fastlrp explain mlp.txt digits.npy --map-shape 28x28 -c epsilon -p epsilon=0.01

    A folder of results knows its settings. The same command again goes on where an interrupted one stopped.

    Exit codes: 0 all done, 1 some inputs failed or the run had to stop, 2 not possible as asked, 130 interrupted.
    """
    context = click.get_current_context()
    out = Path(options["out"])
    places.check_folder(out)
    if text_run.has_texts(options):
        context.exit(text_commands.explain(context, options))
    text_commands.check_no_texts(context)
    screen = Screen(options["machine"], options["quiet"])
    wanted = _wanted(options)
    ready = prepare(options, screen, out)
    facts = _settings(ready.settings(options), wanted)
    with Store(out, facts, options["overwrite"], options["targets"] == "class") as store:
        code = _run(options, screen, ready, wanted, store)
    click.get_current_context().exit(code)


def _wanted(options: dict[str, Any]) -> Wanted:
    """Which files, checked as far as that goes without a model."""
    formats = options["formats"]
    if options["minimal"]:
        if formats is not None or options["overlay"] or options["layers"]:
            raise Failure(
                "--minimal writes two text files and nothing else: leave --format, --overlay and --layers out"
            )
        formats = ("raw",)
    formats = formats or ("png",)
    unknown = [name for name in formats if name not in FORMATS]
    if unknown:
        raise Failure(f"--format: unknown {unknown[0]!r}, expected some of {', '.join(FORMATS)}")
    if options["overlay"] and "png" not in formats:
        raise Failure("--overlay draws pictures: add png to --format")
    look = Look(
        options["cmap"], options["normalize"], options["level"], options["zoom"], _alpha(options["alpha"]),
        options["plain"],
    )  # fmt: skip
    if "png" in formats:
        try:
            look.check()
        except ValueError as error:
            raise Failure(one_line(error)) from error
    if options["level"] is not None and options["normalize"] == "unaligned":
        raise Failure("--level is for --normalize symmetric and absolute")
    ranked = str(options["targets"]).startswith("top")
    return Wanted(formats, look, options["overlay"], ranked, options["map_shape"], options["sum_channels"])


def _alpha(text: str) -> float | str:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if text != "relevance" and not 0 <= value <= 1:
        raise Failure(f"--alpha must be a number from 0 to 1, or relevance, got {text!r}")
    return text if text == "relevance" else value


def _settings(settings: dict[str, Any], wanted: Wanted) -> dict[str, Any]:
    files = {"format": sorted(wanted.formats), "map_shape": wanted.map_shape, "sum_channels": wanted.sum_channels}
    pictures = {"overlay": wanted.overlay, **wanted.look.facts()} if "png" in wanted.formats else {}
    return {**settings, **files, **pictures}


def _run(options: dict[str, Any], screen: Screen, ready: Prepared, wanted: Wanted, store: Store) -> int:
    engine = ready.engine(options, wanted.reduce)
    done = sum(store.done(item) is not None for item in ready.items)
    tally = Tally(screen, len(ready.items), options["out"])
    try:
        if done < len(ready.items):
            _look_at_first(ready, engine, wanted, options["batch_size"])
    except BaseException:
        store.abandon()
        raise
    screen.facts(
        [
            *ready.facts(options), ("targets", _named(options["targets"])),
            ("results", f"{options['out']} ({', '.join(wanted.formats)})"),
            ("inputs", f"{len(ready.items)}{f', {done} of them done before' if done else ''}"),
        ]
    )  # fmt: skip
    screen.start(len(ready.items), done)
    with Stop("interrupted: finishing what is under way (Ctrl-C again to stop at once)") as stop:
        run = Run(engine, ready.reader, wanted, store, ready.names, tally, options["workers"], stop)
        try:
            run.explain(ready.items)
        except KeyboardInterrupt:
            stop.asked = True
        except Failure as error:
            _stopped(error, run, tally)
            return error.code
        finally:
            screen.end()
        run.flush()
        tally.summary(stop.asked)
        if stop.asked and tally.left:
            screen.error(f"interrupted after {tally.done + tally.kept} of {tally.total} inputs: {_AGAIN}")
            return INTERRUPTED
    return tally.code


def _look_at_first(ready: Prepared, engine: Any, wanted: Wanted, batch: int | None) -> None:
    sample = first_sample(ready.reader, ready.items, ready.loaded.shape)
    wanted.check(sample.x.shape, sample.picture is not None, sample.item.is_table)
    if sample.x.dim() == 2:  # Signals and matrices: the first axis is drawn too.
        engine.reduce = None
    engine.probe(sample, batch)


def _stopped(error: Failure, run: Run, tally: Tally) -> None:
    run.flush()
    tally.screen.end()
    tally.screen.error(one_line(error))
    tally.summary()
    if error.code == FAILED:
        tally.screen.error(
            f"stopped after {tally.done + tally.kept} of {tally.total} inputs: when that is mended, {_AGAIN}"
        )


def _named(targets: str | list[int]) -> str:
    return targets if isinstance(targets, str) else ",".join(map(str, targets))
