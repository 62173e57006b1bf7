"""Random networks against the reference walk, layer by layer: what no list of cases thinks of."""

from __future__ import annotations

import math
import time

import pytest

import fastlrp.run.plans
from fastlrp import Explainer, composites
from fastlrp.capture.export import capture
from tests.fixtures import one_thread  # noqa: F401
from tests.models.random_chains import network

COMPOSITES = {
    "zplus": composites.zplus(),
    "epsilon_plus": composites.epsilon_plus(),
    "gamma": composites.gamma(0.25),
    "alpha_beta": composites.alpha_beta(2, 1),
    "epsilon": composites.epsilon(1e-6),
}
NETWORKS = 30
"""In a full run 60."""

SECONDS = 15
"""On a slow machine fewer networks are tried."""

TOLERANCE = 1e-7
"""Measured on 900 networks: below 1e-9 but where a denominator is nearly zero."""


@pytest.mark.slow
@pytest.mark.parametrize("first", [0, pytest.param(NETWORKS, marks=pytest.mark.full)])
def test_random_networks(monkeypatch: pytest.MonkeyPatch, first: int) -> None:
    """Errors name the seed: ``network(seed, 2 + seed % 6)`` is the network."""
    stop = time.monotonic() + SECONDS
    tried = 0
    for seed in range(first, first + NETWORKS):
        made = network(seed, 2 + seed % 6)
        if made is None:
            continue
        model, x = made
        captured = capture(model, (x,), {}, None)
        monkeypatch.setattr(fastlrp.run.plans, "capture", lambda *_, captured=captured: captured)
        for position, (name, composite) in enumerate(COMPOSITES.items()):
            paths = ("dense", "sparse")[(seed + position) % 2]
            report = Explainer(model, composite, paths=paths).verify(x, [0, 1, 3], tolerance=TOLERANCE)
            assert report.ok, f"seed {seed}, {name}, {paths}: {model}\n{report}"
            assert not math.isnan(report.end_to_end)
        tried += 1
        if time.monotonic() > stop:
            break
    assert tried > 3
