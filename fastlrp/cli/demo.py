"""``fastlrp demo``: from nothing to an explained network in a few seconds, and what to try next."""

from __future__ import annotations

import copy
import shlex
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor, nn

from fastlrp import viz
from fastlrp.cli import digits, parse, places
from fastlrp.cli import options as shared
from fastlrp.cli.errors import DONE, FAILED, Failure, one_line
from fastlrp.cli.screen import Screen
from fastlrp.composites import PRESETS
from fastlrp.explainer import Explainer

_TRAINING, _HELD_OUT, _SHOWN = 2000, 300, 10
_COMPOSITES = [name for name in PRESETS if name != "epsilon_gamma_box"]


@click.command(short_help="Try it in seconds: no data, no download.")
@click.option(
    "-o", "--out", type=parse.PLACE, default="fastlrp-demo", show_default=True, metavar="FOLDER",
    help="Where everything goes.",
)  # fmt: skip
@click.option(
    "-c", "--composite", type=click.Choice(_COMPOSITES), metavar="NAME", default="epsilon_plus", show_default=True
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@shared.messages
def demo(**options: Any) -> None:
    """Draw digits, train a small network to read them, and ask which pixels speak for each of the ten classes.

    Needs no data and no network. Leaves demo.png (a picture), digits/ (ten images) and model.pt2 (the network), with
    which the other commands can be tried.
    """
    screen, out = Screen(False, options["quiet"]), Path(options["out"])
    click.get_current_context().with_resource(_one_thread())
    begin = time.perf_counter()
    places.check_folder(out)
    try:
        (out / "digits").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Failure(f"--out: cannot write to {str(out)!r}: {one_line(error)}") from error
    model, pictures, x, classes = _trained(options["seed"], screen)
    with torch.no_grad():
        right = float((model(x).argmax(1) == classes).float().mean())
    screen.line(f"accuracy                    {100 * right:.1f} % of {len(x)} digits that it has not seen")
    for i in range(_SHOWN):
        viz.save(pictures[i], out / "digits" / f"{i}.png")
    _export(model, x, out / "model.pt2")
    ok = _explained(model, x[:_SHOWN], options["composite"], out / "demo.png", screen)
    screen.line(f"picture                     {out / 'demo.png'}")
    screen.line(f"seconds in all              {time.perf_counter() - begin:.1f}")
    place = shlex.quote(str(out))
    screen.line("\nNow try, for instance:")
    screen.line(
        f"  fastlrp explain {place}/model.pt2 {place}/digits --grey -t top2 --overlay --zoom 8 --out {place}/maps"
    )
    screen.line(f"  fastlrp verify {place}/model.pt2 {place}/digits/3.png --grey")
    screen.line(f"  fastlrp report {place}/model.pt2 {place}/digits --grey -t all --out {place}/report.html")
    if not ok:
        screen.error("a layer differs from the reference")
    click.get_current_context().exit(DONE if ok else FAILED)


@contextmanager
def _one_thread() -> Iterator[None]:
    """PyTorch on one thread: a network of this size gains nothing by more, which wait for one another at each step.

    On two cores of which other programs keep one busy, ten times as long.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _trained(seed: int, screen: Screen) -> tuple[nn.Module, list[Any], Tensor, Tensor]:
    """The network, and held-out pictures, inputs, digits."""
    begin = time.perf_counter()
    _, x, classes = digits.samples(_TRAINING, seed)
    pictures, held_out, answers = digits.samples(_HELD_OUT, seed + 1)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = digits.network()
        digits.train(model, x, classes)
    screen.line(f"trained on                  {_TRAINING} drawn digits, {time.perf_counter() - begin:.1f} s")
    return model, pictures, held_out, answers


def _export(model: nn.Module, x: Tensor, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(model, (x[:2],), dynamic_shapes=({0: torch.export.Dim("batch")},))
        torch.export.save(program, path)


def _explained(model: nn.Module, x: Tensor, composite: str, path: Path, screen: Screen) -> bool:
    """All ten classes of each digit: a check, a picture, a comparison of speeds."""
    initial = "one" if composite in ("gradient", "deconvnet", "guided_backprop") else "output"
    explainer = Explainer(model, composite)
    with explainer.forward(x) as record:
        scores, relevance = record.output, record.relevance("all", initial=initial)
    verification = Explainer(copy.deepcopy(model).double(), composite).verify(x.double(), "all", initial=initial)
    screen.line(f"explained in one call       {len(x)} digits x {scores.shape[1]} classes, {composite}")
    screen.line(f"largest error of a layer    {verification.max_error:.1e} in float64, against the reference")
    figure = viz.grid(
        relevance,
        images=x,
        row_labels=[f"is a {i}, says {int(answer)}" for i, answer in enumerate(scores.argmax(1))],
        column_labels=[f"for {k}" for k in range(scores.shape[1])],
        titles=scores,
        quantile=0.995,
    )
    viz.save(figure, path)
    ours, loop = _seconds(lambda: explainer(x, "all", initial=initial), lambda: _gradients(model, x))
    screen.line(
        f"ten classes of {len(x)} digits    {1e3 * ours:.1f} ms; a gradient for each class: {1e3 * loop:.1f} ms"
    )
    return bool(verification.ok)


def _gradients(model: nn.Module, x: Tensor) -> None:
    """The usual loop: one forward pass, one backward pass for each class."""
    leaf = x.clone().requires_grad_()
    for score in model(leaf).sum(0):
        torch.autograd.grad(score, leaf, retain_graph=True)


def _seconds(*calls: Callable[[], object]) -> list[float]:
    """The median time of each call, all of them made in turns."""
    times: list[list[float]] = [[] for _ in calls]
    for turn in range(-2, 9):
        for call, taken in zip(calls, times, strict=True):
            begin = time.perf_counter()
            call()
            if turn >= 0:
                taken.append(time.perf_counter() - begin)
    return [statistics.median(taken) for taken in times]
