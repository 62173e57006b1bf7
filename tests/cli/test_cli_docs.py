"""The commands in docs/command_line.md work when they are pasted, from the first to the last."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest

from tests.cli.conftest import HERE

ROOT = HERE.parents[1]
PAGE = ROOT / "docs" / "command_line.md"


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="runs a shell")
def test_every_bash_block(tmp_path):
    pytest.importorskip("jinja2")
    program = tmp_path / "bin" / "fastlrp"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m fastlrp "$@"\n')
    program.chmod(0o755)
    path = f"{program.parent}:{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
    here = tmp_path / "here"
    here.mkdir()
    env = {**os.environ, "PATH": path, "PYTHONPATH": f"{ROOT}:{here}", "OMP_NUM_THREADS": "1"}
    blocks = re.findall(r"^```bash\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.S | re.M)
    assert len(blocks) > 8
    for block in blocks:
        done = subprocess.run(["bash", "-e", "-c", block], cwd=here, env=env, capture_output=True, text=True)
        assert done.returncode == 0, f"{block}\n{done.stderr}"
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
