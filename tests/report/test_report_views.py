"""The report in a browser: the input beside the maps, differences, overviews, ways, what is saved, print."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from fastlrp.report import Sample, compare, write
from tests.report.browser import numbers
from tests.report.pages import HOSTILE, Page, noise, sample

pytestmark = pytest.mark.slow

pytest.importorskip("jinja2", reason="Jinja2 is not installed")


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two samples in two ways, of the same three classes."""
    ways = {}
    for seed, way in enumerate(("first way", "second way")):
        ways[way] = [
            sample(
                name, 3, relevance={"input": noise(3, 12, 12, seed=10 * seed + i), "head": noise(3, 1, 5)}, ledger=None,
                truth="class 1", true_class=1, probabilities=[0.7, 0.2, 0.1], probability="softmax",
            )
            for i, name in enumerate(("a/one.png", "two"))
        ]  # fmt: skip
    path = tmp_path_factory.mktemp("two") / "r.html"
    return write(path, compare(ways), title="T", model="a model")


def visible(page):
    return [name for name in ("photo", "a", "b", "d") if page.page.is_visible(f"#panel-{name}")]


def test_the_input_the_truth_and_probabilities_stand_beside_the_maps(shown, two):
    page = shown(two)
    assert visible(page) == ["photo", "a", "b"]
    assert (page.text("name-photo"), page.text("truth"), page.text("about")[:7]) == ("a/one.png", "class 1", "a model")
    assert (page.text("chance-name-a"), page.text("chance-a"), page.text("rank-a")) == ("Softmax", "70 %", "1 of 3")
    assert page.page.is_hidden("#true-a")
    page.page.click("#rows [data-target='1']")
    page.settle()
    assert page.page.is_visible("#true-a")
    page.point("a", 0.3, 0.6)
    photo, cross = (page.page.locator(f"#{name}-photo").bounding_box() for name in ("frame", "cross"))
    assert (cross["x"] - photo["x"]) / photo["width"] == pytest.approx(3 / 12, abs=0.02)
    assert (cross["y"] - photo["y"]) / photo["height"] == pytest.approx(7 / 12, abs=0.02)
    page.choose("layer", "head")
    page.point("a", 0.3, 0.6)
    assert page.page.is_hidden("#cross-photo")  # Neurons have no place in it.
    page.press("p")
    assert visible(page) == ["a", "b"]


def test_ways_are_compared_at_first(shown, two):
    page = shown(two)
    assert (page.text("name-a"), page.text("name-b")) == ("class 0", "class 0")
    assert (page.text("method-a"), page.text("method-b")) == ("first way", "second way")
    page.choose("method", "second way")
    assert page.rows() == [3, 4, 5]
    page.choose("method", "")
    page.press("b", "m")
    assert page.text("method-b") == "first way"
    page.press("ArrowRight")
    assert (page.hash["sample"], page.text("method-a"), page.text("name-a")) == ("1", "first way", "class 0")


def test_the_difference_is_a_minus_b(shown, two):
    page = shown(two, "#a=1&b=5&difference=1&clip=1000")
    assert visible(page) == ["photo", "a", "b", "d"]
    stored = Page(two)
    (a, _), (b, _) = (stored.shown(0, "input", k) for k in (1, 5))
    assert numbers(page.text("high-d"))[0] == pytest.approx(np.abs(a - b).max(), rel=1e-3)
    page.point("d", 0.5 / 12, 2.5 / 12)
    value, bound = numbers(page.text("value-d").split("=")[1])
    assert abs(value - (a - b)[2, 0]) <= bound
    assert numbers(page.text("total-d"))[0] == pytest.approx(
        numbers(page.text("total-a"))[0] - numbers(page.text("total-b"))[0], abs=0.02
    )
    page.press("d")
    assert visible(page) == ["photo", "a", "b"]


def test_thumbnails_choose_samples(shown, two):
    page = shown(two)
    assert page.page.eval_on_selector_all("#thumbs .name", "all => all.map(o => o.textContent)") == ["one.png", "two"]
    page.click("#sample-1")
    assert (page.hash["sample"], page.text("name-photo")) == ("1", "two")
    assert page.page.get_attribute("#sample-1", "aria-selected") == "true"


def test_overviews(shown, two):
    page = shown(two, "#method=first%20way")
    page.press("o")
    tiles = "tiles => tiles.map(tile => tile.querySelector('.name').textContent)"
    assert visible(page) == []
    assert page.page.eval_on_selector_all(".tile", tiles) == [f"class {k} · first way" for k in range(3)]
    assert page.page.eval_on_selector_all(".tile canvas", "all => all.map(c => c.width)") == [12] * 3
    page.choose("overview", "layers")
    assert page.page.eval_on_selector_all(".tile", tiles) == ["input", "head"]
    page.choose("overview", "samples")
    page.click(".tile >> nth=1")
    assert (page.hash["sample"], visible(page)) == ("1", ["photo", "a", "b"])
    page.press("o", "Escape")
    assert visible(page) == ["photo", "a", "b"]


def test_a_larger_view(shown, two):
    page = shown(two)
    before = page.page.locator("#frame-a").bounding_box()["width"]
    page.press("f")
    assert page.page.locator("#frame-a").bounding_box()["width"] > before
    assert page.page.is_hidden("#targets")
    page.press("Escape")
    assert page.page.is_visible("#targets")


def saved(page, kind, folder) -> Path:
    with page.page.expect_download() as download:
        page.page.click(f"#save-{kind}")
    path = folder / download.value.suggested_filename
    download.value.save_as(path)
    return path


def test_what_is_shown_is_saved(shown, two, tmp_path):
    page = shown(two, "#a=1&b=5&difference=1")
    path = saved(page, "csv", tmp_path)
    assert path.name == "one.png_class-1_input.csv"
    rows = list(csv.reader(io.StringIO(path.read_text(), newline="")))
    assert rows[0] == ["y", "x", "A: class 1 first way, score 1", "B: class 2 second way, score -1"]
    stored, _ = Page(two).shown(0, "input", 1)
    assert np.array([float(row[2]) for row in rows[1:]]).reshape(12, 12) == pytest.approx(stored, rel=1e-6)
    image = pytest.importorskip("PIL.Image").open(saved(page, "png", tmp_path))
    assert image.width == 2 * (4 * 364 + 24)
    drawn = ElementTree.parse(saved(page, "svg", tmp_path))
    texts = [item.text for item in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert {"class 1", "class 2", "A − B"} <= set(texts)
    assert (
        len(list(drawn.iter("{http://www.w3.org/2000/svg}image"))) == 1 + 3 * 3
    )  # Photograph; three of map, image, bar.


def test_hostile_names_are_saved_as_text(shown, tmp_path):
    for name in (HOSTILE[0], HOSTILE[6]):
        given = Sample(name, None, [name], [1.0], {"input": noise(1, 4, 4)})
        page = shown(write(tmp_path / "r.html", [given], title="T"))
        ElementTree.parse(saved(page, "svg", tmp_path))
        saved(page, "png", tmp_path)


def test_print_is_maps_and_ledger_on_white(shown, small):
    page = shown(small[0], color_scheme="dark")
    page.page.emulate_media(media="print", color_scheme="dark")
    assert page.page.is_hidden(".controls")
    assert page.page.is_hidden("#targets")
    assert page.page.is_visible("#map-a")
    assert page.page.is_visible("#ledger")
    assert page.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_on_a_phone_maps_come_first(shown, small):
    page = shown(small[0], viewport={"width": 390, "height": 844})
    top = {name: page.page.locator(name).bounding_box()["y"] for name in ("#frame-a", ".controls", "#targets")}
    assert top["#frame-a"] < top["#targets"] < top[".controls"]
    assert page.page.locator("#frame-a").bounding_box()["y"] < 400
