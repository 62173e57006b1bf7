"""Text: each token on the colour of its relevance, and nothing that the text itself could break."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

from fastlrp import viz

TOKENS = ["not", "a", "bad", "film"]
R = [1.0, 0.0, -0.5, 0.25]


class Reader(HTMLParser):
    """What a browser would show, and with which background."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags, self.open, self.spans, self.text = [], [], [], ""
        self.feed(page)
        assert not self.open, "every tag is closed"

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.open.append(tag)
        if tag == "span":
            given = dict(attributes)
            style = dict(part.split(":") for part in given["style"].split(";"))
            self.spans.append([style["background"], style["color"], given["title"], ""])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if self.open[-1] == "span":
            self.spans[-1][3] += data


def test_html_has_the_colours_of_a_heatmap():
    found = Reader(viz.text_html(TOKENS, torch.tensor(R))).spans
    colours = np.asarray(viz.heatmap([R], cmap="bwr"))[0]
    assert [s[3] for s in found] == TOKENS
    assert [s[0] for s in found] == ["#{:02x}{:02x}{:02x}".format(*c) for c in colours]
    assert [s[2] for s in found] == ["+1", "+0", "-0.5", "+0.25"]
    # Letters are dark on light colours and light on dark ones.
    assert [s[1] for s in found] == ["#ffffff", "#000000", "#000000", "#000000"]


def test_html_is_escaped_and_does_not_depend_on_the_encoding():
    tokens = ["<script>alert(1)</script>", "a&b", '"', "Ġüber", "日本", "\n", "", "</span></div>"]
    page = viz.text_html(tokens, torch.ones(8), separator="<")
    assert page.isascii()
    reader = Reader(page)
    assert set(reader.tags) == {"div", "span"}
    assert [s[3] for s in reader.spans] == [*tokens[:6], "\u200b", tokens[7]]
    assert "http" not in page


def test_legend_says_what_a_unit_is():
    legend = "relevance from -1 to 1, in units of the model's output score"
    assert legend in Reader(viz.text_html(TOKENS, R)).text
    assert legend not in Reader(viz.text_html(TOKENS, R, legend=False)).text
    assert "|relevance| from 0 to 1" in Reader(viz.text_html(TOKENS, R, normalize="absolute")).text


def test_terminal_has_the_same_colours():
    found = viz.text_terminal(TOKENS, R, color=True)
    pattern = re.compile(r"\x1b\[38;2;(\d+);(\d+);(\d+);48;2;(\d+);(\d+);(\d+)m(.*?)\x1b\[0m")
    parts = [m.groups() for m in pattern.finditer(found)]
    assert pattern.sub("", found) == " " * 3
    assert [p[6] for p in parts] == TOKENS
    np.testing.assert_array_equal(
        [[int(v) for v in p[3:6]] for p in parts], np.asarray(viz.heatmap([R], cmap="bwr"))[0]
    )
    assert parts[0][:3] == ("255", "255", "255")


def test_no_color_is_respected(monkeypatch):
    plain = "not[+1] a[+0] bad[-0.5] film[+0.25]"
    monkeypatch.setenv("NO_COLOR", "1")
    assert viz.text_terminal(TOKENS, R) == plain
    assert "\x1b" in viz.text_terminal(TOKENS, R, color=True)
    monkeypatch.setenv("NO_COLOR", "")  # The convention: not empty.
    assert "\x1b" in viz.text_terminal(TOKENS, R)
    monkeypatch.delenv("NO_COLOR")
    assert "\x1b" in viz.text_terminal(TOKENS, R)
    assert viz.text_terminal(TOKENS, R, color=False, separator="") == plain.replace(" ", "")


def test_text_gives_no_orders_to_the_terminal():
    found = viz.text_terminal(["\x1b[2J", "line\nend\r", "\x9b31m", "日本 ok"], [0, 0, 0, 0], color=False)
    assert found == "\\x1b[2J[+0] line\\nend\\r[+0] \\x9b31m[+0] 日本 ok[+0]"


def test_embeddings_are_summed_and_scales_are_shared():
    embedded = torch.tensor([[0.5, 0.5], [1.0, -1.0], [-0.25, -0.25], [0.0, 0.25]], dtype=torch.bfloat16)
    assert viz.text_html(TOKENS, embedded) == viz.text_html(TOKENS, R)
    weak = Reader(viz.text_html(TOKENS, R, level=2.0)).spans
    np.testing.assert_array_equal(
        weak[0][0], "#{:02x}{:02x}{:02x}".format(*viz.heatmap([[1.0]], level=2.0, cmap="bwr").getpixel((0, 0)))
    )


def test_no_tokens_and_no_relevance():
    assert Reader(viz.text_html([], [], legend=False)).text == ""
    assert viz.text_terminal([], torch.zeros(0)) == ""
    assert {s[0] for s in Reader(viz.text_html(TOKENS, torch.zeros(4))).spans} == {"#ffffff"}


@pytest.mark.parametrize("call", [viz.text_html, viz.text_terminal])
@pytest.mark.parametrize(
    ("tokens", "relevance", "error", "says"),
    [
        (TOKENS, R[:3], ValueError, "there are 4 tokens and 3 entries of relevance"),
        (TOKENS, torch.ones(2, 1, 4, 8), ValueError, r"take one sample and one target, relevance\[0, 0\]"),
        (TOKENS, torch.tensor([1, 2, float("nan"), 0]), ValueError, "1 NaN or infinite"),
        ("text", R, TypeError, "tokens must be a list of strings"),
        ([101, 2, 3, 4], R, TypeError, "convert_ids_to_tokens"),
    ],
)
def test_errors(call, tokens, relevance, error, says):
    with pytest.raises(error, match=says):
        call(tokens, relevance)
