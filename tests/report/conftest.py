"""A browser, and reports to open in it."""

from __future__ import annotations

import pytest

from fastlrp.report import Sample, write
from tests.report.browser import Shown, launched
from tests.report.pages import noise, sample


@pytest.fixture(scope="module")
def chromium():
    with launched() as found:
        yield found


@pytest.fixture
def shown(chromium):
    """Opens reports; afterwards nothing may have complained."""
    found = []

    def show(*arguments, **options) -> Shown:
        found.append(Shown(chromium, *arguments, **options))
        return found[-1]

    yield show
    complaints = [text for page in found for text in page.complaints]
    for page in found:
        page.close()
    assert not complaints


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Two samples of the same six targets, and one of a single target without an image."""
    names = ["gold fish", "École", "zebra", "fish 2", "fish 10", "ape"]
    one = sample("one", targets=names)
    two = sample("two", targets=names, relevance={"input": noise(6, 12, 12, seed=9)}, ledger=None)
    alone = Sample("alone", None, ["the only one"], [0.5], {"input": noise(1, 9, 5)})
    path = tmp_path_factory.mktemp("small") / "r.html"
    return write(path, [one, two, alone], title="A title", composite="epsilon_plus", unit="logit"), one
