"""Texts of the command line: read, explained in batches, each with its targets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastlrp.cli import labels, models, rules, text_targets, texts
from fastlrp.cli.errors import Failure, InputFailure, one_line
from fastlrp.cli.hub_text import TextReader, Tokenized
from fastlrp.cli.screen import Screen
from fastlrp.errors import CaptureError, NotFiniteError
from fastlrp.explainer import Explainer
from fastlrp.precision import check_possible
from fastlrp.targets.spellings import each, next_tokens
from fastlrp.viz import Text, text
from fastlrp.viz.pieces import as_text

COMPOSITE = "attnlrp"
"""For texts, unless another one is asked for."""

_BATCH, _STEP, _BLOCK = 8, 16, 32
"""Texts at once; their lengths are filled up to a multiple; targets at once where layers are asked for."""


@dataclass(frozen=True, eq=False)
class Explained:
    """One text and what explains it.

    Attributes:
        targets: K names. asked: K targets as an explainer takes them. classes: K numbers, None for contrasts.
        positions: K tokens whose scores are explained, None where the model scores the text. scores: K of them.
        relevance: ``(K, S)``. layers: by name, ``(K, S)`` each.
    """

    text: Tokenized
    targets: list[str]
    asked: list[int | dict[int, float]]
    classes: list[int | None]
    positions: list[int] | None
    scores: list[float]
    relevance: np.ndarray
    layers: dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class TextJob:
    """A model of texts, ready to explain them.

    Attributes:
        failed: names and errors of texts that cannot be read. rule: the composite for people.
    """

    explainer: Explainer
    reader: TextReader
    names: Mapping[int, str] | None
    found: list[Tokenized]
    failed: list[tuple[str, str]]
    rule: str
    about: str
    initial: str
    options: dict[str, Any]

    def name(self, number: int) -> str:
        """The name of a class or token."""
        return self.reader.name(number) if self.names is None else self.names[number]

    def view(self, explained: Sequence[Explained]) -> Text:
        """These texts with their relevance, to be shown in colours."""
        options = {"special": self.reader.special, "words": self.options["words"], "marks": self.reader.marks}
        alone = len(self.found) + len(self.failed) == 1
        rows = [
            text(e.text.tokens, e.relevance, targets=e.targets, scores=e.scores,
                 names=["" if alone else e.text.name], **options)
            for e in explained
        ]  # fmt: skip
        return Text(tuple(row.samples[0] for row in rows), self.options["text_scale"], self.options.get("level"))


def has_texts(options: dict[str, Any]) -> bool:
    """Whether texts are to be explained."""
    return bool(options.get("text") or options.get("text_file"))


def prepare(options: dict[str, Any], screen: Screen, composite_given: bool) -> TextJob:
    """The texts and their model.

    Raises:
        Failure: for anything that cannot be done as asked.
    """
    name = options["composite"] if composite_given or options["profile"] else COMPOSITE
    given = rules.check(name, options["parameters"], options["profile"])
    names = None if options["labels"] is None else labels.read(Path(options["labels"]))
    if options["inputs"] or options["list"]:
        raise Failure("--text and --text-file say what to explain: leave INPUTS and --list out")
    lines = _lines(options)
    loaded = models.load(options)
    for note in loaded.notes:
        screen.note(note)
    assert loaded.reader is not None
    if options.get("context") is not None and loaded.reader.scores != "spans":
        raise Failure("--context is for models that answer questions (…ForQuestionAnswering): leave it out")
    if options.get("context") is None and loaded.reader.scores == "spans":
        raise Failure(
            "the model answers questions: give the text to look in with --context, and the question as --text"
        )
    loaded.reader.context = options.get("context")
    found, failed = [], []
    for number, line in enumerate(lines, 1):
        title = f"text {number}" if len(lines) > 1 else "the text"
        try:
            found.append(loaded.reader.read(line, title))
        except InputFailure as error:
            failed.append((title, one_line(error)))
    if not found:
        more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        raise Failure(f"no text can be explained: {failed[0][1]}{more}", code=1)
    like = next((t for t in loaded.module.parameters() if t.is_floating_point()), torch.empty(0))
    initial = rules.initial(name, options["initial"])
    try:
        check_possible(options["precision"], "auto", torch.device(options["device"]), models.DTYPES[options["dtype"]])
        explainer = Explainer(
            loaded.module, rules.composite(name, given, options["profile"], None, like),
            max_memory=options["max_memory"], output=loaded.output, paths=options["paths"],
            precision=options["precision"],
        )  # fmt: skip
    except (ValueError, TypeError) as error:
        raise Failure(one_line(error)) from error
    known = names or loaded.labels
    rule = rules.described(name, given, options["profile"], initial)
    return TextJob(
        explainer, loaded.reader, None if known is None else labels.Names(known), found, failed, rule, loaded.about,
        initial, options,
    )  # fmt: skip


def _lines(options: dict[str, Any]) -> list[str]:
    lines = list(options["text"])
    if options["text_file"] is not None:
        path = Path(options["text_file"])
        try:
            of_file = [line for line in texts.read(path).splitlines() if line.strip()]
        except FileNotFoundError:
            raise Failure(f"--text-file: there is no file {str(path)!r}") from None
        except (OSError, ValueError) as error:
            raise Failure(f"--text-file: {path} is no UTF-8 text: {one_line(error)}") from error
        if not of_file:
            raise Failure(f"--text-file: {path} has no text: expected one in each line")
        lines += of_file
    return lines


def explain(job: TextJob) -> Iterator[Explained | tuple[str, str]]:
    """Each text in order: explained, or its name and why not.

    Raises:
        Failure: for what no text can do: targets, layers, operations without a rule.
    """
    done: dict[str, Explained | tuple[str, str]] = {}
    for group in _groups(job):
        try:
            for explained in _explain(job, group):
                done[explained.text.name] = explained
        except (CaptureError, NotFiniteError) as error:
            done |= {each_of.name: (each_of.name, one_line(error)) for each_of in group}
        except InputFailure as error:
            done |= {each_of.name: (each_of.name, one_line(error)) for each_of in group}
        except (IndexError, KeyError, TypeError, ValueError) as error:
            raise Failure(one_line(error)) from error
    for found in job.found:
        yield done[found.name]


def _groups(job: TextJob) -> Iterator[list[Tokenized]]:
    """Texts that go together: of about one length, since each length is another plan."""
    padded = job.reader.pads and job.options["targets"] != "next"
    size = job.options["batch_size"] or _BATCH
    by_length: dict[int, list[Tokenized]] = {}
    for found in job.found:
        by_length.setdefault(_length(job, [found]) if padded and len(job.found) > 1 else len(found.ids), []).append(
            found
        )
    for group in by_length.values():
        places = [_places(job, found) for found in group]
        counts = sorted({len(place) for place in places if place is not None})
        for count in counts or [0]:  # As many positions for each sample of a batch.
            part = [found for found, place in zip(group, places, strict=True) if len(place or []) == count]
            for start in range(0, len(part), size):
                yield part[start : start + size]
        yield from ([found] for found, place in zip(group, places, strict=True) if place is None and counts)


def _length(job: TextJob, group: Sequence[Tokenized]) -> int:
    longest = max(len(found.ids) for found in group)
    rounded = -(-longest // _STEP) * _STEP
    return min(rounded, job.reader.limit or rounded) if job.reader.pads else longest


def _places(job: TextJob, found: Tokenized) -> list[int] | None:
    """The tokens whose scores are explained; None where there is one score for the text, or each next token's."""
    at, scores = job.options["at"], job.reader.scores
    if not job.reader.of_positions or (job.options["targets"] == "next" and at is None):
        return None
    if at is None and scores == "masked":
        return [i for i, number in enumerate(found.ids) if number == job.reader.mask]
    return [place + len(found.ids) if place < 0 else place for place in at or [-1]]


def _check_places(job: TextJob, found: Tokenized) -> None:
    places, count = _places(job, found), len(found.ids)
    if places == []:
        raise InputFailure(f"{found.name} has no masked token: write {job.reader.token(job.reader.mask or 0)} in it, "
                           "or say with --at which token's scores to explain")  # fmt: skip
    for place in places or []:
        if not 0 <= place < count:
            raise InputFailure(f"{found.name} has {count} tokens, 0 to {count - 1}: --at {place} is out of range")


def _explain(job: TextJob, group: list[Tokenized]) -> list[Explained]:
    for found in group:
        _check_places(job, found)
    if job.options["at"] is not None and not job.reader.of_positions:
        raise Failure("--at is for models that score each token: this one scores the text as a whole")
    device = next(job.explainer.model.parameters()).device
    alone = len(job.found) == 1 or job.options["targets"] == "next"
    length = len(group[0].ids) if alone or not job.reader.pads else _length(job, group)
    inputs = job.reader.batch(group, device, length)
    places = [_places(job, found) for found in group]
    at: Any = None if places[0] is None else each(torch.tensor(places, device=device))
    with job.explainer.forward(inputs) as record:
        wanted = text_targets.read(_spec(job, record.scores), job.reader, job.names, record.scores.shape[-1])
        targets: Any = next_tokens(inputs["input_ids"]) if wanted == "next" else wanted
        layers = job.options["layers"]
        layers = "all" if layers == ("all",) else None if layers is None else list(layers)
        question = record.asked(targets, job.initial, at)
        index = None if question.index is None else question.index.tolist()
        position = None if question.position is None else question.position.tolist()
        block = _BLOCK if layers is not None and job.explainer.max_memory is None else None
        blocks = [_rows(found) for _, found in record.stream(targets, job.initial, layers, None, block, at)]
        scores = question.scores().double().tolist()
    together = {name: torch.cat([block[name] for block in blocks], 1) for name in blocks[0]}
    return [
        _explained(job, found, i, wanted, index, position, scores[i], together) for i, found in enumerate(group)
    ]  # fmt: skip


def _spec(job: TextJob, scores: Tensor) -> str:
    """The targets as they were written; of the best ones that nobody asked for no more than there are."""
    spec: str = job.options["targets"]
    if job.options["targets_given"] or not spec.startswith("top"):
        return spec
    return f"top{min(int(spec.removeprefix('top')), scores.shape[-1])}"


def _rows(found: Any) -> dict[str, Tensor]:
    """``(B, K, S)`` of the ids, and of each layer that has a position for each token."""
    given = found.get("input", found) if isinstance(found, Mapping) else found
    if isinstance(given, Mapping):
        given = next(value for key, value in given.items() if key.endswith("input_ids"))
    if not isinstance(found, Mapping) or "input" not in found:
        return {"input": given.cpu()}
    length = given.shape[2]
    rest = {key: value for key, value in found.items() if key not in ("input", "output") and value is not None}
    fitting = {key: value for key, value in rest.items() if value.dim() == 4 and value.shape[2] == length}
    return {"input": given.cpu(), **{key: value.sum(-1).cpu() for key, value in fitting.items()}}


def _explained(
    job: TextJob, found: Tokenized, i: int, wanted: Any, index: Any, position: Any, scores: list[float],
    together: dict[str, Tensor],
) -> Explained:  # fmt: skip
    count, length = len(scores), len(found.ids)
    if index is None:  # Contrasts among them; every target at every position, positions outermost.
        asked_for = [target for _ in range(count // len(wanted)) for target in wanted]
        classes: list[int | None] = [None if isinstance(target, dict) else target for target in asked_for]
        names = [text_targets.named(target, job.name) for target in asked_for]
    else:
        classes = asked_for = list(index[i])
        of_text = job.reader.scores == "spans"
        names = [_of_token(job, found, number) if of_text else job.name(number) for number in index[i]]
    own = None if position is None else position[i]
    if own is None and _places(job, found) is not None:
        own = [place for place in _places(job, found) or [] for _ in range(count // len(_places(job, found) or [0]))]
    if own is not None and len(set(own)) > 1:
        names = [f"{name} at {place}" for name, place in zip(names, own, strict=True)]
    values = {name: t[i, :, :length].float().double().numpy() for name, t in together.items()}
    return Explained(found, names, asked_for, classes, own, scores, values.pop("input"), values)


def _of_token(job: TextJob, found: Tokenized, number: int) -> str:
    """A token of the text as a target."""
    return f"{as_text(found.tokens[number], job.reader.marks).strip()} at {number}"


def kept(job: TextJob, one: Explained, most: int) -> list[tuple[str, float, float, dict[str, float]]]:
    """Of the targets with the best scores: name, score, sum of the tokens, and what stayed on the way.

    Each is a walk through the whole model in float64.
    """
    device = next(job.explainer.model.parameters()).device
    inputs = job.reader.batch([one.text], device, len(one.text.ids))
    best = sorted(range(len(one.targets)), key=lambda k: -one.scores[k])[:most]
    rows = []
    for k in best:
        at = None if one.positions is None else one.positions[k]
        found = job.explainer.verify(inputs, [one.asked[k]], at=at, initial=job.initial)
        rows.append((one.targets[k], one.scores[k], float(one.relevance[k].sum()), dict(found.kept)))
    return rows
