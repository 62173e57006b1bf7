"""Names in manifests and lists are names of files in the folder of results, never paths out of it."""

from __future__ import annotations

import json
import os

import pytest

from fastlrp.cli.errors import Failure
from fastlrp.cli.file_names import below, is_inside
from fastlrp.cli.inputs import Item, name_inside
from fastlrp.cli.store import MANIFEST, Store

OUTSIDE = ["../victim", "a/../../victim", "/etc/victim", "..", ".", "", "a//b", "a/", "./a", "a\0b", 3, None]
ON_WINDOWS = [
    "C:victim", "C:/victim", "a\\..\\..\\victim", "\\\\host\\share\\victim", "con", "NUL.png", "a/aux.txt", "com1.npy",
    "a:stream", ".. /victim", "a/...", "lpt9. ",
]  # fmt: skip


@pytest.mark.parametrize("name", OUTSIDE)
def test_names_that_lead_out(name):
    assert not is_inside(name, windows=False)
    assert not is_inside(name, windows=True)


@pytest.mark.parametrize("name", ON_WINDOWS)
def test_names_that_lead_out_on_windows(name):
    assert not is_inside(name, windows=True)


@pytest.mark.parametrize("name", ["a.png", "more/a.png_top1_3.png", "..a", "a..b", "a b/ä.npy", "console.png", "comet"])
def test_names(name):
    assert is_inside(name, windows=False)
    assert is_inside(name, windows=True)


def filled(tmp_path, **changes):
    """A folder of results with one input, and its manifest changed afterwards."""
    source, out = tmp_path / "x.png", tmp_path / "out"
    source.write_bytes(b"x")
    item = Item(source, "x.png")
    with Store(out, {}) as store:
        store.prepare(item)
        store.write("x.png_1.png", b"result")
        store.finish(item, item.stamp(), {"files": ["x.png_1.png"]})
    head, line = (out / MANIFEST).read_text().splitlines()
    (out / MANIFEST).write_text(f"{head}\n{json.dumps({**json.loads(line), **changes})}\n")
    return out, item


@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize(
    "changes",
    [
        {"files": ["../victim"]},
        {"files": ["x.png/../../victim"]},
        {"name": "../victim", "files": []},
        {"name": "..", "files": ["../victim"]},
        {"files": ["mine.txt"]},
        {"files": "x"},
        {"name": 3},
        {"stamp": None},
    ],
)
def test_a_manifest_that_names_other_files_is_refused(tmp_path, changes, overwrite):
    victim = tmp_path / "victim"
    victim.write_text("keep me")
    out, _ = filled(tmp_path, **changes)
    (out / "mine.txt").write_text("keep me")
    before = (out / MANIFEST).read_bytes()
    with pytest.raises(Failure, match="is no manifest"):
        Store(out, {}, overwrite=overwrite)
    assert victim.read_text() == (out / "mine.txt").read_text() == "keep me"
    assert (out / MANIFEST).read_bytes() == before


def test_absolute_names_are_refused_too(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("keep me")
    out, _ = filled(tmp_path, files=[str(victim)], name=str(victim))
    with pytest.raises(Failure, match="is no name of a result here"):
        Store(out, {}, overwrite=True)
    assert victim.exists()


def test_links_that_lead_out_are_not_followed(tmp_path):
    out, _ = filled(tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "x.png_2.png").write_text("keep me")
    (elsewhere / ".fastlrp-0123.tmp").write_text("keep me")
    (out / "more").symlink_to(elsewhere)
    (out / "inner").mkdir()
    (out / "to_inner").symlink_to(out / "inner")
    with Store(out, {}) as store:
        with pytest.raises(Failure, match="is a link that leads out of"):
            store.write("more/x.png_2.png", b"new")
        with pytest.raises(Failure, match="is no name of a file in"):
            store.place("../x")
        store.write("to_inner/a", b"fine")
        (out / "x.png_raw.txt").symlink_to(elsewhere / "x.png_2.png")
        store.place("x.png_raw.txt").write_text("new")
    assert (elsewhere / "x.png_2.png").read_text() == (elsewhere / ".fastlrp-0123.tmp").read_text() == "keep me"
    assert (out / "inner" / "a").read_bytes() == b"fine"
    with pytest.raises(ValueError, match="leads out"):
        below(out, "more/x")


def test_a_manifest_that_is_a_link_or_a_pipe_is_refused(tmp_path):
    other = tmp_path / "notes.txt"
    other.write_text("keep me")
    for make in (lambda path: path.symlink_to(other), os.mkfifo):
        out = tmp_path / make.__name__
        out.mkdir()
        make(out / MANIFEST)
        with pytest.raises(Failure, match="is a link or no regular file"):
            Store(out, {})
    assert other.read_text() == "keep me"


@pytest.mark.parametrize("text", ["keep me", "keep\nme", '{"fastlrp_manifest": 1}\nkeep'])
def test_a_foreign_file_is_left_as_it_is(tmp_path, text):
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(Failure, match="is no manifest"):
        Store(tmp_path, {})
    assert (tmp_path / MANIFEST).read_text() == text


@pytest.mark.parametrize("size", [1, 10, 40])
def test_a_first_line_that_was_cut_off_is_begun_anew(tmp_path, size):
    with Store(tmp_path, {"a": 1}):
        pass
    whole = (tmp_path / MANIFEST).read_bytes()
    (tmp_path / MANIFEST).write_bytes(whole[:size])
    with Store(tmp_path, {"a": 1}):
        pass
    assert (tmp_path / MANIFEST).read_bytes() == whole


def test_names_of_a_list():
    assert name_inside("more/a.png") == "more/a.png"
    assert name_inside("./a.png") == "a.png"
    assert name_inside("../more/a.png") == "a.png"
    assert name_inside("/data/a.png") == "a.png"
