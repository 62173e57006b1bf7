"""examples/report.py writes a report of what it says."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
import torch

from tests.report.pages import Page

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent.parent


def test_the_example_writes_a_report(tmp_path, monkeypatch, capsys):
    pytest.importorskip("sklearn")
    pytest.importorskip("jinja2")
    monkeypatch.syspath_prepend(ROOT / "examples")
    monkeypatch.delitem(sys.modules, "demo", raising=False)
    monkeypatch.setattr(sys, "argv", ["report.py", "--out", str(tmp_path / "r.html"), "--digits", "3"])
    before = torch.get_num_threads()
    with torch.random.fork_rng(), pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / "examples" / "report.py"), run_name="__main__")
    torch.set_num_threads(before)
    sys.modules.pop("demo", None)
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith("3 digits, 120 maps, ")
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
