"""A report in headless Chromium: real clicks and keys, and what the page shows then."""

from __future__ import annotations

import base64
import io
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import numpy as np
import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
READ_CANVAS = """id => {
    const canvas = document.getElementById(id);
    const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext('2d', { willReadFrequently: true });
    copy.drawImage(canvas, 0, 0);
    const found = copy.getImageData(0, 0, canvas.width, canvas.height);
    let text = '';
    for (const value of found.data) text += String.fromCharCode(value);
    return [canvas.height, canvas.width, btoa(text)];
}"""


@contextmanager
def launched() -> Iterator[Any]:
    """Chromium, or a skip that says what is missing."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(f"there is no Chromium on PATH ({', '.join(NAMES)})")
    with api.sync_playwright() as play:
        # The sandbox needs rights that containers do not give.
        chromium = play.chromium.launch(executable_path=program, args=["--no-sandbox"])
        try:
            yield chromium
        finally:
            chromium.close()


class Shown:
    """One open report. ``complaints``: errors and requests that should not be there."""

    def __init__(self, chromium: Any, path: Path, fragment: str = "", **options: Any) -> None:
        self.context = chromium.new_context(**{"viewport": {"width": 1400, "height": 900}, **options})
        self.context.set_offline(True)
        self.page, self.complaints = self.context.new_page(), []
        self.page.set_default_timeout(20_000)
        self.page.on("console", lambda m: self.complaints.append(f"console: {m.text}"))
        self.page.on("pageerror", lambda e: self.complaints.append(f"error: {e}"))
        self.page.on("request", self._request)
        self.address = path.as_uri()
        self.page.goto(self.address + fragment)
        self.page.wait_for_function("document.body.dataset.drawn")
        self.settle()

    def _request(self, request: Any) -> None:
        if request.url.split("#")[0] != self.address and not request.url.startswith("data:image/png"):
            self.complaints.append(f"request: {request.url[:80]}")

    def settle(self) -> None:
        """Wait until what was changed last is drawn and the address is written."""
        self.page.evaluate(
            """async () => {
                const wait = (ms) => new Promise((done) => setTimeout(done, ms));
                let before;
                do { before = document.body.dataset.drawn + location.hash; await wait(200); }
                while (before !== document.body.dataset.drawn + location.hash);
            }"""
        )

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)
        self.settle()

    def click(self, selector: str, **options: Any) -> None:
        self.page.click(selector, **options)
        self.settle()

    def choose(self, name: str, value: str) -> None:
        self.page.select_option(f"#{name}", value)
        self.settle()

    def slide(self, name: str, value: int) -> None:
        self.page.fill(f"#{name}", str(value))
        self.settle()

    def point(self, slot: str, x: float, y: float) -> str:
        """The text that appears with the pointer at these shares of the map's width and height."""
        self.page.locator(f"#frame-{slot}").scroll_into_view_if_needed()
        box = self.page.locator(f"#frame-{slot}").bounding_box()
        self.page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
        return self.text(f"value-{slot}")

    def text(self, name: str) -> str:
        return str(self.page.text_content(f"#{name}"))

    def target(self, slot: str) -> int:
        """The target whose map is drawn."""
        return int(self.page.get_attribute(f"#frame-{slot}", "data-target"))

    def rows(self) -> list[int]:
        """Targets of the rows that exist, from the top."""
        read = "rows => rows.map(row => [row.offsetTop, row.dataset.target])"
        found = self.page.eval_on_selector_all("#rows .row", read)
        return [int(target) for _, target in sorted(found)]

    def canvas(self, name: str) -> np.ndarray:
        """``(h, w, 4)`` uint8."""
        height, width, text = self.page.evaluate(READ_CANVAS, name)
        return np.frombuffer(base64.b64decode(text), np.uint8).reshape(height, width, 4)

    def screen(self) -> np.ndarray:
        """What is to be seen, ``(H, W, 3)`` uint8."""
        image = pytest.importorskip("PIL.Image")
        return np.asarray(image.open(io.BytesIO(self.page.screenshot())).convert("RGB"))

    @property
    def hash(self) -> dict[str, str]:
        return dict(parse_qsl(urlsplit(self.page.url).fragment, keep_blank_values=True))

    def close(self) -> None:
        self.context.close()


def numbers(text: str) -> list[float]:
    """The numbers in a text that the page wrote, with its own minus sign."""
    found = re.findall(r"[+-]?\d+(?:\.\d+)?(?:e-?\d+)?", text.replace("−", "-"))
    return [float(part) for part in found]
