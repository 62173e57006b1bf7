"""With the best targets of each sample alone, the report shows and finds classes, and keeps them between samples."""

from __future__ import annotations

import json
import re

import numpy as np

from fastlrp.report import Sample, write


def sample(name, classes):
    names = [f"kind {c}" for c in classes]
    scores = [3.0, 2.0, -1.0]
    return Sample(name, None, names, scores, {"input": np.ones((3, 4, 4), np.float32)}, None, classes)


def test_the_page_knows_the_classes(tmp_path):
    page = write(tmp_path / "a.html", [sample("a", [7, 2, 5]), sample("b", [0, 1, 2])], title="t").read_text()
    meta = json.loads(re.search(r'<script[^>]*id="meta"[^>]*>(.*?)</script>', page, re.S)[1])
    assert [s["classes"] for s in meta["samples"]] == [[7, 2, 5], None]
