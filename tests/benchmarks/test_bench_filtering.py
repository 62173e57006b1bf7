"""The table of layers by Winograd's filtering beside oneDNN: small layers, and a product that is wrong."""

from __future__ import annotations

import pytest
import torch

from benchmarks import filtering, layers
from fastlrp.plan.products import packed, winograd

pytestmark = pytest.mark.skipif(
    packed._operations() is None or winograd._kernel() is None, reason="no processor or PyTorch that gains by it"
)


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_table_to_paste(monkeypatch, capsys):
    monkeypatch.setattr(filtering, "LAYERS", (filtering.Layer(32, 48, 12), filtering.Layer(48, 48, 9)))
    threads = torch.get_num_threads()
    layers.main(["--filtering", "--repeats", "2"])
    assert torch.get_num_threads() == threads
    lines = capsys.readouterr().out.strip().splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert cells(table[0])[:4] == ["channels, size", "oneDNN", "filtering", "times as fast"]
    assert [cells(line)[0] for line in table[2:]] == ["32 to 48, 12", "48, 9"]
    for line in table[2:]:
        numbers = [float(cell) for cell in cells(line)[1:]]
        assert numbers[2] == pytest.approx(numbers[0] / numbers[1], rel=0.05), "of rounded milliseconds"
        # Measured: 2e-7 and 7e-7. Two different products, neither of them float64's own.
        assert 0 < numbers[3] < 1e-6 < 4e-6 > numbers[4] > numbers[3]
    assert "the least of 2" in lines[-1]
    assert "PyTorch" in lines[-1]


def test_a_product_that_is_wrong_is_not_timed(monkeypatch):
    right = winograd.Winograd.__call__
    monkeypatch.setattr(winograd.Winograd, "__call__", lambda self, x, *rest: right(self, x, *rest) * 1.001)
    with pytest.raises(AssertionError, match=r"32, 12: the filtering differs from float64 by 1\.0e-03"):
        filtering.measured(filtering.Layer(32, 32, 12), 1)
