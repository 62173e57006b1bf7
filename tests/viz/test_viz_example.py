"""The example that makes the documentation's pictures, in small; and that those pictures are all there."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_example_makes_every_picture_of_the_page(tmp_path, monkeypatch, capsys):
    pytest.importorskip("sklearn")
    pytest.importorskip("scipy")
    spec = importlib.util.spec_from_file_location("examples_pictures", ROOT / "examples" / "pictures.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", ["pictures.py", "--out", str(tmp_path / "new"), "--steps", "2"])
    with torch.random.fork_rng():
        module.main()
    page = (ROOT / "docs" / "pictures.md").read_text()
    shown = set(re.findall(r"\]\(images/(pictures_\w+\.png)\)", page))
    made = {path.name for path in (tmp_path / "new").iterdir()}
    assert shown == made
    for name in made:
        with Image.open(tmp_path / "new" / name) as picture, Image.open(ROOT / "docs" / "images" / name) as shipped:
            assert picture.size == shipped.size, f"{name}: make the pictures again"
    assert "pictures_grid.png" in capsys.readouterr().out
