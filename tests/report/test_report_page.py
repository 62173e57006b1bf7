"""The file: what stands in it, that nothing breaks out of it, its size, and how it is written."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fastlrp import report
from fastlrp.report import Maps, Sample, write
from fastlrp.report.budget import Storage, ladder
from fastlrp.report.codec import coarse
from tests.report.pages import HOSTILE, Page, noise, sample, smooth

pytest.importorskip("jinja2", reason="Jinja2 is not installed")
TEMPLATES = Path(report.__file__).parent / "templates"


def test_everything_given_stands_in_the_file(tmp_path):
    first, second = sample(), sample("a dog", count=1, image=None, ledger=None)
    path = write(tmp_path / "new" / "r.html", [first, second], title="T", composite="C", unit="logit")
    page = Page(path)
    assert path == tmp_path / "new" / "r.html"
    assert (page.meta["title"], page.meta["composite"], page.meta["unit"]) == ("T", "C", "logit")
    assert page.texts["h1"] == page.texts["title"] == "T"
    one, two = page.meta["samples"]
    assert page.meta["lists"][one["targets"]] == first.targets
    assert one["scores"] == first.scores
    assert ([layer["name"] for layer in one["layers"]], one["image"], two["image"]) == (first.layers, True, False)
    assert base64.b64decode(page.blocks["image-0"]).startswith(b"\x89PNG")
    assert "image-1" not in page.blocks
    assert two["ledger"] is None
    assert one["ledger"]["layers"] == [["head", "linear", "Epsilon(1e-06)"], ["conv", "conv2d", "ZPlus()"]]
    assert one["ledger"]["rows"]["0"][1] == [1, 2.25, 2.0, None, None, None, None]
    assert one["ledger"]["rows"]["all"][0] == [0, 1.0, 2.25, 0.25, 0.0, 0.0, 1e-7]
    assert not page.meta["reduced"]
    assert page.meta["storage"] == "8 bits per value: what is shown is within 1/254 of the largest value of its map."


@pytest.mark.parametrize(("bits", "resolution"), [(8, None), (5, None), (8, 5)])
def test_shown_values_are_within_the_bound_that_is_shown(tmp_path, bits, resolution):
    given = sample()
    page = Page(write(tmp_path / "r.html", [given], title="T", bits=bits, resolution=resolution, max_bytes=None))
    for layer, maps in given.relevance.items():
        for k in range(len(given.targets)):
            shown, index = page.shown(0, layer, k)
            R = np.asarray(maps[k], np.float64)
            assert np.abs(shown - coarse(R, index["factor"])).max() <= index["errors"][k]
            assert index["errors"][k] <= 1.01 * np.abs(coarse(R, index["factor"])).max() / (2**bits - 2)
            assert index["totals"][k] == pytest.approx(R.sum(), rel=1e-6)
    if resolution:
        assert "at most 5 cells wide and high, not 12; each cell is the sum" in page.meta["storage"]
        assert not page.meta["reduced"]  # As asked for.


def test_16_bit_maps_count_into_the_bound(tmp_path):
    R = noise(3, 20, 20)
    maps = Maps(R.shape)
    maps.put(0, R)
    given = Sample("s", None, ["a", "b", "c"], [1.0, 2.0, 3.0], {"input": maps})
    page = Page(write(tmp_path / "r.html", [given], title="T", resolution=10))
    for k in range(3):
        shown, index = page.shown(0, "input", k)
        assert np.abs(shown - coarse(R[k].astype(np.float64), 2)).max() <= index["errors"][k]
        assert index["totals"][k] == pytest.approx(float(R[k].astype(np.float64).sum()), rel=1e-6)


# Nothing breaks out, nothing comes in


def test_hostile_names_stay_names(tmp_path):
    count = len(HOSTILE)
    relevance = {"input": noise(count, 2, 2), **{f"{i}{name}": noise(count, 2, 2) for i, name in enumerate(HOSTILE)}}
    rows = [{"layer": name, "rule": name, "arrived": 1.0} for name in HOSTILE]
    given = [Sample(name, None, HOSTILE, [0.0] * count, relevance, rows) for name in HOSTILE]
    usual = Page(write(tmp_path / "usual.html", [sample(image=None)] * count, title="T"))
    page = Page(write(tmp_path / "r.html", given, title=HOSTILE[0], composite=HOSTILE[1], unit=HOSTILE[3]))
    assert page.texts["h1"] == page.texts["title"] == HOSTILE[0]
    assert page.meta["lists"] == [HOSTILE]
    assert [s["name"] for s in page.meta["samples"]] == HOSTILE
    assert [layer["name"] for layer in page.meta["samples"][0]["layers"]][1:] == [
        f"{i}{name}" for i, name in enumerate(HOSTILE)
    ]
    assert page.meta["samples"][0]["ledger"]["layers"][0][0] == HOSTILE[0]

    def elements(of: Page) -> list[str]:
        return [tag for tag, attributes in of.tags if not str(attributes.get("id")).startswith("maps-")]

    assert elements(page) == elements(usual)


def test_a_lone_surrogate_is_no_obstacle(tmp_path):
    page = Page(write(tmp_path / "r.html", [sample("half \ud83e")], title="half \ud83e"))
    assert page.meta["samples"][0]["name"] == "half \ud83e"
    assert page.texts["h1"] == "half \ufffd"


def test_the_page_needs_nothing_and_its_policy_says_so(tmp_path):
    page = Page(write(tmp_path / "r.html", [sample()], title="T"))
    policy = next(a["content"] for tag, a in page.tags if tag == "meta" and "http-equiv" in a)
    assert policy.startswith("default-src 'none'; img-src data:;")
    for text in (page.blocks["program"], re.search("<style>(.*?)</style>", page.source, re.S)[1]):
        assert f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" in policy
    for tag, attributes in page.tags:
        names = {"src", "href", "action", "style", "srcset", *(a for a in attributes if a.startswith("on"))}
        assert not names & attributes.keys(), (tag, attributes)


@pytest.mark.parametrize("file", sorted(TEMPLATES.iterdir()), ids=lambda p: p.name)
def test_templates_are_plain(file):
    text = file.read_text()
    unwanted = r"https?:|\beval\b|\bFunction\(|innerHTML|outerHTML|insertAdjacentHTML|document\.write|import\("
    assert not re.search(unwanted, text)
    assert "</script" not in text or file.suffix == ".j2"
    assert text.count("\n") <= 350


# Size


@pytest.mark.slow
def test_a_thousand_noisy_maps_of_224_by_224_are_under_20_MB(tmp_path):
    maps = Maps((1000, 224, 224))
    for first in range(0, 1000, 50):
        maps.put(first, noise(50, 224, 224, seed=first))
    assert maps._q.nbytes < 101e6  # Half of float32.
    names = [f"class number {k}" for k in range(1000)]
    image = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    given = Sample("noise", image, names, list(range(1000)), {"input": maps})
    path = write(tmp_path / "r.html", [given], title="T")
    # 112 cells and 8 bits: 11.9 MB. No image compresses worse than this one.
    assert 10e6 < path.stat().st_size < 20e6
    page = Page(path)
    assert page.meta["reduced"]
    assert page.meta["storage"].endswith("Coarser than the 8 bits and 224 cells asked for, to stay below 20 MB.")
    shown, index = page.shown(0, "input", 777)
    assert (index["stored"], index["factor"], shown.shape) == ([112, 112], 2, (112, 112))
    R = noise(50, 224, 224, seed=750)[27].astype(np.float64)
    assert np.abs(shown - coarse(R, 2)).max() <= index["errors"][777]


def test_bits_go_first_then_resolution(tmp_path):
    given = [sample(count=40, size=64, image=None, ledger=None, relevance={"input": noise(40, 64, 64)})]
    whole = write(tmp_path / "r.html", given, title="T", max_bytes=None).stat().st_size
    fixed = write(tmp_path / "r.html", given, title="T", resolution=1).stat().st_size
    found = []
    for share in (1.05, 0.9, 0.75, 0.3, 0.1):
        limit = fixed + 5000 + int(share * (whole - fixed))
        path = write(tmp_path / "r.html", given, title="T", max_bytes=limit)
        assert path.stat().st_size <= limit
        page = Page(path)
        index = page.meta["samples"][0]["layers"][0]
        levels = round(np.abs(page.shown(0, "input", 0)[0]).max() / index["scales"][0])
        found.append((index["stored"][0], levels))
        assert page.meta["reduced"] == (found[-1] != (64, 127))
        assert (f"to stay below {limit / 1e6:g} MB" in page.meta["storage"]) == page.meta["reduced"]
    assert found[0] == (64, 127)
    assert found[1:3] == [(64, 63), (64, 31)]
    assert found[3][0] == 32
    assert found[4][0] <= 16


def test_ladder_ends_at_the_coarsest():
    rungs = list(ladder([sample(size=30)], 8, None))
    assert rungs == [Storage(b, side) for side in (30, 15, 8, 7) for b in (8, 7, 6)]
    assert list(ladder([sample(size=30)], 5, 6)) == [Storage(5, 6)]
    assert Storage(8, 7).stored((30, 20)) == (6, 4)
    assert Storage(8, 7).stored((1, 100)) == (1, 34)  # A row may have as many cells as a square.


# Writing


def test_the_old_file_stays_until_the_new_one_is_complete(tmp_path, monkeypatch):
    path = tmp_path / "r.html"
    path.write_text("old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        write(path, [sample()], title="T")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["r.html"]
    monkeypatch.undo()
    write(path, [sample()], title="T")
    assert path.read_text().startswith("<!doctype html>")
    assert os.listdir(tmp_path) == ["r.html"]


def test_the_same_samples_make_the_same_file(tmp_path):
    files = [write(tmp_path / f"{i}.html", [sample(), sample("b")], title="T").read_bytes() for i in range(2)]
    assert files[0] == files[1]


def test_without_jinja2_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ImportError, match=r'pip install "fastlrp\[report\]"'):
        write(tmp_path / "r.html", [sample()], title="T")


@pytest.mark.slow
def test_import_needs_no_jinja2_and_fastlrp_no_report():
    code = (
        "import sys, fastlrp; assert 'fastlrp.report' not in sys.modules\n"
        "import fastlrp.report; assert 'jinja2' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# Errors


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"bits": 9}, "bits must be 4 to 8, got 9"),
        ({"bits": 3}, "bits must be 4 to 8"),
        ({"resolution": 0}, "resolution must be a positive integer or None"),
        ({"max_bytes": -1}, "max_bytes must be a positive integer or None"),
        ({"max_bytes": "20MB"}, "max_bytes must be a positive integer"),
        ({"max_bytes": 1000}, r"less than the \d+ bytes of the page, images and names without maps: raise max_bytes"),
    ],
)
def test_arguments_that_do_not_fit(tmp_path, options, match):
    with pytest.raises(ValueError, match=match):
        write(tmp_path / "r.html", [sample()], title="T", **options)
    assert not os.listdir(tmp_path)


def test_no_samples(tmp_path):
    with pytest.raises(ValueError, match=r"samples is empty: a report shows at least one; fastlrp.report.collect"):
        write(tmp_path / "r.html", [], title="T")
    with pytest.raises(TypeError, match=r"must be fastlrp\.report\.Sample objects, got dict"):
        write(tmp_path / "r.html", [{}], title="T")  # type: ignore[list-item]
    with pytest.raises(IsADirectoryError, match=r"is a folder: name the file, for instance .*report\.html"):
        write(tmp_path, [sample()], title="T")


def test_too_many_maps(tmp_path):
    given = sample(count=400, relevance={"input": smooth(400, 64, 64)}, ledger=None)
    fixed = write(tmp_path / "r.html", [given], title="T", resolution=1).stat().st_size
    match = r"400 maps need about \d+ bytes even with 6 bits at 7x7, max_bytes=\d+: raise"
    with pytest.raises(ValueError, match=match):
        write(tmp_path / "r.html", [given], title="T", max_bytes=fixed + 20_000)


def test_nan_says_where_it_is(tmp_path):
    R = noise(6, 3, 3)
    R[4, 1, 1:] = np.nan
    given = sample(relevance={"input": noise(6, 12, 12), "conv": R})
    with pytest.raises(ValueError, match=r"sample 'a cat', layer 'conv', target 4 \('class 4'\): relevance has 2 NaN"):
        write(tmp_path / "r.html", [given], title="T")
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"name": 3}, TypeError, "a sample's name must be text, got int"),
        ({"targets": "cat"}, TypeError, "targets must be a list of names"),
        ({"targets": [1, 2, 3, 4, 5, 6]}, TypeError, "targets must be a list of names"),
        ({"targets": [], "scores": []}, ValueError, "has no targets: give at least one"),
        ({"scores": [1.0]}, ValueError, "has 6 targets and 1 scores"),
        ({"scores": [1.0, 2, 3, 4, 5, float("nan")]}, ValueError, "the score of target 'class 5' is nan"),
        ({"relevance": {"conv": noise(6, 3, 3)}}, ValueError, "must have an entry 'input'"),
        ({"relevance": {"input": noise(6, 3, 12, 12)}}, ValueError, r"must be \(K, h, w\).*sum over channels first"),
        ({"relevance": {"input": noise(5, 12, 12)}}, ValueError, "5 maps for 6 targets"),
        ({"relevance": {"input": noise(6, 0, 12)}}, ValueError, "must be"),
        ({"relevance": {"input": np.ones((6, 12, 12), int)}}, TypeError, "must be floating point, got int64"),
        ({"image": np.zeros((12, 12, 3))}, ValueError, r"\(H, W, 3\) of uint8, got \(12, 12, 3\) float64"),
        ({"image": "cat.png"}, ValueError, "must be an array .* got str"),
        ({"image": np.zeros((12, 24, 3), np.uint8)}, ValueError, "image of 12x24 and relevance of 12x12 do not lie on"),
        ({"image": np.zeros((0, 12, 3), np.uint8)}, ValueError, "image is empty"),
        ({"ledger": [{"rule": "x"}]}, ValueError, "has no 'layer'"),
        ({"ledger": [{"layer": "x", "target": 6}]}, ValueError, "is about target 6, of 6"),
        ({"ledger": [{"layer": "x", "sent": float("inf")}]}, ValueError, "the ledger's sent of layer 'x' is inf"),
    ],
)  # fmt: skip
def test_samples_that_do_not_fit(changes, error, match):
    with pytest.raises(error, match=match):
        sample(**changes)


def test_an_image_may_be_larger_than_the_map():
    sample(image=np.zeros((37, 37, 3), np.uint8))
    sample(relevance={"input": noise(6, 224, 149)}, image=np.zeros((1500, 1000, 3), np.uint8))
