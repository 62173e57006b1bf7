"""Pictures with class, score and colour bar; tables with a header."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import fastlrp
from fastlrp import viz
from fastlrp.cli import tables
from fastlrp.cli.drawing import Look
from tests.cli.conftest import MODEL

TABLE_MODEL = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
"""


def opened(data) -> np.ndarray:
    import io

    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def test_a_figure_holds_the_map_as_it_is():
    values = np.linspace(-1, 1, 40 * 20).reshape(20, 40)
    values[0, 0] = -9.0
    found = opened(Look().figure(values, "tabby cat (281), score +1.23", "cat.png"))
    level = float(np.sort(np.abs(values[values != 0]))[-8])  # Of 800 entries number ceil(0.99 * 799) from 0.
    expected = np.asarray(viz.heatmap(values, cmap="soft", level=level, zoom=8))
    assert expected.shape == (160, 320, 3)
    top = next(y for y in range(len(found) - 159) if (found[y : y + 160, 12:332] == expected).all())
    assert found[:top].min() < 100  # The title.
    assert found[top + 170 :].min() < 100  # The numbers of the colour bar.
    assert (found[:, :8] == 255).all()


def test_figures_are_the_default(run, photos, tmp_path):
    labels = tmp_path / "names.txt"
    labels.write_text("\n".join(f"class of number {i}" for i in range(7)))
    for words in ([], ["--plain"]):
        done = run("explain", MODEL, photos / "a.png", "-o", tmp_path / f"o{len(words)}", "-t", 1, "--overlay", *words)
        assert done.code == 0, done.err
    figure, plain = (Image.open(tmp_path / f"o{n}" / "a.png_1.png") for n in (0, 1))
    assert plain.size == (24, 20)
    assert figure.size[0] >= 320
    assert Image.open(tmp_path / "o0" / "a.png_1_overlay.png").size == figure.size


def test_rows_of_a_table_are_bars(run, tmp_path):
    (tmp_path / "model.py").write_text(TABLE_MODEL)
    (tmp_path / "people.csv").write_text("age,hours,sex\n39,40,1\n\n25,12.5,0\n")
    out = tmp_path / "out"
    done = run("explain", f"{tmp_path / 'model.py'}:make", tmp_path / "people.csv", "-o", out, "-t", 1, "-f", "png,npy")
    assert done.code == 0, done.err
    assert Image.open(out / "people.csv_0_1.png").size[0] > 1000
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    expected = fastlrp.explain(model, torch.tensor([[39.0, 40.0, 1.0], [25.0, 12.5, 0.0]]), 1)
    for i in (0, 1):
        torch.testing.assert_close(torch.from_numpy(np.load(out / f"people.csv_{i}_relevance.npy")), expected[i])


def test_tables(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('"a b";c\n1;-2e3\n')
    assert tables.read(path).names == ("a b", "c")
    np.testing.assert_array_equal(tables.read(path).values, [[1, -2000]])
    path.write_text(",0,1,2\n0,7,8,9\n")  # As pandas writes columns and rows without names.
    assert tables.read(path).names == ("", "0", "1", "2")
    path.write_text("1,2\n3,4\n")
    assert tables.read(path).names is None
    assert tables.read(path).values.shape == (2, 2)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is empty: expected a row for each sample"),
        ("a,b\n", "has a header and no row of numbers"),
        ("a,b\n1,2\n3\n", "line 3 of .* has 1 columns, the first one has 2"),
        ("a,b\n1,x\n", r"line 2 of .*, column 2 \(b\): 'x' is no number"),
        ("1,,3\n4,5,6\n", r"line 1 of .*, column 2: '' is no number"),
        ("2.5,NA\n4,5\n", r"line 1 of .*, column 2: 'NA' is no number"),
        ("1,2,,3\n4,5,6,7\n", r"line 1 of .*, column 3: '' is no number"),
    ],
)
def test_tables_that_are_none(tmp_path, text, says):
    path = tmp_path / "a.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=says):
        tables.read(path)
