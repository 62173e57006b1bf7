"""The notebooks run in a fresh kernel, show what they are stored with, and are stored without anything of a machine."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import re
import resource
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))
FRESH = "tabular"
"""The one that runs in a fresh kernel every time: the others run in this process, and in fresh ones in a full run."""


def shown(notebook: Any) -> list[list[str]]:
    """For each cell of code the kinds of its outputs."""
    cells = [cell["outputs"] for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return [[kind for output in outputs for kind in sorted(output.get("data", ["text/plain"]))] for outputs in cells]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_executed_small_and_without_paths(path):
    text = path.read_text()
    notebook = json.loads(text)
    kinds = [kind for cell in shown(notebook) for kind in cell]
    assert kinds.count("image/png") + kinds.count("text/html") >= 2
    assert len(text) < 400_000
    assert not re.search(r"(?<![\w:])/(?:home|root|tmp|work|usr|Users)/", text)
    assert set(notebook["metadata"]) == {"kernelspec", "language_info"}
    assert all(cell.get("execution_count") is None for cell in notebook["cells"])


def outcome(source: str, names: dict[str, Any]) -> list[str]:
    """The kinds of outputs that a cell has, run in this process: what it prints, and its last line's value."""
    formatters = pytest.importorskip("IPython.core.formatters")
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(tree, "cell", "exec", dont_inherit=True), names)
        value = None if last is None else eval(compile(ast.Expression(last.value), "cell", "eval"), names)
    kinds = ["text/plain"] if printed.getvalue() else []
    return kinds if value is None else kinds + sorted(formatters.DisplayFormatter().format(value)[0])


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for path in NOTEBOOKS if path.stem != FRESH], ids=lambda path: path.stem)
def test_a_notebook_runs(path):
    notebook = json.loads(path.read_text())
    names: dict[str, Any] = {"__name__": "__main__"}
    with torch.random.fork_rng():
        cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
        assert [outcome(cell, names) for cell in cells] == shown(notebook)


@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=() if path.stem == FRESH else pytest.mark.full) for path in NOTEBOOKS],
    ids=lambda path: path.stem,
)
def test_a_notebook_runs_in_a_fresh_kernel(path, monkeypatch):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]))
    stored = nbformat.read(path, as_version=4)
    fresh = nbformat.read(path, as_version=4)
    for cell in fresh.cells:
        cell.pop("outputs", None) if cell.cell_type != "code" else cell.update(outputs=[])
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    nbclient.NotebookClient(
        fresh, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}
    ).execute()
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 20  # 6 at most where it was tried
    # viz.grid(…) as a cell's last line is a picture, an explainer a card.
    assert shown(fresh) == shown(stored)
