"""The commands in docs/command_line.md work when they are pasted, from the first to the last."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from functools import partial

import pytest

from fastlrp.cli import digits
from tests.cli.conftest import HERE

ROOT = HERE.parents[1]
PAGE = ROOT / "docs" / "command_line.md"


def commands(block: str) -> list[str]:
    """A block line by line; what the shell does between two calls of the program is one command."""
    parts = re.split(r"^(fastlrp .*)$", block, flags=re.M)
    return [part for part in parts if part.strip()]


@pytest.mark.skipif(os.name != "posix", reason="runs a shell")
def test_every_bash_block(run, tmp_path, monkeypatch):
    """The program in this process: tests/cli/test_cli_commands.py has what starting one adds."""
    pytest.importorskip("jinja2")
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr(digits, "train", partial(digits.train, epochs=1))
    monkeypatch.syspath_prepend(str(here))
    env = {**os.environ, "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    blocks = re.findall(r"^```bash\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.S | re.M)
    assert len(blocks) > 8
    programs = 0
    for command in (command for block in blocks for command in commands(block)):
        words = shlex.split(command, comments=True)
        if words[0] != "fastlrp":
            done = subprocess.run(["bash", "-e", "-c", command], env=env, capture_output=True, text=True)
            assert done.returncode == 0, f"{command}\n{done.stderr}"
            continue
        programs += 1
        told = words[words.index(">") + 1 :] if ">" in words else []
        outcome = run(*words[1 : len(words) - len(told) - bool(told)])
        assert outcome.code == 0, f"{command}\n{outcome.err}"
        for name in told:
            (here / name).write_text(outcome.out)
    assert programs > 15
    lines = [json.loads(line) for line in (here / "results.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["input"] * 10 + ["end"]
    assert sorted(os.listdir(here / "listed" / "fastlrp-demo" / "digits")) == [
        "0.png_0.png",
        "1.png_1.png",
        "2.png_7.png",
    ]
    assert len(os.listdir(here / "noise")) == 21


def test_the_page_names_every_option_and_command():
    from fastlrp.cli.app import app

    text = PAGE.read_text(encoding="utf-8")
    for name in app.commands:
        assert f"fastlrp {name}" in text
    missing = [
        parameter.opts
        for parameter in app.commands["explain"].params
        if parameter.opts[0].startswith("-")
        and not any(re.search(f"[` ]{option}\\b", text) for option in parameter.opts)
    ]
    assert not missing
