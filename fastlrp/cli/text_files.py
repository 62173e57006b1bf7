"""What is written of explained texts: a page, numbers, pictures."""

from __future__ import annotations

import base64
import csv
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastlrp import viz
from fastlrp.cli.errors import Failure, one_line
from fastlrp.cli.text_run import Explained, TextJob
from fastlrp.files import whole
from fastlrp.viz import text_page

FORMATS = ("html", "csv", "npz", "png", "txt")
COLUMNS = ("text", "target", "class", "at", "score", "token", "piece", "relevance")


def write(folder: Path, formats: Sequence[str], job: TextJob, explained: Sequence[Explained]) -> list[str]:
    """The files of these formats; their names.

    Raises:
        Failure: if they cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        found = {}
        if "html" in formats:
            found["texts.html"] = page(job, explained)
        if "csv" in formats:
            found["texts.csv"] = table(explained).encode("utf-8", "backslashreplace")
        if "npz" in formats:
            found["texts.npz"] = arrays(explained)
        for name, data in found.items():
            with whole(folder / name) as file:
                file.write(data)
        view = job.view(explained)
        for kind in ("png", "txt"):
            if kind in formats:
                found[view.save(folder / f"texts.{kind}").name] = b""
        if "png" in formats:
            for number, one in enumerate(explained, 1):
                if one.layers:
                    found[viz.save(_layers(job, one), folder / f"layers_{number}.png").name] = b""
    except OSError as error:
        raise Failure(f"--out: cannot write to {str(folder)!r}: {one_line(error)}") from error
    return list(found)


def page(job: TextJob, explained: Sequence[Explained], title: str | None = None, after: str = "") -> bytes:
    """One HTML page: the texts, pictures of their layers, how they were explained."""
    title = title or job.about
    about = f"{job.about}: {job.rule}" if title != job.about else job.rule
    before = f'<h1>{_escaped(title)}</h1><p class="about">{_escaped(about)}</p>'
    pictures = [
        f"<h2>{_escaped('Layers' if len(explained) == 1 else f'Layers of {one.text.name}')}</h2>"
        f'<img alt="Layers by tokens" src="data:image/png;base64,{base64.b64encode(_png(_layers(job, one))).decode()}">'
        for one in explained
        if one.layers
    ]
    return text_page.page(job.view(explained), title, before, "".join(pictures) + after).encode()


def table(explained: Sequence[Explained]) -> str:
    """A line for each text, target and token."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    for number, one in enumerate(explained, 1):
        for k, target in enumerate(one.targets):
            at = "" if one.positions is None else one.positions[k]
            kind = "" if one.classes[k] is None else one.classes[k]
            for place, (token, value) in enumerate(zip(one.text.tokens, one.relevance[k], strict=True)):
                writer.writerow([number, target, kind, at, repr(one.scores[k]), place, token, repr(float(value))])
    return stream.getvalue()


def arrays(explained: Sequence[Explained]) -> bytes:
    """``relevance_1 (K, S)``, ``scores_1 (K)``, ``targets_1``, ``tokens_1``, ``ids_1``, ``relevance_1@layer``, …"""
    found: dict[str, Any] = {}
    for number, one in enumerate(explained, 1):
        found[f"relevance_{number}"], found[f"scores_{number}"] = one.relevance, np.array(one.scores)
        found[f"targets_{number}"], found[f"tokens_{number}"] = np.array(one.targets), np.array(one.text.tokens)
        found[f"ids_{number}"] = np.array(one.text.ids)
        found |= {f"relevance_{number}@{name}": values for name, values in one.layers.items()}
    stream = io.BytesIO()
    np.savez_compressed(stream, **found)
    return stream.getvalue()


def record(one: Explained, files: Sequence[str]) -> dict[str, Any]:
    """What ``--json`` prints of one text."""
    targets = [
        {
            "class": one.classes[k], "name": one.targets[k], "at": None if one.positions is None else one.positions[k],
            "score": one.scores[k], "sum": float(one.relevance[k].sum()), "relevance": one.relevance[k].tolist(),
        }
        for k in range(len(one.targets))
    ]  # fmt: skip
    text = {"event": "text", "text": one.text.text, "status": "done", "tokens": one.text.tokens, "ids": one.text.ids}
    return {**text, "targets": targets, "files": list(files)}


def _layers(job: TextJob, one: Explained) -> Any:
    maps = {"tokens": one.relevance[None], **{name: values[None] for name, values in one.layers.items()}}
    return viz.token_layers(maps, one.text.tokens, targets=one.targets, layers=list(maps), marks=job.reader.marks)


def _png(figure: Any) -> bytes:
    stream = io.BytesIO()
    viz.to_image(figure).save(stream, "PNG")
    return stream.getvalue()


def _escaped(text: str) -> str:
    return html.escape(text_page.shown(text))
