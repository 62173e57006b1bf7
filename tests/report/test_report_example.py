"""examples/report.py writes a report of what it says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.report.pages import Page

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent.parent


def test_the_example_writes_a_report(tmp_path):
    pytest.importorskip("sklearn")
    pytest.importorskip("jinja2")
    command = [sys.executable, str(ROOT / "examples" / "report.py"), "--out", str(tmp_path / "r.html"), "--digits", "3"]
    run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert run.stdout.startswith("3 digits, 120 maps, ")
    page = Page(tmp_path / "r.html")
    assert not page.meta["reduced"]
    for sample in page.meta["samples"]:
        assert [layer["stored"] for layer in sample["layers"]] == [[8, 8], [2, 2], [4, 4], [1, 48]]
        best = max(range(10), key=lambda k, scores=sample["scores"]: scores[k])
        rows = sample["ledger"]["rows"][str(best)]
        assert rows[0][1] == pytest.approx(sample["scores"][best], rel=1e-5)  # What arrives at the top is the score.
        # The pixels and what was kept on the way add up to it.
        kept = sum(value for row in rows for value in row[3:6])
        assert sample["layers"][0]["totals"][best] + kept == pytest.approx(sample["scores"][best], rel=1e-4)
