"""``fastlrp report --parts`` and ``--compare``."""

from __future__ import annotations

import json
import re

import pytest
import torch

from tests.cli import text_folders
from tests.cli.conftest import MODEL

pytest.importorskip("jinja2")


def meta(path):
    return json.loads(re.search(r'<script[^>]*id="meta"[^>]*>(.*?)</script>', path.read_text(), re.DOTALL)[1])


def test_patches_of_images(run, photos, tmp_path):
    done = run(
        "report", MODEL, photos / "a.png", photos / "b.jpg", "--parts", "4x8", "-o", tmp_path / "p.html", "--title", "T"
    )
    assert done.code == 0, done.err
    found = meta(tmp_path / "p.html")
    assert (found["title"], "models.py:factory" in found["model"]) == ("T", True)
    assert [(s["name"], s["count"], len(s["targets"])) for s in found["samples"]] == [
        (str(photos / name), 15, 10) for name in ("a.png", "b.jpg")
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--parts", "0"], "'0' is no part of an input: expected 16 or 16x32"),
        (["--parts", "tokens"], "--parts tokens: groups='tokens' needs ids"),
        (["--parts", "columns"], "is for tables and vectors"),
        (["--parts", "4", "--compare", "gamma"], "--compare is not for the page of --parts"),
        (["--parts", "4", "--layers", "0,1"], "name one"),
        (["--compare", "gama"], "unknown composite 'gama'"),
        (["--compare", "epsilon_plus"], "compared already"),
    ],
)
def test_what_cannot_be(run, photos, tmp_path, words, message):
    done = run("report", MODEL, photos / "a.png", "-o", tmp_path / "p.html", *words)
    assert done.code == 2
    assert message in done.err
    assert not (tmp_path / "p.html").exists()


def test_columns_of_a_table(run, tmp_path):
    (tmp_path / "net.py").write_text("from torch import nn\ndef make():\n    return nn.Linear(3, 2)\n")
    (tmp_path / "people.csv").write_text("age,hours,gain\n39,40,2\n50,13,0\n")
    done = run(
        "report",
        f"{tmp_path / 'net.py'}:make",
        tmp_path / "people.csv",
        "--parts",
        "columns",
        "-o",
        tmp_path / "p.html",
    )
    assert done.code == 0, done.err
    assert [s["tokens"] for s in meta(tmp_path / "p.html")["samples"]] == [["age", "hours", "gain"]] * 2


@pytest.mark.slow
def test_next_tokens_of_texts(run, tmp_path):
    torch.manual_seed(0)
    folder = text_folders.language_model(tmp_path / "words")
    words = ["--text", "the capital of france is", "--parts", "tokens", "--at", "1,-1", "-o", tmp_path / "p.html"]
    done = run("report", f"hf:{folder}", *words)
    assert done.code == 0, done.err
    first, last = meta(tmp_path / "p.html")["samples"]
    assert (first["at"], last["at"], first["tokens"][:2]) == (1, 4, ["the", " capital"])
    assert first["scores"] == sorted(first["scores"], reverse=True)
    done = run("report", f"hf:{folder}", "--text", "the capital", "--parts", "16", "-o", tmp_path / "q.html")
    assert (done.code, "texts have tokens" in done.err) == (2, True)


def test_two_composites_in_one_report(run, photos, tmp_path):
    listed = photos / "list.txt"
    listed.write_text("a.png 3\nc.png 1\n")
    words = ["-c", "epsilon_plus", "--compare", "gamma", "-t", "top2", "--ledger", 0, "-o", tmp_path / "r.html"]
    done = run("report", MODEL, "--list", listed, *words)
    assert done.code == 0, done.err
    found = meta(tmp_path / "r.html")
    assert "epsilon_plus" in found["composite"]
    assert "gamma" in found["composite"]
    assert [(s["methods"], s["truth"]) for s in found["samples"]] == [
        (["epsilon_plus"] * 2 + ["gamma"] * 2, truth) for truth in ("3", "1")
    ]
    assert found["samples"][0]["classes"][:2] == found["samples"][0]["classes"][2:]
