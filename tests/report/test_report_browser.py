"""The report in a browser: what clicks and keys change, and that what is shown is what was stored."""

from __future__ import annotations

import numpy as np
import pytest

from fastlrp.report import Sample, write
from tests.report.browser import numbers
from tests.report.pages import Page, noise, sample

pytestmark = pytest.mark.slow

pytest.importorskip("jinja2", reason="Jinja2 is not installed")


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A thousand targets, scores in the order of a permutation."""
    order = np.random.default_rng(5).permutation(1000)
    names = [f"class {k} {'even' if k % 2 == 0 else 'odd'}" for k in range(1000)]
    relevance = {"input": noise(1000, 16, 16), "layer.1": noise(1000, 4, 4)}
    given = Sample("s", None, names, [float(v) - 300 for v in order], relevance)
    return write(tmp_path_factory.mktemp("many") / "r.html", [given], title="T"), given


# What is shown at first


def test_the_best_two_are_compared(shown, small):
    path, one = small
    page = shown(path)
    assert page.page.title() == "A title"
    assert page.text("about") == "epsilon_plus · 3 samples · 6 targets · relevance in units of the logit"
    assert (page.text("name-a"), page.text("name-b")) == ("gold fish", "École")
    assert (page.text("score-a"), page.text("rank-b")) == ("+6", "2 of 6")
    assert numbers(page.text("total-a")) == [pytest.approx(float(one.relevance["input"][0].sum()), rel=1e-3)]
    assert page.page.is_hidden("#problem")
    assert page.page.is_hidden("#reduced")
    assert "within 1/254" in page.text("storage")
    assert page.rows() == [0, 1, 2, 3, 4, 5]


def expected_greys(q: np.ndarray, top: int) -> np.ndarray:
    """Shades of the map 'grey' under a symmetric scale, for integers up to ``top``."""
    shade = np.floor((q / top + 1) / 2 * 511 + 0.5)
    return np.rint(255 * shade / 511).astype(np.uint8)


def test_pixels_are_the_stored_numbers(shown, tmp_path):
    rough = np.where(np.indices((9, 11)).sum(0) % 2, 1.0, -1.0)
    hills = np.add.outer(np.linspace(-3, 1, 40), np.linspace(0, 2, 30)) ** 3  # Predicted.
    for name, R in (("rough", rough), ("hills", hills), ("noise", noise(31, 17)), ("one", np.ones((1, 1)) * -2)):
        path = tmp_path / f"{name}.html"
        write(path, [Sample("s", None, ["t"], [1.0], {"input": np.asarray(R, np.float64)[None]})], title="T")
        values, index = Page(path).shown(0, "input", 0)
        assert index["kinds"] == {"hills": "m", "noise": "p"}.get(name, index["kinds"])
        if R.shape[0] == 1:
            continue
        pixels = shown(path, "#colours=grey&clip=1000").canvas("map-a")
        wanted = expected_greys(np.rint(values / index["scales"][0]), 127)
        assert np.array_equal(pixels[:, :, 0], wanted)
        assert np.array_equal(pixels[:, :, 2], wanted)
        assert (pixels[:, :, 3] == 255).all()


def test_the_value_under_the_pointer(shown, small):
    path, one = small
    page = shown(path)
    stored = [Page(path).shown(0, "input", k)[0] for k in (0, 1)]
    assert page.text("value-a") == "Point at the map to read a value."
    for x, y in ((0, 0), (11, 3), (5, 11)):
        text = page.point("a", (x + 0.5) / 12, (y + 0.5) / 12)
        assert text.startswith(f"x {x}, y {y}: R = ")
        value, bound = numbers(text.split("=")[1])
        assert value == pytest.approx(stored[0][y, x], rel=1e-3)
        assert abs(value - one.relevance["input"][0, y, x]) <= bound + 1e-3 * abs(value)
        # The other map is read at the same place.
        assert numbers(page.text("value-b").split("=")[1])[0] == pytest.approx(stored[1][y, x], rel=1e-3)
        assert page.page.is_visible("#cross-b")
    before = page.text("value-a")
    page.page.mouse.click(*(page.page.locator("#frame-a").bounding_box()[side] + 5 for side in "xy"))
    pinned = page.text("value-a")
    assert pinned != before
    page.page.mouse.move(3, 3)
    assert page.text("value-a") == pinned
    page.press("Escape")
    assert page.text("value-a") == "Point at the map to read a value."


def test_a_coarse_map_says_which_positions_a_cell_joins(shown, tmp_path):
    R = noise(1, 10, 13)
    path = write(tmp_path / "r.html", [Sample("s", None, ["t"], [1.0], {"input": R})], title="T", resolution=4)
    page = shown(path)
    assert page.canvas("map-a").shape == (3, 4, 4)
    frame, drawn = (page.page.locator(f"#{name}-a").bounding_box() for name in ("frame", "map"))
    assert drawn["width"] / frame["width"] == pytest.approx(4 * 4 / 13, rel=1e-3)
    assert drawn["height"] / frame["height"] == pytest.approx(3 * 4 / 10, rel=1e-3)
    # The last column of cells has one position, and is drawn as wide as that.
    text = page.point("a", 12.5 / 13, 9.5 / 10)
    assert text.startswith("x 12, y 8–9: R = ")
    assert numbers(text.split("=")[1])[0] == pytest.approx(float(R[0, 8:, 12:].sum()), abs=0.05)
    assert page.point("a", 11.5 / 13, 0.5 / 10).startswith("x 8–11, y 0–3: R = ")
    assert "at most 4 cells wide and high, not 13" in page.text("storage")


def test_what_had_to_be_coarser_is_said_above_all(shown, tmp_path):
    given = sample(count=40, relevance={"input": noise(40, 64, 64)}, image=None, ledger=None)
    limit = write(tmp_path / "r.html", [given], title="T", resolution=16).stat().st_size + 10_000
    page = shown(write(tmp_path / "r.html", [given], title="T", max_bytes=limit))
    assert page.page.is_visible("#reduced")
    assert "Coarser than the 8 bits and 64 cells asked for" in page.text("reduced")


# Choosing


def test_a_target_by_click_in_the_list(shown, small):
    page = shown(small[0])
    before = page.canvas("map-a")
    page.click("#target-4")
    assert (page.text("name-a"), page.target("a"), page.hash["a"]) == ("fish 10", 4, "4")
    assert (page.canvas("map-a") != before).any()
    assert page.page.get_attribute("#target-4", "aria-selected") == "true"
    page.click("#target-5", modifiers=["Shift"])  # The other one.
    assert (page.text("name-a"), page.text("name-b")) == ("fish 10", "ape")
    page.click(".slots label:has([value=b])")
    page.click("#target-0")
    assert (page.text("name-a"), page.text("name-b")) == ("fish 10", "gold fish")
    assert page.page.text_content("#target-4 .badge") == "A"
    assert page.page.text_content("#target-0 .badge") == "B"


def test_search_and_sort(shown, small):
    page = shown(small[0])
    page.press("/")
    page.page.keyboard.type("FISH")
    page.settle()
    assert (page.rows(), page.text("count")) == ([0, 3, 4], "3 of 6 targets")
    page.choose("sort", "name")
    assert page.rows() == [3, 4, 0]  # fish 2 before fish 10
    page.choose("sort", "low")
    assert page.rows() == [4, 3, 0]
    page.page.fill("#search", "ecole")
    page.page.focus("#search")
    page.press("Enter")
    assert (page.rows(), page.text("name-a")) == ([1], "École")
    page.page.fill("#search", "2")
    page.settle()
    assert page.rows() == [3, 2]  # By its name, and by its index.
    page.page.fill("#search", "#2")
    page.settle()
    assert page.rows() == [2]
    page.press("Escape")
    assert (page.page.input_value("#search"), page.rows()) == ("", [5, 4, 3, 2, 1, 0])
    page.page.fill("#search", "nothing like it")
    page.settle()
    assert (page.rows(), page.text("count")) == ([], "0 of 6 targets")


def test_the_keyboard(shown, small):
    page = shown(small[0])
    page.press("ArrowDown")
    assert page.target("a") == 1
    page.press("ArrowDown", "ArrowDown", "ArrowUp")
    assert page.target("a") == 2
    page.press("s")
    assert (page.target("a"), page.target("b")) == (1, 2)
    page.press("b", "ArrowDown")
    assert (page.target("a"), page.target("b")) == (1, 3)
    page.press("a", "]")
    assert (page.page.input_value("#layer"), page.canvas("map-a").shape[:2]) == ("conv", (3, 3))
    page.press("]", "]", "[")
    assert page.page.input_value("#layer") == "conv"
    page.press("c")
    assert page.page.is_hidden("#panel-b")
    page.press("c", "ArrowRight")
    assert page.hash["sample"] == "1"
    page.press("?")
    assert page.page.is_visible("#help")
    page.press("ArrowDown", "s")  # Not while help is open.
    assert page.target("a") == 1
    page.press("Escape")
    assert page.page.is_hidden("#help")


def test_every_control_is_reached_by_tab_and_shows_it(shown, small):
    page = shown(small[0])
    wanted = {"help-open", "sample", "search", "sort", "targets", "layer", "colours", "sign", "clip", "overlay", "swap"}
    wanted |= {"compare", "shared", "frame-a", "frame-b", "ledger-scroll"}
    wanted |= {"large", "thumbs", "photo", "difference", "overview", "save-png", "save-csv", "frame-photo"}
    reached = {}
    for _ in range(45):
        page.page.keyboard.press("Tab")
        name, outline = page.page.evaluate(
            """() => {
                const item = document.activeElement;
                return [item.id || item.name, getComputedStyle(item).outline];
            }"""
        )
        reached.setdefault(name, outline)
    assert wanted | {"slot"} <= set(reached)
    assert not [name for name in wanted if "none" in reached[name] or " 0px" in reached[name]]
    nameless = page.page.evaluate(
        """() => [...document.querySelectorAll('button, input, select, [role=listbox], [role=region]')].filter((item) =>
            !(item.labels?.length || item.ariaLabel || item.getAttribute('aria-labelledby') || item.textContent.trim()))
            .map((item) => item.outerHTML)"""
    )
    assert nameless == []


def test_values_are_read_with_the_keyboard_too(shown, small):
    page = shown(small[0])
    page.page.focus("#frame-b")
    page.press("ArrowRight")
    assert page.text("value-b").startswith("x 6, y 6: R = ")
    page.press("ArrowRight", "ArrowUp", "ArrowUp")
    assert page.text("value-b").startswith("x 7, y 4: R = ")
    assert page.target("b") == 1  # The arrows moved the place, not the target.
    page.press("Escape")
    assert page.text("value-b") == "Point at the map to read a value."


# Layers, samples, ledger


def test_layers_of_positions_and_of_neurons(shown, small):
    path, _ = small
    page = shown(path)
    page.choose("layer", "head")
    stored = Page(path).shown(0, "head", 0)[0][0]
    colours = page.canvas("map-a")
    assert (np.ptp(colours.reshape(-1, 4), axis=0) > 0).all()
    for n in (0, 13, 19):
        text = page.point("a", (n + 0.5) / 20, 0.5)
        assert text.startswith(f"neuron {n}: R = ")
        assert numbers(text.split("=")[1])[0] == pytest.approx(stored[n], rel=1e-3)
    # Bars point up for relevance above zero and down below.
    strong = int(stored.argmax()), int(stored.argmin())
    height, width = colours.shape[:2]
    middle = [int((n + 0.5) / 20 * width) for n in strong]
    above, below = colours[height // 2 - 4, :, 3], colours[height // 2 + 4, :, 3]
    assert above[middle[0]] > 0 == below[middle[0]]
    assert below[middle[1]] > 0 == above[middle[1]]
    assert page.page.is_disabled("#overlay")
    assert page.page.is_hidden("#image-a")


def test_another_sample_keeps_targets_of_the_same_list(shown, small):
    page = shown(small[0])
    page.press("ArrowDown", "ArrowDown")
    page.choose("sample", "1")
    assert (page.target("a"), page.text("ledger-text")) == (2, "This report was written without a ledger.")
    assert page.page.is_hidden("#ledger-scroll")
    page.choose("sample", "2")
    assert (page.text("name-a"), page.page.is_hidden("#panel-b")) == ("the only one", True)
    assert page.page.is_disabled("#compare")
    assert page.text("overlay-text") == "no image"
    page.choose("sample", "0")
    assert page.page.is_visible("#image-a")


def test_the_ledger_of_the_chosen_target(shown, small):
    page = shown(small[0])
    read = "rows => rows.map(row => [...row.cells].map(cell => cell.textContent))"
    cells = page.page.eval_on_selector_all("#ledger-rows tr", read)
    assert cells[0] == ["head", "linear", "Epsilon(1e-06)", "+2.5", "+2.25", "+0.25", "0", "0", "1e−7"]
    assert cells[1] == ["conv", "conv2d", "ZPlus()", "+2.25", "+2", "–", "–", "–", "–"]
    assert page.text("ledger-text").startswith("A: gold fish. From the output down")
    page.press("ArrowDown")
    assert page.text("ledger-text").startswith("All targets together. From the output down")
    assert page.page.text_content("#ledger-rows td:nth-child(4)") == "+1"


def test_targets_without_a_ledger_say_so(shown, tmp_path):
    given = sample(ledger=[{"layer": "x", "target": 0, "arrived": 1.0, "sent": 1.0}])
    page = shown(write(tmp_path / "r.html", [given], title="T"), "#a=3")
    assert page.text("ledger-text").startswith("There is no ledger for A: class 3. It was made for 1 of 6 targets")
    assert page.page.is_hidden("#ledger-scroll")


# Many targets


def test_a_map_that_comes_late_is_not_drawn_over_a_newer_one(shown, many):
    page = shown(many[0], "#sort=index&a=3&compare=0")
    page.page.evaluate(
        """() => {
            const real = Response.prototype.arrayBuffer;
            let first = true;
            Response.prototype.arrayBuffer = async function () {
                const late = first;
                first = false;
                const found = await real.call(this);
                if (late) await new Promise((done) => setTimeout(done, 700));
                return found;
            };
        }"""
    )
    page.page.keyboard.press("ArrowDown")
    page.press("ArrowDown")
    page.page.wait_for_timeout(1000)
    assert (page.target("a"), page.text("name-a")) == (5, "class 5 odd")


def test_a_thousand_targets(shown, many):
    path, given = many
    page = shown(path)
    order = np.argsort(-np.array(given.scores))
    rows = page.rows()
    assert rows == list(order[: len(rows)])
    assert len(rows) < 60  # Only those in sight exist.
    page.page.focus("#targets")
    page.press("End")
    assert page.target("a") == order[-1]
    assert page.page.get_attribute("#targets", "aria-activedescendant") == f"target-{order[-1]}"
    assert page.rows()[-1] == order[-1]
    page.press("Home", "PageDown")
    assert page.target("a") in order[5:40]
    page.page.fill("#search", "odd")
    page.settle()
    assert page.text("count") == "500 of 1000 targets"
    page.page.fill("#search", "777")
    page.page.focus("#search")
    page.press("Enter")
    assert page.target("a") == 777
    # A key held down: fifty targets, and the last of them is what is drawn.
    page.page.fill("#search", "")
    page.choose("sort", "index")
    page.page.focus("#targets")
    page.press("Home", *["ArrowDown"] * 50)
    assert (page.target("a"), page.text("name-a")) == (50, "class 50 even")
