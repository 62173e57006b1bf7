"""The check of the built site's links finds what leads nowhere."""

from __future__ import annotations

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_links_files_and_anchors(tmp_path):
    spec = importlib.util.spec_from_file_location("site_check", ROOT / "docs" / "site" / "check.py")
    check = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(check)
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.html").write_text(
        '<h1 id="top">A</h1><a href="sub/b.html#here">right</a><a href="#top">right</a>'
        '<a href="https://x.y/z">not asked</a>'
        '<a href="sub/b.html#there">no anchor</a><img src="c.png"><a href="#nowhere">no anchor</a>'
    )
    (tmp_path / "sub" / "b.html").write_text('<p id="here"><a href="../a.html#top">right</a></p>')
    assert check.links(tmp_path) == [
        "a.html: sub/b.html#there: the page has no such anchor",
        "a.html: c.png: there is no such file",
        "a.html: #nowhere: the page has no such anchor",
    ]
