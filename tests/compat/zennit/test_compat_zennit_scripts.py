"""Scripts as users of Zennit write them, run twice: as they are, and with the import of the attributor changed.

Everything else in them stays: composites, rules, canonizers, types come from Zennit in both runs.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from tests.compat.zennit.both import check
from tests.compat.zennit.scripts import SCRIPTS, START
from tests.ops.cases import in_dtypes


def _run(script: str) -> tuple[torch.Tensor, torch.Tensor]:
    namespace: dict[str, Any] = {}
    exec(script, namespace)
    return namespace["output"], namespace["relevance"]


@pytest.fixture
def dtype(request: pytest.FixtureRequest) -> Any:
    before = torch.get_default_dtype()
    torch.set_default_dtype(request.param)
    with torch.random.fork_rng():
        yield request.param
    torch.set_default_dtype(before)


@pytest.mark.parametrize(("name", "dtype"), in_dtypes(SCRIPTS, (torch.float64, torch.float32)), indirect=["dtype"])
def test_script_gives_the_same_numbers_with_one_line_changed(name: str, dtype: torch.dtype) -> None:
    script = START + SCRIPTS[name]
    changed, lines = re.subn("from zennit.attribution import", "from fastlrp.compat.zennit import", script)
    assert lines == 1
    expected = _run(script)
    assert expected[1].dtype == dtype
    check(_run(changed), expected)
