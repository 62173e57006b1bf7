"""The page of parts: what it stores is what the explainer gives, and which targets it keeps."""

from __future__ import annotations

import base64
import json
import zlib

import numpy as np
import pytest
import torch
from torch import nn

import fastlrp
from fastlrp import groups
from fastlrp.report import Parts, collect_parts, write_parts
from tests.report.pages import HOSTILE, Page, noise

pytest.importorskip("jinja2", reason="Jinja2 is not installed")


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 30)).eval()
    return fastlrp.Explainer(model, "epsilon_plus"), torch.rand(2, 1, 8, 8)


def stored(page: Page, i: int) -> np.ndarray:
    """The relevance that the page shows, ``(K, G)``."""
    head = page.meta["samples"][i]
    planes = np.frombuffer(zlib.decompress(base64.b64decode(page.blocks[f"parts-{i}"])), np.uint8).reshape(2, -1)
    q = planes.T.copy().view("<i2").reshape(-1, head["count"])
    return q * np.array(head["scales"])[:, None]


def test_patches_of_all_classes(network, tmp_path):
    explainer, x = network
    first, second = collect_parts(explainer, x, groups.patches(4), names=["one", "two"])
    wanted = explainer(x, "all").sum(2).reshape(2, 30, 2, 4, 2, 4).sum((3, 5)).reshape(2, 30, 4).numpy()
    order = np.argsort(-explainer.model(x).detach().numpy(), kind="stable")
    for found, R, places in zip((first, second), wanted, order, strict=True):
        assert found.relevance == pytest.approx(R[places], abs=1e-5)
        assert found.targets == [str(k) for k in places]
        assert found.average == pytest.approx(R.mean(0), abs=1e-5)
    assert first.places[[0, 0, 7, 7], [0, 7, 0, 7]].tolist() == [0, 1, 2, 3]
    page = Page(write_parts(tmp_path / "p.html", [first, second], title="T", model="a net"))
    assert np.abs(stored(page, 1) - second.relevance).max() <= np.abs(second.relevance).max() / 65000
    assert (page.meta["model"], page.meta["samples"][0]["places"], page.meta["samples"][0]["left"]) == (
        "a net",
        [8, 8],
        0,
    )


def test_the_best_and_the_strongest_of_each_part_are_kept(network):
    explainer, x = network
    (whole,), (few,) = (collect_parts(explainer, x[:1], groups.patches(4), keep=keep) for keep in (100, 12))
    assert (len(few.targets), few.left_out) == (12, 18)
    assert few.targets[:6] == whole.targets[:6]
    above = whole.relevance - whole.average
    assert {whole.targets[k] for k in above.argmax(0)} <= set(few.targets)
    assert few.average == pytest.approx(whole.average)
    assert few.scores == sorted(few.scores, reverse=True)


def test_next_tokens_at_several_positions():
    class Language(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.mix, self.head = nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 9)

        def forward(self, ids):
            return self.head(torch.relu(self.mix(self.table(ids))))

    torch.manual_seed(1)
    explainer, ids = fastlrp.Explainer(Language().eval(), "epsilon"), torch.tensor([[1, 5, 3]])
    names = [f"word {k}" for k in range(9)]
    found = collect_parts(explainer, ids, "tokens", at=[1, -1], tokens=[["a", "b", "c"]], target_names=names)
    assert [(one.name, one.at) for one in found] == [
        ("sample 0: after token 1, 'b'", 1),
        ("sample 0: after token 2, 'c'", 2),
    ]
    assert found[0].relevance[:, [0, 2]] == pytest.approx(0)  # Nothing mixes positions here.
    scores = explainer.model(ids)[0, 1].detach()
    assert found[0].targets[0] == names[int(scores.argmax())]
    assert found[0].scores[0] == pytest.approx(float(scores.max()), rel=1e-6)


def test_channels_of_a_layer(network):
    explainer, x = network
    (found, _) = collect_parts(explainer, x, groups.patches(4), layer="1")
    channels = explainer.model[:2](x)[0].sum((1, 2)).detach()
    assert sorted(found.targets) == [f"1 [{n}]" for n in range(4)]
    assert found.scores == pytest.approx(channels.sort(descending=True).values.tolist(), rel=1e-5)


def test_what_does_not_fit(network, tmp_path):
    R = noise(2, 3)
    with pytest.raises(ValueError, match=r"must be \(K, G\) = \(1, G\), got \(2, 3\)"):
        Parts("s", ["t"], [1.0], R, tokens=["a", "b", "c"])
    with pytest.raises(ValueError, match="3 parts and 2 tokens"):
        Parts("s", ["t", "u"], [1.0, 2.0], R, tokens=["a", "b"])
    with pytest.raises(ValueError, match="say with places"):
        Parts("s", ["t", "u"], [1.0, 2.0], R)
    with pytest.raises(ValueError, match="below 3"):
        Parts("s", ["t", "u"], [1.0, 2.0], R, places=np.full((4, 4), 3))
    with pytest.raises(ValueError, match="1 NaN or infinite"):
        Parts("s", ["t", "u"], [1.0, 2.0], np.where(np.arange(6).reshape(2, 3) == 4, np.nan, R), tokens=["a", "b", "c"])
    fine = Parts("s", ["t", "u"], [1.0, 2.0], R, tokens=["a", "b", "c"])
    with pytest.raises(ValueError, match="keep fewer targets"):
        write_parts(tmp_path / "p.html", [fine], title="T", max_bytes=1000)
    with pytest.raises(ValueError, match="at least one"):
        write_parts(tmp_path / "p.html", [], title="T")
    explainer, x = network
    with pytest.raises(ValueError, match="a list for each"):
        collect_parts(explainer, x, groups.patches(4), tokens=[["a"]])


def test_hostile_names_stay_data(tmp_path):
    count = len(HOSTILE)
    given = Parts(HOSTILE[0], HOSTILE, [0.0] * count, noise(count, count), tokens=HOSTILE)
    page = Page(write_parts(tmp_path / "p.html", [given], title=HOSTILE[1]))
    assert json.loads(page.blocks["meta"])["samples"][0]["targets"] == HOSTILE
    assert page.texts["h1"] == HOSTILE[1]
