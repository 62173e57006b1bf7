"""The drop-in replacement beside the other version of Zennit, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.compat.zennit.both import ZENNIT_1

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
FOLDER = Path(os.environ.get("FASTLRP_ZENNIT_1", Path(sys.prefix) / "zennit-1.0.0"))
"""Where ``scripts/setup.sh`` puts Zennit 1.0.0."""

CHOSEN = (
    "canonizers",
    "notices",
    "structures.py::test_merged_batch_norm_keeps_zennits_remainder",
    "structures.py::test_pass_where_autograd_refuses_zennits",
    "structures.py::test_weight_of_a_pre_hook",
    "rules.py::test_box",
    "rules.py::test_subclass_of_a_rule_is_that_rule",
    "life.py::test_one_capture_for_any_number_of_attributors",
)
"""Half a minute of the suite."""

CHILD = """
import sys
from tests.torchvision_models import import_models
import_models()
import zennit.core
assert hasattr(zennit.core.Hook, "_inject_grad_fn"), f"this is another Zennit: {zennit.core.__file__}"
import pytest
sys.exit(pytest.main(sys.argv[1:]))
"""


@pytest.mark.skipif(
    not (FOLDER / "zennit").is_dir(),
    reason="Zennit 1.0.0 is not installed beside this one: run make install, or name its folder in FASTLRP_ZENNIT_1",
)
@pytest.mark.skipif(ZENNIT_1, reason="Zennit 1.0.0 is the one that all tests run with")
def test_drop_in_with_zennit_1() -> None:
    """A part of the suite; all of it: ``PYTHONPATH=.venv/zennit-1.0.0:. pytest tests/compat/zennit``."""
    names = [name if "::" in name else f"{name}.py" for name in CHOSEN]
    tests = [f"tests/compat/zennit/test_compat_zennit_{name}" for name in names]
    command = [sys.executable, "-c", CHILD, "-q", "-x", "-p", "no:cacheprovider", *tests]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(FOLDER), str(ROOT)]), "OMP_NUM_THREADS": "1"}
    environment.pop("PYTEST_XDIST_WORKER", None)
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]
