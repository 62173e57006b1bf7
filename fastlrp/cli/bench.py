"""``fastlrp bench``: how fast is this model here, beside its plain gradient?"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click
import torch
from click.core import ParameterSource
from torch import Tensor, nn

from fastlrp.cli import class_choice
from fastlrp.cli import options as shared
from fastlrp.cli.errors import Failure, one_line
from fastlrp.cli.prepare import Prepared, first_sample, prepare
from fastlrp.cli.screen import Screen
from fastlrp.cli.sections import Command, option
from fastlrp.cli.stop import Stop

_TIMING = option("Timing")


@dataclass
class Contender:
    """Something that is timed: its name, one turn of it, and how long each turn took."""

    name: str
    call: Callable[[], object]
    seconds: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


@click.command(cls=Command, short_help="Time a model's relevance beside its plain gradient.")
@shared.argument
@click.argument("inputs", nargs=-1)
@shared.targets("top5")
@_TIMING("--batch-size", type=click.IntRange(1), default=1, show_default=True, help="Samples at once.")
@_TIMING("--repeats", type=click.IntRange(1), default=5, show_default=True, help="Turns; medians are shown.")
@_TIMING("--threads", type=click.IntRange(1), help="Of PyTorch; its own default unless given.")
@shared.rule
@shared.inputs
@shared.model
@shared.machine
@shared.messages
def bench(**options: Any) -> None:
    """Time MODEL on an input (noise of the model's own size unless given): relevance beside plain gradients.

    All of them take turns in one process; the first turn is not counted. A gradient is one forward pass and then one
    backward pass for each target, the loop that most people write. Capturing the model is timed by itself.

    \b
    Examples
      fastlrp bench torchvision:resnet18 -t top5
      fastlrp bench model.py:make --sample-shape 3,64,64 -t all --batch-size 8
    """
    screen = Screen(options["machine"], options["quiet"])
    if options["threads"]:
        torch.set_num_threads(options["threads"])
    noise = not options["inputs"] and options["list"] is None
    ready, x = _noise(options, screen) if noise else _input(options, screen)
    if ready.loaded.batch is not None:
        raise Failure("the program was exported for one batch size: export it with dynamic_shapes to time it")
    x = x.expand(options["batch_size"], *x.shape[1:]).contiguous()
    given = click.get_current_context().get_parameter_source("targets") == ParameterSource.COMMANDLINE
    begin = time.perf_counter()
    try:
        ready.explainer(x, options["targets"] if given else "top1", initial=ready.initial)
    except (IndexError, ValueError) as error:
        raise Failure(one_line(error)) from error
    first = time.perf_counter() - begin
    targets = _classes(ready, x, options["targets"], given)
    with Stop("interrupted: one turn is finished, and what there is is shown") as stop:
        found = _turns(_contenders(ready, x, targets), options["repeats"], stop)
    _show(options, screen, ready, x, targets, first, found)


def _noise(options: dict[str, Any], screen: Screen) -> tuple[Prepared, Tensor]:
    """Noise instead of an input."""
    ready = prepare(options, screen, no_inputs=True)
    crop = ready.preprocessing.crop
    shape = options["sample_shape"] or ready.loaded.shape or ((1 if options["grey"] else 3, *crop) if crop else None)
    if shape is None:
        raise Failure("what size of input? Give --sample-shape C,H,W, or an input")
    reader = ready.reader
    x = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    return ready, x.to(reader.device, reader.dtype)


def _input(options: dict[str, Any], screen: Screen) -> tuple[Prepared, Tensor]:
    ready = prepare(options, screen)
    return ready, first_sample(ready.reader, ready.items, ready.loaded.shape).x.unsqueeze(0)


def _classes(ready: Prepared, x: Tensor, spec: Any, given: bool) -> Tensor:
    """Targets as numbers ``(B, K)``, so that all explain the same."""
    from fastlrp.targets.targets import Targets

    with ready.explainer.forward(x) as record:
        if record.scores.dim() != 2:
            raise Failure(f"bench is for outputs (B, classes), this model's is {tuple(record.scores.shape)}")
        asked = spec if given else class_choice.at_most(spec, record.scores.shape[1])
        index = Targets(asked, record.scores).index
    assert index is not None
    return index


def _contenders(ready: Prepared, x: Tensor, targets: Tensor) -> list[Contender]:
    model, explainer = ready.loaded.module, ready.explainer

    def forward() -> None:
        with torch.no_grad():
            model(x)

    def gradient(count: int) -> None:
        leaf = x.clone().requires_grad_()
        scores = _scores(model, leaf, ready.loaded.output).gather(1, targets)
        for k in range(count):
            torch.autograd.grad(scores[:, k].sum(), leaf, retain_graph=k + 1 < count)

    def relevance() -> None:
        explainer(x, targets, initial=ready.initial)

    every = targets.shape[1]
    several = [Contender(f"{every} gradients", lambda: gradient(every), [])] if every > 1 else []
    return [
        Contender("forward pass", forward, []),
        Contender("1 gradient", lambda: gradient(1), []),
        *several,
        Contender(f"fastlrp, {every} target{'s' if every > 1 else ''}", relevance, []),
    ]


def _scores(model: nn.Module, x: Tensor, output: str | None) -> Tensor:
    found = model(x)
    if isinstance(found, Tensor):
        return found
    value = found[output] if output is not None and hasattr(found, "keys") else found[int(output or 0)]
    assert isinstance(value, Tensor)
    return value


def _turns(parts: list[Contender], repeats: int, stop: Stop) -> list[Contender]:
    for turn in range(-1, repeats):
        for part in parts:
            _synchronize()
            begin = time.perf_counter()
            part.call()
            _synchronize()
            if turn >= 0:
                part.seconds.append(time.perf_counter() - begin)
        if stop.asked and turn >= 0:
            break
    return parts


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _show(
    options: dict[str, Any],
    screen: Screen,
    ready: Prepared,
    x: Tensor,
    targets: Tensor,
    first: float,
    found: list[Contender],
) -> None:
    ours = found[-1].median
    if options["machine"]:
        line = {
            "event": "bench", "model": options["model"], "composite": ready.rule, "shape": list(x.shape),
            "targets": targets.shape[1], "threads": torch.get_num_threads(), "capture_seconds": first - ours,
            "seconds": {part.name: part.median for part in found}, "turns": len(found[0].seconds),
        }  # fmt: skip
        click.echo(json.dumps(line))
        return
    size = "x".join(map(str, x.shape))
    screen.line(f"{ready.loaded.about}, input {size}, {ready.rule}, {torch.get_num_threads()} threads")
    screen.line(f"{'':20}{'seconds':>10}{'fastest':>10}{'slowest':>10}{'fastlrp takes':>15}")
    for part in found:
        ratio = "" if part is found[-1] else f"{ours / part.median:.2f} x"
        low, high = min(part.seconds), max(part.seconds)
        screen.line(f"{part.name:20}{part.median:10.4f}{low:10.4f}{high:10.4f}{ratio:>15}")
    screen.line(f"capturing the model, once: {max(0.0, first - ours):.2f} s; medians of {len(found[0].seconds)} turns")
