"""The report in a browser: colours and scales, the address, hostile names, windows of all sizes, damaged files."""

from __future__ import annotations

import numpy as np
import pytest

from fastlrp.report import Sample, write
from tests.report.browser import Shown, numbers
from tests.report.pages import HOSTILE, Page, noise

pytestmark = pytest.mark.slow

pytest.importorskip("jinja2", reason="Jinja2 is not installed")
AGAINST, FOR = (8, 48, 107), (103, 0, 31)  # Ends of the blue and red colours.


# Colours


def ends(page: Shown, slot: str = "a") -> list[tuple[int, ...]]:
    pixels = page.canvas(f"bar-{slot}")[0, :, :3]
    return [tuple(map(int, pixels[at])) for at in (0, 128, -1)]


def test_colours_and_scales(shown, small):
    path, _ = small
    page = shown(path, "#clip=1000")
    stored = [Page(path).shown(0, "input", k)[0] for k in (0, 1)]
    largest = [np.abs(values).max() for values in stored]
    assert numbers(page.text("high-a")) == [pytest.approx(largest[0], rel=1e-3)]
    assert numbers(page.text("low-b")) == [pytest.approx(-largest[1], rel=1e-3)]
    pixels = page.canvas("map-a")[:, :, :3]
    at = np.unravel_index(np.abs(stored[0]).argmax(), stored[0].shape)
    assert tuple(pixels[at]) == (FOR if stored[0][at] > 0 else AGAINST)
    assert ends(page)[0] == AGAINST
    assert ends(page)[2] == FOR
    page.choose("colours", "cold-hot")
    assert page.canvas("map-a")[:, :, :3].tolist() != pixels.tolist()
    assert sum(ends(page)[1]) < 20
    page.choose("sign", "absolute")
    assert (page.text("low-a"), page.text("mid-a")) == ("0", "")
    assert sum(ends(page)[0]) < 20  # Black is zero, hot is strong.
    page.click("#shared")
    shared = [numbers(page.text(f"high-{slot}"))[0] for slot in "ab"]
    assert shared == [pytest.approx(max(largest), rel=1e-3)] * 2


def test_the_quantile_slider_moves_the_limit(shown, small):
    path, _ = small
    page = shown(path)
    sizes = np.sort(np.abs(Page(path).shown(0, "input", 0)[0]).ravel())
    sizes = sizes[sizes > 0]
    for clip in (800, 900, 1000):
        page.slide("clip", clip)
        wanted = sizes[int(np.ceil(clip / 1000 * len(sizes))) - 1]
        assert numbers(page.text("high-a"))[0] == pytest.approx(wanted, rel=1e-3)
        assert page.text("high-a").endswith("and more") == (clip < 1000)
        full = (page.canvas("map-a")[:, :, :3].reshape(-1, 3) == (*FOR,)).all(1).sum()
        assert full == (Page(path).shown(0, "input", 0)[0] >= wanted * 0.9999).sum()


def test_the_overlay_slider_shows_the_image(shown, small):
    path, one = small
    page = shown(path)
    assert (page.canvas("map-a")[:, :, 3] == 255).all()
    heat = page.screen()
    page.slide("overlay", 50)
    alpha, values = page.canvas("map-a")[:, :, 3], np.abs(Page(path).shown(0, "input", 0)[0])
    order = np.argsort(values.ravel())
    assert (np.diff(alpha.ravel()[order].astype(int)) >= 0).all()  # The stronger, the more opaque.
    assert alpha.min() < 60 < 255 == alpha.max()
    page.slide("overlay", 0)
    assert not page.canvas("map-a")[:, :, 3].any()
    image = page.screen()
    assert (heat != image).any()
    box = page.page.locator("#frame-a").bounding_box()
    for x, y in ((0, 0), (6, 2), (11, 11)):
        seen = image[round(box["y"] + (y + 0.5) / 12 * box["height"]), round(box["x"] + (x + 0.5) / 12 * box["width"])]
        assert np.abs(seen.astype(int) - one.image[y, x]).max() <= 2


# The address


def test_the_address_holds_the_view(shown, small):
    path, _ = small
    page = shown(path)
    page.choose("layer", "conv")
    page.choose("colours", "green-purple")
    page.choose("sign", "absolute")
    page.slide("clip", 950)
    page.slide("overlay", 70)
    page.click("#shared")
    page.press("b")
    page.click("#target-5")
    page.page.fill("#search", "a & b=c")
    page.settle()
    again = shown(path, "#" + page.page.url.split("#")[1])
    assert again.hash == page.hash
    for name in ("layer", "colours", "sign", "clip", "overlay", "search"):
        assert again.page.input_value(f"#{name}") == page.page.input_value(f"#{name}")
    assert again.page.is_checked("#shared")
    assert again.page.is_checked("[name=slot][value=b]")
    assert np.array_equal(again.canvas("map-b"), page.canvas("map-b"))
    assert again.text("name-b") == "ape"


def test_an_address_typed_into_the_open_page(shown, small):
    page = shown(small[0])
    page.page.evaluate("location.hash = '#sample=1&a=3&b=4&compare=1'")
    page.settle()
    assert (page.target("a"), page.target("b"), page.page.input_value("#sample")) == (3, 4, "1")


@pytest.mark.parametrize(
    "fragment",
    ["#sample=99&a=-1&b=1e3", "#layer=nowhere&clip=5000&overlay=abc", "#a=%00&colours=constructor", "#%E0%A4%A"],
)
def test_an_address_that_makes_no_sense(shown, small, fragment):
    page = shown(small[0], fragment)
    assert (page.target("a"), page.target("b"), page.page.input_value("#layer")) == (0, 1, "input")
    assert page.page.input_value("#clip") == "995"


# Hostile names, other windows, damaged files


def test_hostile_names_are_only_text(shown, tmp_path):
    count = len(HOSTILE)
    rows = [{"layer": name, "rule": name, "arrived": 1.0} for name in HOSTILE]
    relevance = {"input": noise(count, 4, 4), **{f"{i} {name}": noise(count, 4, 4) for i, name in enumerate(HOSTILE)}}
    given = [Sample(name, None, HOSTILE, [float(-k) for k in range(count)], relevance, rows) for name in HOSTILE]
    page = shown(write(tmp_path / "r.html", given, title=HOSTILE[0], composite=HOSTILE[1], unit=HOSTILE[3]))
    assert page.page.title() == HOSTILE[0]
    for k, name in enumerate(HOSTILE):
        page.page.evaluate("k => { location.hash = `#a=${k}&b=${k}`; }", k)
        page.settle()
        assert page.text("name-a") == name
        assert page.page.text_content(f"#target-{k} .name") == name
    assert page.page.eval_on_selector_all("#sample option", "all => all.map(o => o.textContent)") == HOSTILE
    assert page.page.eval_on_selector_all("#ledger-rows th", "all => all.map(o => o.textContent)")[:-1] == HOSTILE[:-1]
    page.choose("layer", f"0 {HOSTILE[0]}")
    assert page.page.get_attribute("#frame-a", "data-layer") == f"0 {HOSTILE[0]}"
    assert page.page.eval_on_selector_all("script:not([type])", "all => all.length") == 1


@pytest.mark.parametrize("width", [1400, 1000, 420, 320])
def test_nothing_is_wider_than_the_window(shown, small, width):
    page = shown(small[0], viewport={"width": width, "height": 800})
    assert page.page.evaluate("document.documentElement.scrollWidth") <= width
    box = page.page.locator("#frame-a").bounding_box()
    assert box["width"] > 130
    assert box["width"] == pytest.approx(box["height"], abs=1)


def luminance(colour: str) -> float:
    parts = [float(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast(shown, small, scheme):
    page = shown(small[0], color_scheme=scheme)
    colours = page.page.evaluate(
        """() => [...document.querySelectorAll('h1, h2, p, span, dt, dd, td, th, output, kbd, button, small, label')]
            .filter((item) => item.checkVisibility() && item.textContent.trim() && !item.closest(':disabled'))
            .map((item) => {
                let behind = item;
                const clear = 'rgba(0, 0, 0, 0)';
                while (behind && getComputedStyle(behind).backgroundColor === clear) behind = behind.parentElement;
                return [item.tagName + '.' + item.className, getComputedStyle(item).color,
                    getComputedStyle(behind ?? document.body).backgroundColor];
            })"""
    )
    assert len(colours) > 60
    for what, *pair in colours:
        dark, light = sorted(map(luminance, pair))
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (what, pair)  # WCAG 2.1 AA, small text.
    background = luminance(page.page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert (background < 0.1) == (scheme == "dark")


def test_a_damaged_file_says_so(chromium, small, tmp_path):
    text = small[0].read_text()
    start = text.index('id="maps-0-0">') + 60
    broken = tmp_path / "broken.html"
    broken.write_text(text[:start] + "AAAA" + text[start + 4 :])
    page = Shown(chromium, broken, "#sample=1")  # This one is whole.
    page.choose("sample", "0")
    assert page.page.is_visible("#problem")
    assert page.text("problem").startswith("This view could not be drawn")
    page.choose("sample", "1")
    assert page.page.is_hidden("#problem")
    page.close()
    cut = tmp_path / "cut.html"
    cut.write_text(text[: text.index('id="maps-0-0">')])
    context = chromium.new_context()
    tab = context.new_page()
    tab.goto(cut.as_uri())
    assert tab.text_content("#problem") == "Loading. If this line stays, the file is incomplete."
    context.close()
