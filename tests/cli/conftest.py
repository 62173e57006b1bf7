"""Folders of small inputs, and the command line in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.fixtures import one_thread, seeded  # noqa: F401 - fixtures

pytest.importorskip("click")

HERE = Path(__file__).parent
MODEL = f"{HERE / 'models.py'}:factory"


@dataclass(frozen=True)
class Outcome:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The JSON lines of stdout."""
        return [json.loads(line) for line in self.out.splitlines()]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """``run("explain", …)`` in this process."""
    from click.testing import CliRunner

    from fastlrp import Explainer
    from fastlrp.cli.app import app

    # A slow model of tests/cli/models.py changes it for the whole process: it is set back after the test.
    monkeypatch.setattr(Explainer, "forward", Explainer.forward)

    def call(*words: object) -> Outcome:
        result = CliRunner().invoke(app, [str(word) for word in words], prog_name="fastlrp")
        assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
        assert "Traceback" not in result.output
        return Outcome(result.exit_code, result.stdout, result.stderr)

    return call


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Six images of 20x24 pixels, two of them in a folder below."""
    from PIL import Image

    folder, generator = tmp_path / "photos", np.random.default_rng(0)
    (folder / "more").mkdir(parents=True)
    for i, name in enumerate(("a.png", "b.jpg", "c.png", "d.jpg", "more/a.png", "more/e.bmp")):
        pixels = generator.integers(0, 255, (20 + 0 * i, 24, 3), np.uint8)
        Image.fromarray(pixels).save(folder / name)
    (folder / "notes.txt").write_text("not an input")
    return folder


def files(folder: Path) -> dict[str, Path]:
    """All results by their name in the folder; the manifest and hidden files are none."""
    found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: path for name, path in found.items() if not name.startswith("fastlrp-manifest")}
