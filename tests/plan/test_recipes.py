"""The recipes of docs/adding.md, followed to the letter in a copy of the package: one file and one line each."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "adding.md"

# In which file, after which line, which line: what the page says below each recipe.
LINES = {
    "fastlrp/kinds/hypot.py": [
        ("fastlrp/kinds/registry.py", "    homogeneous,", "    hypot,"),
        ("fastlrp/kinds/registry.py", "    homogeneous.KIND,", "    hypot.KIND,"),
    ],
    "fastlrp/rules/absolute.py": [
        ("fastlrp/rules/__init__.py", "__all__ = [", '    "Absolute",'),
        (
            "fastlrp/rules/__init__.py",
            "from fastlrp.rules.zplus import ZPlus",
            "from fastlrp.rules.absolute import Absolute",
        ),
    ],
    "fastlrp/backends/einsum.py": [
        (
            "fastlrp/backends/dispatch.py",
            "from fastlrp.backends.cuda import Cuda",
            "from fastlrp.backends.einsum import Einsum",
        ),
        ("fastlrp/backends/dispatch.py", "(Reference(), Torch(), ", "Einsum(), "),
    ],
}

PROGRAM = '''
import torch
from torch import nn

import fastlrp
from fastlrp import composites, rules
from fastlrp.backends import dispatch

torch.manual_seed(0)


class Net(nn.Module):
    """hypot of two activations, of views of them, and of its own result."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 5), nn.Linear(45, 2)

    def forward(self, x):
        h = self.first(x)
        one, other = torch.hypot(h, h.flip(1)), torch.hypot(h[..., 0], h[..., 1])
        return self.last(torch.cat([one, h, torch.hypot(one, h)], 1).flatten(1)) + other[:, :2]


class Double(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3))

    def forward(self, x):
        return self.layers(x)


tokens, image = torch.randn(2, 3, 4).double(), torch.randn(2, 2, 4, 4).double()

# The kind: its own rule, and relevance that is conserved in it.
for composite in ("epsilon_plus", "gradient"):
    explainer = fastlrp.Explainer(Net().double().eval(), composite)
    report = explainer.verify(tokens, "all", initial="one" if composite == "gradient" else "output")
    assert report.ok, report
    assert sum(row.operation == "hypot" for row in report.rows) == 3, report
assert "hypot" in str(explainer.plan)
one = nn.Sequential()
one.forward = lambda x: torch.hypot(x[:, :1], x[:, 1:])
x = torch.tensor([[3.0, 4.0]]).double()  # Squares of 9 and 16.
found = fastlrp.explain(one, x, torch.ones(1, 1, 1).double(), "epsilon")
torch.testing.assert_close(found, torch.tensor([[[0.36, 0.64]]]).double(), rtol=1e-5, atol=0)
composites.kind("hypot")

# The rule: 3 and 1 of |w| x, in one layer and in a network with a batch norm.
layer = nn.Linear(2, 1).double()
layer.weight.data = torch.tensor([[3.0, -1.0]]).double()
layer.bias.data.zero_()
start = torch.ones(1, 1, 1).double()
found = fastlrp.explain(layer, torch.ones(1, 2).double(), start, composites.uniform(rules.Absolute()))
torch.testing.assert_close(found, torch.tensor([[[0.75, 0.25]]]).double())
model = Double().double().eval()
report = fastlrp.Explainer(model, composites.uniform(rules.Absolute())).verify(image, "all")
assert report.ok, report

# The backend: asked for by name alone, with stand-ins, and with a reason where it cannot run.
assert dispatch.automatic("cpu") == ("cpu", "torch"), dispatch.automatic("cpu")
explainer = fastlrp.Explainer(model, "epsilon_plus", backend="einsum")
report = explainer.verify(image, "all")
assert report.ok, report
assert "einsum" in str(explainer.plan), explainer.plan
torch.testing.assert_close(explainer(image, "all"), fastlrp.explain(model, image, "all"))
try:
    fastlrp.explain(model.half(), image.half(), "all", backend="einsum")
except fastlrp.BackendError as error:
    assert "kernels are for float32 and float64" in str(error), error
else:
    raise AssertionError("float16 is refused")
'''


def recipes() -> dict[str, str]:
    """The page's code by the file that its first line names."""
    blocks = re.findall(r"^```python\n# (fastlrp/\S+\.py)\n(.*?)^```", PAGE.read_text(), re.S | re.M)
    return dict(blocks)


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The package without its compiled part and caches, which the copy shares."""
    root = tmp_path_factory.mktemp("recipes")
    ignored = shutil.ignore_patterns("__pycache__", "*.so", "kernels")
    shutil.copytree(ROOT / "fastlrp", root / "fastlrp", ignore=ignored)
    for shared in (ROOT / "fastlrp").glob("_C*.so"):
        (root / "fastlrp" / shared.name).symlink_to(shared)
    (root / "fastlrp" / "kernels").symlink_to(ROOT / "kernels")
    return root


@pytest.mark.slow
def test_each_recipe_is_a_file_and_a_line(copy):
    found = recipes()
    assert list(found) == list(LINES)
    for name, text in found.items():
        assert not (copy / name).exists()
        (copy / name).write_text(text)
        for path, after, line in LINES[name]:
            file = copy / path
            before = file.read_text()
            assert before.count(f"{after}\n" if after.endswith((",", "[")) else after) == 1, (path, after)
            file.write_text(before.replace(after, f"{after}{line}" if after.endswith(" ") else f"{after}\n{line}"))
    program = copy / "program.py"
    program.write_text(PROGRAM)
    env = {**os.environ, "PYTHONPATH": str(copy), "FASTLRP_CHECK": "1"}
    run = subprocess.run([sys.executable, str(program)], cwd=copy, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
