"""The page of parts in a browser: pointing, choosing, the keyboard, windows and colours."""

from __future__ import annotations

import numpy as np
import pytest

from fastlrp.report import Parts, write_parts
from tests.report.browser import numbers
from tests.report.pages import HOSTILE, noise

pytestmark = pytest.mark.slow

pytest.importorskip("jinja2", reason="Jinja2 is not installed")
NAMES = ["École", "zebra", "gold fish", "ape"]


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    R = noise(4, 6)
    places = np.arange(6).reshape(2, 3).repeat(2, 0).repeat(2, 1)
    image = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    picture = Parts("a picture", NAMES, [4.0, 3, 2, 1], R, places=places, image=image)
    words = Parts("a text", NAMES, [4.0, 3, 2, 1], R, tokens=["The", " fox", "\n", "", "ran", "!"], at=4, left_out=7)
    return write_parts(folder / "p.html", [picture, words], title="T", model="a net"), R


def rows(page):
    read = "rows => rows.map(row => [row.querySelector('.name').textContent, row.querySelector('.score').textContent])"
    return page.page.eval_on_selector_all("#targets .row", read)


def at(page, column, row):
    box = page.page.locator("#frame").bounding_box()
    page.page.mouse.move(box["x"] + (column + 0.5) / 3 * box["width"], box["y"] + (row + 0.5) / 2 * box["height"])
    page.settle()


def test_pointing_at_a_patch_shows_its_classes(shown, pages):
    path, R = pages
    page = shown(path)
    assert [name for name, _ in rows(page)] == NAMES  # By score.
    assert page.text("part-name") == "All parts"
    at(page, 1, 1)
    order = np.argsort(-R[:, 4])
    assert [name for name, _ in rows(page)] == [NAMES[k] for k in order]
    assert numbers(rows(page)[0][1])[0] == pytest.approx(R[order[0], 4], rel=1e-3)
    assert page.text("part-name") == "part 4: x 2–3, y 2–3"
    page.choose("low", "low")
    assert [name for name, _ in rows(page)] == [NAMES[k] for k in order[::-1]]
    page.page.mouse.move(1, 1)
    page.settle()
    assert page.text("part-name") == "All parts"


def test_choosing_a_class_colours_its_parts(shown, pages):
    path, R = pages
    page = shown(path)
    page.slide("overlay", 100)
    page.click("#target-2")
    assert page.text("target-name") == "gold fish"
    assert numbers(page.text("target-text"))[:2] == [2, pytest.approx(R[2].sum(), rel=1e-3)]
    colours = page.canvas("map")[::2, ::2, :3].reshape(6, 3).astype(int)
    strongest = int(np.abs(R[2]).argmax())
    assert tuple(colours[strongest]) == ((103, 0, 31) if R[2, strongest] > 0 else (8, 48, 107))
    assert ((colours[:, 0] - colours[:, 2] > 0) == (R[2] > 0)).all()
    page.click("#average")
    above = R[2] - R.mean(0)
    assert numbers(page.text("high-end"))[0] == pytest.approx(np.abs(above).max(), rel=1e-3)
    again = shown(path, "#" + page.page.url.split("#")[1])
    assert (again.text("target-name"), again.page.is_checked("#average")) == ("gold fish", True)


def test_the_keyboard(shown, pages):
    path, _ = pages
    page = shown(path)
    page.page.focus("#frame")
    page.press("ArrowRight")
    assert page.text("part-name").startswith("part 0: x 0–1")
    page.press("ArrowRight", "ArrowDown")
    assert page.text("part-name").startswith("part 4:")
    assert page.hash["part"] == "4"
    page.press("Escape")
    assert page.text("part-name") == "All parts"
    page.page.focus("#targets")
    page.press("ArrowDown", "ArrowDown", "ArrowUp")
    assert page.text("target-name") == "zebra"
    page.press("/")
    page.page.keyboard.type("ecole")
    page.press("Enter")
    assert page.text("target-name") == "École"
    page.press("Escape")
    page.page.focus("#targets")
    page.press("?")
    assert page.page.is_visible("#help")
    page.press("Escape", "]")
    assert page.page.is_visible("#tokens")


def test_tokens(shown, pages):
    path, R = pages
    page = shown(path, "#sample=1")
    assert page.page.eval_on_selector_all(".token", "all => all.map(o => o.textContent)") == [
        "The",
        " fox",
        "⏎",
        "∅",
        "ran",
        "!",
    ]
    page.page.hover(".token >> nth=1")
    page.settle()
    assert [name for name, _ in rows(page)] == [NAMES[k] for k in np.argsort(-R[:, 1])]
    assert page.page.get_attribute(".token >> nth=5", "class") == "token later"
    assert "7 more of the model are not stored" in page.text("count")


@pytest.mark.parametrize(("width", "scheme"), [(1400, "dark"), (390, "light")])
def test_windows(shown, pages, width, scheme):
    page = shown(pages[0], viewport={"width": width, "height": 844}, color_scheme=scheme)
    assert page.page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.page.locator("#frame").bounding_box()["width"] > 200


def test_hostile_names_are_only_text(shown, tmp_path):
    count = len(HOSTILE)
    given = Parts(HOSTILE[0], HOSTILE, [0.0] * count, noise(count, count), tokens=HOSTILE)
    page = shown(write_parts(tmp_path / "p.html", [given], title=HOSTILE[0]))
    assert page.page.title() == HOSTILE[0]
    assert [name for name, _ in rows(page)] == HOSTILE
