"""What is made ahead arrives whole, and only where it fits."""

from __future__ import annotations

import json
import os
import shutil
import sys

import pytest

from benchmarks.gpu import carry, summary


@pytest.fixture
def machines(tmp_path, monkeypatch):
    """Two of them: ``go(name)`` moves to one, each with a folder for the extension and a cache of Triton's."""

    def go(name):
        here = tmp_path / name
        (here / "fastlrp").mkdir(parents=True, exist_ok=True)
        (here / "kernels").mkdir(exist_ok=True)
        monkeypatch.setattr(carry, "ROOT", here)
        monkeypatch.setenv("TRITON_CACHE_DIR", str(here / "cache"))
        return here

    return go


def kernel(cache, key):
    folder = cache / key
    folder.mkdir(parents=True)
    names = [f"k.{kind}" for kind in ("cubin", "json", "ptx", "ttir")]
    for name in names:
        (folder / name).write_text(f"{key} {name}")
    listed = {"child_paths": {name: str(folder / name) for name in names}}
    (folder / "__grp__k.json").write_text(json.dumps(listed))


@pytest.mark.skipif(shutil.which("strip") is None, reason="there is no strip")
def test_there_and_back(machines, tmp_path, capsys):
    here = machines("here")
    shutil.copy(os.path.realpath(sys.executable), carry.extension())  # Something that strip takes.
    kernel(here / "cache", "OLD")
    os.utime(here / "cache" / "OLD", (1000, 1000))
    kernel(here / "cache", "NEW")
    (here / "setup.py").write_text("")
    os.utime(carry.extension(), (1000, 1000))
    with pytest.raises(carry.CarryError, match=r"setup\.py has changed since the extension was built"):
        carry.pack(tmp_path / "carried", since=2000)
    os.utime(carry.extension())
    carry.pack(tmp_path / "carried", since=2000)
    assert "the extension and 1 kernels" in capsys.readouterr().out
    there = machines("there")
    (there / "setup.py").write_text("")
    carry.unpack(tmp_path / "carried")
    assert carry.extension().stat().st_size > 1000
    assert (there / "fastlrp" / "kernels").resolve() == there / "kernels"
    folder = there / "cache" / "NEW"
    assert sorted(path.name for path in folder.iterdir()) == ["__grp__k.json", "k.cubin", "k.json"]
    listed = json.loads((folder / "__grp__k.json").read_text())["child_paths"]
    assert listed == {name: str(folder / name) for name in ("k.cubin", "k.json")}
    assert (folder / "k.cubin").read_text() == "NEW k.cubin"
    assert not (there / "cache" / "OLD").exists()
    # Other sources there: kernels are of use all the same, the extension is not.
    (there / "setup.py").write_text("other")
    carry.extension().unlink()
    with pytest.raises(carry.CarryError, match="the extension was made for sources"):
        carry.unpack(tmp_path / "carried")
    assert not carry.extension().exists()


def test_nothing_was_made_ahead(tmp_path, capsys):
    assert carry.main(["unpack", str(tmp_path / "nowhere")]) == 1
    assert "holds nothing" in capsys.readouterr().err


def test_the_summary_tells_which_calls_were_wrong():
    rows = [
        {"part": "smoke", "what": "a", "result": "ok", "seconds": 1.0, "said": "off by 0"},
        {"part": "smoke", "what": "b", "result": "hung", "seconds": 40.0, "said": "killed | after 40 s"},
        {"part": "tests", "what": "c", "result": "passed", "seconds": 1.0, "said": ""},
    ]
    text = summary.markdown(rows, [])
    assert "1 ok, 1 hung." in text
    assert "| b | hung | 40.0 | killed / after 40 s |" in text
    assert "### Tests\n\n1 passed." in text
