"""From options to everything that a command works with; cheap questions first, the model after them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import torch
from click.core import ParameterSource

from fastlrp.byte_sizes import parse_bytes
from fastlrp.cli import inputs, labels, models, preprocess, rules, weights
from fastlrp.cli.arrays import limit
from fastlrp.cli.engine import Engine
from fastlrp.cli.errors import Failure, InputFailure, one_line
from fastlrp.cli.inputs import Item
from fastlrp.cli.preprocess import Preprocessing
from fastlrp.cli.reading import Reader, Sample
from fastlrp.cli.screen import Screen
from fastlrp.explainer import Explainer
from fastlrp.info import package_version
from fastlrp.precision import check_possible


@dataclass
class Prepared:
    """A model under a composite, ready for its inputs.

    Attributes:
        items: what to explain, in order. rule: the composite for people. parameters: of the composite, as given.
        names: of the classes.
    """

    loaded: models.Loaded
    items: list[Item]
    preprocessing: Preprocessing
    explainer: Explainer
    reader: Reader
    names: labels.Names
    rule: str
    initial: str
    parameters: dict[str, Any]

    def engine(self, options: dict[str, Any], reduce: str | None = None) -> Engine:
        """The explainer with what the options ask it for."""
        layers = options.get("layers")
        layers = "all" if layers == ("all",) else None if layers is None else list(layers)
        path = options.get("labels")
        context = click.get_current_context(silent=True)
        given = context is None or context.get_parameter_source("targets") == ParameterSource.COMMANDLINE
        return Engine(
            self.explainer, options.get("targets", "top1"), self.initial, layers, reduce, self.loaded.batch,
            labels=None if path is None else (self.names.known, str(path)), default=not given,
        )  # fmt: skip

    def settings(self, options: dict[str, Any]) -> dict[str, Any]:
        """What numbers depend on, as JSON has it."""
        pictures = {} if all(item.is_array for item in self.items) else self.preprocessing.facts()
        reduced = {} if options["precision"] == "auto" else {"precision": options["precision"]}
        return {
            "fastlrp": package_version("fastlrp"), **self.loaded.facts,
            "weights": weights.digest(self.loaded.module), **pictures,
            "composite": options["composite"], "parameters": self.parameters, "profile": options["profile"],
            "initial": self.initial, "targets": options["targets"], "layers": options["layers"],
            "sample_shape": options["sample_shape"], "key": options["key"],
            **reduced,
        }  # fmt: skip

    def facts(self, options: dict[str, Any]) -> list[tuple[str, str]]:
        """Name and value, for people."""
        rows = [("model", self.loaded.about)]
        if not all(item.is_array for item in self.items):
            rows.append(("input", str(self.preprocessing)))
        return [*rows, ("composite", self.rule), ("device", options["device"])]


def prepare(options: dict[str, Any], screen: Screen, out: Path | None = None, no_inputs: bool = False) -> Prepared:
    """Everything but the first look at the inputs.

    Args:
        out: the folder of results. no_inputs: there are none to look for.

    Raises:
        Failure: for anything that cannot be done as asked.
    """
    given = rules.check(options["composite"], options["parameters"], options["profile"])
    try:
        parse_bytes(options["max_memory"])
    except ValueError as error:
        raise Failure(f"--max-memory: {error}") from error
    names = None if options["labels"] is None else labels.read(Path(options["labels"]))
    items = [] if no_inputs else inputs.collect(options, out)
    arrays = [item for item in items if item.is_array]
    if arrays and preprocess.is_changed(options):
        raise Failure(
            f"{arrays[0].path}: arrays are the model's input as they are; --resize, --mean and the others are for "
            f"images: leave them out, or explain arrays and images in two runs"
        )
    loaded = models.load(options)
    for note in loaded.notes:
        screen.note(note)
    preprocessing = preprocess.chosen(loaded.preprocessing, options)
    like = next((t for t in loaded.module.parameters() if t.is_floating_point()), torch.empty(0))
    initial = rules.initial(options["composite"], options["initial"])
    bounds = None if arrays and len(arrays) == len(items) else preprocessing
    if bounds is not None and arrays and options["composite"] == "epsilon_gamma_box":
        screen.note("the box of epsilon_gamma_box is that of the images, for the arrays too")
    composite = rules.composite(options["composite"], given, options["profile"], bounds, like)
    try:
        check_possible(options["precision"], "auto", torch.device(options["device"]), models.DTYPES[options["dtype"]])
        explainer = Explainer(
            loaded.module, composite, max_memory=options["max_memory"], output=loaded.output, paths=options["paths"],
            precision=options["precision"],
        )  # fmt: skip
    except (ValueError, TypeError) as error:
        raise Failure(one_line(error)) from error
    reader = Reader(
        preprocessing, models.DTYPES[options["dtype"]], torch.device(options["device"]), options["key"],
        options["sample_shape"], limit(options),
    )  # fmt: skip
    rule = rules.described(options["composite"], given, options["profile"], initial)
    return Prepared(
        loaded, items, preprocessing, explainer, reader, labels.Names(names or loaded.labels), rule, initial, given
    )


def under(ready: Prepared, options: dict[str, Any], name: str) -> Prepared:
    """The same model and inputs under another composite, with its own parameters as they are.

    Raises:
        Failure: for an unknown composite, or one that needs bounds which are not known.
    """
    given = rules.check(name, [], options["profile"])
    initial = rules.initial(name, options["initial"])
    module, arrays = ready.loaded.module, all(item.is_array for item in ready.items)
    like = next((t for t in module.parameters() if t.is_floating_point()), torch.empty(0))
    composite = rules.composite(name, given, options["profile"], None if arrays else ready.preprocessing, like)
    explainer = Explainer(
        module, composite, max_memory=options["max_memory"], output=ready.loaded.output, paths=options["paths"]
    )
    rule = rules.described(name, given, options["profile"], initial)
    return replace(ready, explainer=explainer, rule=rule, initial=initial, parameters=given)


def first_sample(reader: Reader, items: Sequence[Item], shape: tuple[int, ...] | None = None) -> Sample:
    """The first item that can be read.

    Args:
        shape: the only one that the model takes, if that is known.

    Raises:
        Failure: if none can; says why not.
    """
    why: list[str] = []
    for item in items:
        try:
            sample = reader.read(item)
        except InputFailure as error:
            why.append(one_line(error))
            continue
        if shape is not None and tuple(sample.x.shape) != shape:
            raise Failure(
                f"{item.label} is an input {tuple(sample.x.shape)}, the model takes {shape}: change it with --resize, "
                f"--crop, --grey or --sample-shape"
            )
        return sample
    more = f" (and {len(why) - 1} more)" if len(why) > 1 else ""
    raise Failure(f"no input can be read: {why[0]}{more}", code=1)
