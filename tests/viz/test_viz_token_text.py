"""Token relevance of several targets: pages, terminals, files; subwords, bytes, right-to-left text, bad input."""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

from fastlrp import viz
from fastlrp.viz import text_page
from fastlrp.viz.pieces import _ALPHABET, folded, joined, pieces
from fastlrp.viz.text_colors import NEGATIVE, POSITIVE

CHARACTER = {byte: character for character, byte in _ALPHABET.items()}
TOKENS = ["[CLS]", "un", "##believ", "##able", "film", "!", "[SEP]", "[PAD]", "[PAD]", "[PAD]"]
R = [[0.5, 0.1, 0.2, -0.1, 0.4, 0.0, -2.0, 0.0, 0.0, 0.0], [0.0, -0.8, 0.0, 0.0, 0.1, 0.1, 0.0, 0.0, 0.0, 0.0]]


def in_bytes(text: str) -> str:
    return "".join(CHARACTER[byte] for byte in text.encode())


def texts(found):
    return [piece.text for piece in found]


class Reader(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.open, self.tags, self.spans, self.text = [], set(), [], ""
        self.feed(page)
        assert not [tag for tag in self.open if tag != "meta"]

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.open.append(tag)
        given = dict(attributes)
        self.inside = "title" in given
        if tag == "span" and self.inside:
            self.spans.append([given.get("class", ""), given.get("style", ""), given["title"], ""])

    def handle_endtag(self, tag):
        while self.open.pop() != tag:
            pass

    def handle_data(self, data):
        last = self.open[-1] if self.open else ""
        if last != "style":
            self.text += data
        if last == "span" and self.inside:
            self.spans[-1][3] += data


def test_marks_of_subwords_are_undone():
    assert texts(pieces(TOKENS[:6])) == ["[CLS]", "un", "believ", "able", "film", "!"]
    assert [piece.spaced for piece in pieces(TOKENS[:6])] == [False, True, False, False, True, False]
    assert texts(joined(pieces(TOKENS[:6]))) == ["[CLS]", "unbelievable", "film", "!"]
    assert texts(joined(pieces(["▁Hel", "lo", "▁world", "</s>"]))) == ["Hello", "world", "</s>"]
    assert texts(joined(pieces(["low", "er</w>", "x</w>"]))) == ["lower", "x"]
    assert texts(pieces(["a", "b"])) == ["a", "b"]
    assert [piece.spaced for piece in pieces(["a", "b"], separator="")] == [False, False]
    assert texts(pieces([in_bytes("über")], "bytes")) == ["über"]


def test_characters_that_are_split_over_tokens_are_whole():
    smile = in_bytes("😀")
    found = pieces(["<|endoftext|>", "Hi", in_bytes(" ") + smile[:2], smile[2:], in_bytes("\n"), "x", in_bytes("   ")])
    assert texts(found) == ["<|endoftext|>", "Hi", "😀", "↵\n", "x", "␣␣"]
    assert [piece.tokens for piece in found] == [(0, 1), (1, 2), (2, 4), (4, 5), (5, 6), (6, 7)]
    fallback = ["▁a", *[f"<0x{byte:02X}>" for byte in "日".encode()], "<0x0A>"]
    assert texts(pieces(fallback)) == ["a", "日", "↵\n"]
    cut = pieces(["Ġa", smile[:2]])  # The text ends inside of a character.
    assert texts(cut) == ["a", "\\xf0\\x9f"]


def test_padding_is_one_piece():
    assert texts(folded(pieces(TOKENS)))[-2:] == ["[SEP]", "[PAD] ×3"]


def test_page_has_colours_on_one_scale_that_special_tokens_do_not_set():
    view = viz.text(TOKENS, R, targets=["good", "bad"], scores=[0.3, -0.5])
    spans = Reader(view.html()).spans
    assert len(spans) == 16
    assert [s[3] for s in spans[:8]] == ["[CLS]", "un", "believ", "able", "film", "!", "[SEP]", "[PAD] ×3"]
    shade = "background:rgba({},{},{},{:.3g})"
    assert spans[4][1] == shade.format(*POSITIVE, 0.4 / 0.8)
    assert spans[3][1] == shade.format(*NEGATIVE, 0.1 / 0.8)
    assert spans[6][1] == shade.format(*NEGATIVE, 1)  # Beyond the scale, like its end.
    assert spans[9][1] == shade.format(*NEGATIVE, 1)
    assert (spans[5][1], spans[5][0], spans[0][0], spans[2][0]) == ("", "", "special", "part")
    assert spans[4][2].startswith("+0.4\ntoken 4: film")
    text = Reader(view.html()).text
    assert "score 0.3" in text
    assert "sum of relevance -0.9 (-1.5 of it special tokens)" in text  # 0.5 + 0.1 + 0.2 - 0.1 + 0.4 - 2
    assert "−0.8" in text
    assert "speaks for the target" in text
    each = viz.text(TOKENS, R, scale="each")
    assert Reader(each.html()).spans[4][1] == shade.format(*POSITIVE, 1)
    assert "colours up to 0.4" in each.html()


def test_words_have_the_sums_of_their_pieces():
    view = viz.text(TOKENS, R, words=True)
    assert view.samples[0].of_pieces(0)[:3] == pytest.approx([0.5, 0.2, 0.4])
    assert view.level_of(view.samples[0], 0) == pytest.approx(0.8)


def test_contrast():
    view = viz.text(TOKENS, R, targets=["good", "bad"], scores=[0.3, -0.5]).contrast("good", "bad")
    assert view.samples[0].targets == ("good − bad",)
    assert view.samples[0].scores == pytest.approx((0.8,))
    np.testing.assert_allclose(view.samples[0].values, np.subtract(*R)[None])
    with pytest.raises(KeyError, match="there is no target 'ugly': there are 'good', 'bad'"):
        viz.text(TOKENS, R, targets=["good", "bad"]).contrast("ugly", 0)
    with pytest.raises(IndexError, match="there is no target 2: there are 2"):
        viz.text(TOKENS, R).contrast(0, 2)


def test_batches_masks_and_shapes():
    batch = torch.tensor([R, R], dtype=torch.bfloat16)
    view = viz.text([TOKENS, TOKENS[:7]], batch, scores=torch.ones(2), names=["one", "two"])
    assert [len(sample.pieces) for sample in view.samples] == [8, 7]
    masked = viz.text(["a", "b", "c"], [1.0, 2.0, 0.0], mask=[1, 1, 0])
    assert [piece.special for piece in masked.samples[0].pieces] == [False, False, True]
    named = viz.text(["a", "b"], [1.0, 2.0], special={"b"})
    assert named.level_of(named.samples[0], 0) == 1
    assert viz.text(["a"], [0.0]).html()
    assert viz.text([], np.zeros((1, 0))).terminal(False, 80)


def test_nothing_in_a_text_is_markup_or_an_order():
    tokens = ["<script>alert(1)</script>", '" onclick="x', "\x1b[2J", "\u202egood", "a\u0300", "\ud800", "</span>", ""]
    view = viz.text(tokens, [list(range(8))], targets=["<b>\x1b[0m"], names=["<i>\n"])
    for page in (view.html(), text_page.page(view, "<title>")):
        assert page.isascii()
        reader = Reader(page)
        assert not reader.tags & {"script", "b>", "i"}
        shown = "".join(span[3] for span in reader.spans)
        assert "\x1b" not in reader.text
        assert "\u202e" not in page
        assert "&#8238;" not in page
        assert "<script>alert(1)</script>" in shown
        assert "\\x1b[2J\\u202egood" in shown
    for color in (False, "truecolor", "256"):
        assert not re.sub(r"\x1b\[[\d;]*m", "", view.terminal(color)).count("\x1b")


def test_terminal_with_and_without_colours(monkeypatch):
    view = viz.text(["a", "b", "c", "d"], [1.0, -0.5, 0.2, 0.0], scores=[0.75])
    assert view.terminal(False, 80).splitlines()[:2] == [
        "score 0.75   sum of relevance +0.7",
        "  a[+++] b[--] c[+] d",
    ]
    assert str(view) == view.terminal(False)
    colored = view.terminal("truecolor", 80)
    assert "\x1b[97;48;2;226;40;40ma\x1b[0m" in colored
    assert " d\n" in colored
    assert "\x1b[97;48;5;" in view.terminal("256", 80)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLORTERM", "truecolor")
    assert view.terminal(width=80) == colored
    monkeypatch.delenv("COLORTERM")
    assert view.terminal(width=80) == view.terminal("256", 80)
    monkeypatch.setenv("NO_COLOR", "1")
    assert view.terminal(width=80) == view.terminal(False, 80)
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False, raising=False)
    assert view.terminal(width=80) == view.terminal(False, 80)
    with pytest.raises(ValueError, match="unknown color 'red'"):
        view.terminal("red")


def test_terminal_wraps_by_columns():
    tokens = ["日本語"] * 20 + ["x" * 50, "y"]
    lines = viz.text(tokens, np.zeros(22)).terminal(False, 40).splitlines()
    assert max(map(len, lines[1:4])) <= 2 + 5 * 4
    assert "  " + "x" * 50 in lines


def test_files(tmp_path):
    view = viz.text([TOKENS, TOKENS], [R, R], targets=["good", "bad"])
    assert view.save(tmp_path / "a.html").read_text().startswith("<!DOCTYPE html>")
    written = view.save(tmp_path / "a.txt").read_text()  # Shares of 0.8: 1/8, 1/4, -1/8, 1/2.
    assert "[CLS][++] un[+]believ[+]able[-] film[++]! [SEP][---] [PAD] ×3\n" in written
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        view.save(tmp_path / "no" / "a.html")
    pytest.importorskip("matplotlib")
    assert view.save(tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert view.save(tmp_path / "a.svg").stat().st_size > 1000
    with pytest.raises(ValueError, match=r"use .png"):
        view.save(tmp_path / "a.docx")
    assert view._repr_html_() == view.html()


@pytest.mark.parametrize(
    ("arguments", "options", "error", "says"),
    [
        ((["a"], [1.0, 2.0]), {}, ValueError, "there are 1 tokens and 2 entries of relevance"),
        ((["a", "b"], np.zeros((2, 1, 2))), {}, ValueError, "tokens of 1 text, and relevance"),
        ((["a", "b"], np.zeros((1, 1, 2, 8))), {}, ValueError, r"take the sum over D, relevance.sum\(-1\)"),
        (([["a", "b"]], np.zeros((1, 2))), {}, ValueError, r"must be \(B, K, S\), because tokens are lists"),
        ((["a"], [float("nan")]), {}, ValueError, "1 NaN or infinite"),
        (("text", [1.0]), {}, TypeError, "tokens must be a list of strings"),
        (([1, 2], [1.0, 2.0]), {}, TypeError, "convert_ids_to_tokens"),
        (([["a"], "b"], [1.0, 2.0]), {}, TypeError, "tokens must be a list of strings"),
        ((["a"], np.zeros((0, 1))), {}, ValueError, "has no targets"),
        ((["a"], [1.0]), {"targets": ["x", "y"]}, ValueError, "targets must be 1 names"),
        ((["a"], [1.0]), {"targets": "x"}, TypeError, "targets must be a list of 1 names"),
        ((["a"], [1.0]), {"scores": [1.0, 2.0]}, ValueError, r"scores must be \(1,\) or \(1, 1\), got \(2,\)"),
        ((["a"], [1.0]), {"scores": [float("inf")]}, ValueError, "scores has 1 NaN"),
        ((["a"], [1.0]), {"mask": [1, 0]}, ValueError, r"mask must be \(1,\) or \(1, 1\)"),
        ((["a"], [1.0]), {"names": "x"}, ValueError, "names must be a list"),
        ((["a"], [1.0]), {"scale": "all"}, ValueError, "unknown scale 'all'"),
        ((["a"], [1.0]), {"marks": "bpe"}, ValueError, "unknown marks 'bpe'"),
        ((["a"], [1.0]), {"level": -1}, ValueError, "level must be a finite number"),
    ],
)
def test_errors(arguments, options, error, says):
    with pytest.raises(error, match=says):
        viz.text(*arguments, **options)


def layers(tokens=4):
    rng = np.random.default_rng(0)
    found = {name: rng.normal(size=(2, 3, tokens, 8)) for name in ("h.0", "h.1")}
    return {**found, "output": rng.normal(size=(2, 3, tokens)), "input": rng.normal(size=(2, 3, tokens)), "cls": None}


def test_layers_by_tokens():
    pytest.importorskip("matplotlib")
    found = layers()
    figure = viz.token_layers(found, ["[CLS]", "a", "##b", "c"], sample=1, targets=["x", "y", "z"])
    maps = [axes for axes in figure.axes if axes.images and len(axes.get_yticks())]
    assert len(maps) == 3
    assert [label.get_text() for label in maps[0].get_yticklabels()] == ["h.1", "h.0", "input"]
    assert [label.get_text() for label in maps[0].get_xticklabels()] == ["[CLS]", "a", "b", "c"]
    shown = np.asarray(maps[1].images[0].get_array())
    np.testing.assert_allclose(shown[0], found["h.1"][1, 1].sum(-1))
    np.testing.assert_allclose(shown[2], found["input"][1, 1])
    sums = [text.get_text() for text in figure.axes[0].texts]
    assert f"{found['h.0'][1, 0].sum():+.3g}" in sums
    one = viz.token_layers(found, ["a"] * 4, layers=["h.0"], scale="row")
    assert np.abs(one.axes[1].images[0].get_array()).max() == pytest.approx(1)
    assert viz.to_image(one).width > 100


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"relevance_by_layer": np.zeros(3)}, TypeError, "must be a dict from layer to relevance"),
        ({"tokens": ["a"] * 5}, ValueError, "no layer has .* with S = 5 tokens"),
        ({"layers": ["h.2"]}, ValueError, "there is no layer 'h.2': there are h.0, h.1"),
        ({"sample": 2}, ValueError, "there is no sample 2"),
        ({"targets": ["x"]}, ValueError, "targets must be a list of 3 names"),
        ({"scale": "all"}, ValueError, "unknown scale"),
    ],
)
def test_errors_of_layers(change, error, says):
    with pytest.raises(error, match=says):
        viz.token_layers(**{"relevance_by_layer": layers(), "tokens": ["a"] * 4, **change})
