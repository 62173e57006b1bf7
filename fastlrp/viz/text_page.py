"""Coloured texts as HTML."""

from __future__ import annotations

import html
from collections.abc import Iterator

from fastlrp.viz.pieces import Piece, printable
from fastlrp.viz.text_colors import NEGATIVE, POSITIVE, share_of
from fastlrp.viz.text_sample import TextData, TextSample

_STYLE = """
.fastlrp-text{font:16px/1.75 system-ui,sans-serif;max-width:60em}
.fastlrp-text .name{font-weight:600;margin:1em 0 .2em;overflow-wrap:anywhere}
.fastlrp-text .target{margin:.6em 0 0;font-size:85%;line-height:1.4;overflow-wrap:anywhere}
.fastlrp-text .target b{white-space:pre-wrap;margin-inline-end:.8em}
.fastlrp-text .target span{opacity:.75;display:inline-block;margin-inline-end:.8em}
.fastlrp-text .words{margin:.1em 0 0;white-space:pre-wrap;overflow-wrap:anywhere}
.fastlrp-text .words span{border-radius:.2em;padding-block:.12em}
.fastlrp-text .words .part{box-shadow:inset 1px 0 rgba(128,128,128,.55)}
.fastlrp-text .words .special{color:gray;color:color-mix(in srgb,currentColor 62%,transparent);
font-size:80%;unicode-bidi:isolate;direction:ltr}
.fastlrp-text .words span:hover{outline:2px solid}
.fastlrp-text .legend{margin:1.2em 0 0;font-size:80%;line-height:1.4;max-width:32em}
.fastlrp-text .bar{height:.9em;border-radius:.2em;border:1px solid rgba(128,128,128,.5)}
.fastlrp-text .ticks{display:flex;justify-content:space-between}
"""

_PAGE = """<!DOCTYPE html>
<html lang="und"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>{title}</title>
<style>:root{{color-scheme:light dark}}
body{{margin:1.5em auto;padding:0 1em;max-width:60em;background:Canvas;color:CanvasText}}
h1{{font:600 20px/1.3 system-ui,sans-serif;overflow-wrap:anywhere}}
h2{{font:600 16px/1.3 system-ui,sans-serif;margin-top:2em}}
p.about,table{{font:14px/1.4 system-ui,sans-serif;overflow-wrap:anywhere}}
td{{padding:0 1.5em 0 0}}td.number{{text-align:right}}img{{max-width:100%;background:#fff}}</style></head>
<body>{body}</body></html>
"""


def page(view: TextData, title: str = "Relevance", before: str = "", after: str = "") -> str:
    """A whole page. ``before`` and ``after`` the texts: HTML that is escaped already."""
    body = before + fragment(view) + after
    return _ascii(_PAGE.format(title=html.escape(title), body=body))


def fragment(view: TextData) -> str:
    """A ``<div>`` with its style."""
    parts = [f'<div class="fastlrp-text"><style>{_STYLE}</style>']
    for sample in view.samples:
        if sample.name:
            parts.append(f'<div class="name" dir="auto">{html.escape(shown(sample.name))}</div>')
        for k in range(len(sample.targets)):
            level = view.level_of(sample, k)
            parts.append(f'<div class="target">{_head(view, sample, k, level)}</div>')
            parts.append(f'<div class="words" dir="auto">{"".join(_spans(sample, k, level))}</div>')
    parts.append(_legend(view) + "</div>")
    return _ascii("".join(parts))


def facts(sample: TextSample, k: int, scale: str, level: float) -> list[str]:
    """What stands beside a target's name."""
    special = sample.of_special(k)
    found = [] if sample.scores is None else [f"score {sample.scores[k]:.4g}"]
    of_special = f" ({special:+.3g} of it special tokens)" if special else ""
    found.append(f"sum of relevance {sample.total(k):+.4g}{of_special}")
    return [*found, f"colours up to {level:.2g}"] if scale == "each" else found


def says(view: TextData, what: str = "A red token speaks for the target, a blue one against it") -> str:
    """What colours and numbers stand for."""
    special = any(piece.special for sample in view.samples for piece in sample.pieces)
    return f"{what}. Relevance is in units of the score: each token's share in it." + (
        " Grey: special tokens and padding." if special else ""
    )


def shown(text: str) -> str:
    """A name without what could turn the direction of a line or hide; a space before it is seen."""
    return printable(f"␣{text[1:]}" if text.startswith(" ") else text)


def _head(view: TextData, sample: TextSample, k: int, level: float) -> str:
    name = f"<b><bdi>{html.escape(shown(sample.targets[k]))}</bdi></b>" if sample.targets[k] else ""
    return name + "".join(f"<span>{html.escape(fact)}</span>" for fact in facts(sample, k, view.scale, level))


def _spans(sample: TextSample, k: int, level: float) -> Iterator[str]:
    for piece, value in zip(sample.pieces, sample.of_pieces(k), strict=True):
        share = share_of(value, level)
        color = POSITIVE if share > 0 else NEGATIVE
        back = f"background:rgba({color[0]},{color[1]},{color[2]},{abs(share):.3g})" if abs(share) >= 0.004 else ""
        kind = "special" if piece.special else "" if piece.begins else "part"
        attributes = (f' class="{kind}"' if kind else "") + (f' style="{back}"' if back else "")
        text, ends = piece.text.removesuffix("\n"), "\n" if piece.text.endswith("\n") else ""
        tip = html.escape(_tip(sample, piece, value))
        space, letters = " " if piece.spaced else "", html.escape(text) or "&#8203;"
        yield f'{space}<span{attributes} title="{tip}">{letters}</span>{ends}'


def _tip(sample: TextSample, piece: Piece, value: float) -> str:
    own = [shown(token) for token in sample.tokens[slice(*piece.tokens)]]
    where = f"token {piece.tokens[0]}" if len(own) == 1 else f"tokens {piece.tokens[0]} to {piece.tokens[1] - 1}"
    return f"{value:+.4g}\n{where}: {' '.join(own)}"


def _legend(view: TextData) -> str:
    level = view.largest()
    ends = ("−each text's largest", "0", "+each text's largest") if view.scale == "each" else (
        f"−{level:.3g}", "0", f"+{level:.3g}",
    )  # fmt: skip
    bar = "linear-gradient(to right,rgb({0},{1},{2}),rgba({0},{1},{2},0) 50%,rgba({3},{4},{5},0) 50%,rgb({3},{4},{5}))"
    bar = bar.format(*NEGATIVE, *POSITIVE)
    ticks = "".join(f"<span>{html.escape(end)}</span>" for end in ends)
    return (
        f'<div class="legend"><div class="bar" style="background:{bar}"></div><div class="ticks">{ticks}</div>'
        f"{html.escape(says(view))}</div>"
    )


def _ascii(text: str) -> str:
    return text.encode("ascii", "xmlcharrefreplace").decode()
