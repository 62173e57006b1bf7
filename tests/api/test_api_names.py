"""``import fastlrp`` is all that a user needs to write: the other packages load when they are named."""

from __future__ import annotations

import subprocess
import sys

import pytest

import fastlrp

LAZY = ["compat", "functional", "info", "io", "nn", "report", "tune", "viz"]


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.slow
def test_packages_load_on_first_use():
    code = f"""
import sys, fastlrp
names = {LAZY}
early = [name for name in names if f'fastlrp.{{name}}' in sys.modules and name != 'functional']
found = [getattr(fastlrp, name).__name__ for name in names]
print(early, found == [f'fastlrp.{{name}}' for name in names], fastlrp.compat.zennit.__name__)
"""
    assert run(code) == "[] True fastlrp.compat.zennit"


def test_the_list_of_names_is_what_users_need():
    names = set(dir(fastlrp))
    assert names == {*fastlrp.__all__, "__version__"}
    assert names >= {"Explainer", "explain", "lrp", "rules", "composites", *LAZY}
    assert not names & {"capture", "plan", "run", "kinds", "backends", "annotations", "importlib"}
    for name in names:
        assert getattr(fastlrp, name) is not None
    assert dir(fastlrp.compat) == ["captum", "zennit"]


@pytest.mark.parametrize("module", ["fastlrp", "fastlrp.compat"])
def test_a_name_that_does_not_exist(module):
    with pytest.raises(AttributeError, match=f"module '{module}' has no attribute 'heatmaps'"):
        getattr(sys.modules.get(module) or __import__(module), "heatmaps")  # noqa: B009
