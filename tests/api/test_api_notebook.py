"""What notebooks show of objects, and how long calls tell how far they are."""

from __future__ import annotations

import html
import re
import sys

import pytest
import torch
from torch import nn

import fastlrp
from fastlrp import markup
from fastlrp.progress import Lines, Progress


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 40)).eval()


X = torch.linspace(-1, 2, 12).reshape(2, 6)


def shown(text: str) -> str:
    """The words of a piece of HTML."""
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", text)))


def test_html_of_an_explainer():
    explainer = fastlrp.Explainer(small(), "epsilon", max_memory="2MB")
    before = shown(explainer._repr_html_())
    assert "Sequential, 275 weights" in before
    assert "epsilon" in before
    assert "2.0 MiB" in before
    assert "Nothing is captured yet" in before
    explainer(X, 0)
    after = explainer._repr_html_()
    assert "<details>" in after
    assert "linear" in shown(after)
    assert "Nothing is captured" not in after


def test_html_of_plan_verification_and_composite():
    explainer = fastlrp.Explainer(small(), "epsilon_plus")
    verification = explainer.verify(X, range(3))
    plan, found = explainer.plan._repr_html_(), verification._repr_html_()
    assert shown(plan).count("linear") == 2
    assert "Epsilon(epsilon=1e-06" in shown(plan)
    assert "✓ every layer agrees" in shown(found)
    assert "end to end" in shown(found)
    composite = shown(explainer.composite._repr_html_())
    assert "Composite epsilon_plus" in composite
    assert "kind('conv')" in composite
    assert "ZPlus" in composite
    for text in (plan, found):
        assert "color: #" not in text
        assert "white" not in text.replace("white-space", "")


def test_html_escapes_and_folds():
    table = markup.table(("a",), [("<b>",)] * 3)
    assert "&lt;b&gt;" in table
    assert "<b>" not in table
    assert markup.folded(table, 3, "rows") == table
    assert markup.folded(table, 300, "rows").startswith("<details><summary")


def test_a_log_gets_a_line_now_and_then(capsys):
    now = [0.0]
    lines = Lines(100, "target", clock=lambda: now[0])
    for done in range(1, 101):
        now[0] += 1.0
        lines.reach(done)
    said = capsys.readouterr().err.splitlines()
    # After 5 s, then 7.5, 11.25, 16.9, 25.3 s later, at whole seconds.
    assert said[0] == "fastlrp: 5 of 100 targets, 5 s, about 95 s left"
    assert [int(line.split()[1]) for line in said] == [5, 13, 25, 42, 68]


def test_a_log_counts_what_was_done_before(capsys):
    now = [0.0]
    lines = Lines(100, "input", done=90, clock=lambda: now[0])
    now[0] = 6.0
    lines.reach(92)
    assert "92 of 100 inputs, 6 s, about 24 s left" in capsys.readouterr().err


def test_progress_of_a_call(capsys):
    explainer = fastlrp.Explainer(small())
    quiet = explainer(X, "all")
    assert capsys.readouterr().err == ""
    assert torch.equal(explainer(X, "all", progress="auto"), quiet)
    assert capsys.readouterr().err == ""
    assert torch.equal(explainer(X, "all", progress=True), quiet)
    assert re.fullmatch(r"fastlrp: 40 targets, \d+\.\d s\n", capsys.readouterr().err)
    assert explainer.verify(X, "all", progress=True).ok
    assert "40 targets" in capsys.readouterr().err
    with pytest.raises(ValueError, match="progress must be True, False or 'auto', got 'yes'"):
        explainer(X, 0, progress="yes")


def test_people_see_a_bar(monkeypatch):
    pytest.importorskip("tqdm")
    seen = []

    class Bar:
        def __init__(self, **options):
            seen.append((options["total"], options["unit"]))

        def update(self, count):
            seen.append(count)

        def close(self):
            seen.append("closed")

    monkeypatch.setattr("tqdm.tqdm", Bar)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with Progress(5, True, "target") as bar:
        for done in (2, 1, 2, 5):
            bar.reach(done)
    assert seen == [(5, "target"), 2, 3, "closed"]
