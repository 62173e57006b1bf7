"""The zoo: what counts as explained, limits of a process, the page; and a few models themselves."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.zoo import catalogue, page, sweep
from benchmarks.zoo.case import Case
from benchmarks.zoo.examine import examine

GOOD: dict[str, Any] = {
    "group": "g", "name": "m", "dtype": "torch.float64", "captured": True, "explained": True, "finite": True,
    "silent": False, "output_error": 0.0, "gradient_error": 1e-15, "alone_error": 1e-15, "verified": True,
    "step": "done",
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "verdict", "why"),
    [
        ({}, "explained", ""),
        ({"gradient_error": 1e-3}, "wrong", "gradient_error 1.0e-03"),
        ({"gradient_error": float("nan")}, "wrong", "gradient_error nan"),
        ({"dtype": "torch.float32", "gradient_error": 1e-3}, "explained", ""),
        ({"verified": False}, "wrong", "not verified"),
        ({"finite": False}, "wrong", "not finite"),
        ({"silent": True}, "wrong", "all zero"),
        ({"refused": "no rule for operation 'svd'"}, "refused", "no rule for operation 'svd'"),
        ({"failed": "KeyError: 1", "step": "alone"}, "failed", "KeyError: 1 (while alone)"),
        ({"ended": "more than 9 s", "step": "verify"}, "ended", "more than 9 s (while verify)"),
    ],
)
def test_verdicts(changes: dict[str, Any], verdict: str, why: str) -> None:
    row = {**GOOD, **changes}
    assert sweep.judgement(row) == verdict
    assert sweep.reason(row) == why
    assert page.explained(row) == (verdict == "explained")


class Scale(nn.Module):
    """Mixes the samples, or has a gradient of its own beside the derivative."""

    def __init__(self, mixed: bool) -> None:
        super().__init__()
        self.head, self.mixed = nn.Linear(4, 3), mixed

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x - x.mean(0)) if self.mixed else self.head(x) * x.detach().sum(1, keepdim=True)


class Doubled(nn.Module):
    """Its backward hook doubles the gradient, which relevance does not follow and autograd does."""

    def __init__(self, is_doubled: bool = True) -> None:
        super().__init__()
        if is_doubled:
            self.register_full_backward_hook(lambda module, got, given: (2 * given[0],))

    def forward(self, x: Tensor) -> Tensor:
        return x * 1


def _found(model: nn.Module) -> dict[str, Any]:
    row: dict[str, Any] = {}
    examine(lambda: Case(model.double().eval(), torch.randn(2, 4, dtype=torch.float64)), row.update)
    return row


def test_what_is_found() -> None:
    row = _found(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)))
    assert sweep.judgement(row) == "explained"
    assert row["step"] == "done"
    assert row["composite"] == "epsilon_plus"
    assert row["input"] == [[2, 4]]
    assert sweep.judgement(_found(Scale(mixed=False))) == "explained", "a gradient ends at a detach, as autograd's does"
    row = _found(nn.Sequential(nn.Linear(4, 3), Doubled()))
    assert sweep.judgement(row) == "wrong"
    assert row["gradient_error"] == pytest.approx(0.5)
    row = _found(Scale(mixed=True))
    assert sweep.judgement(row) == "refused"
    assert "mixes samples" in row["refused"]


class Translates(nn.Module):
    """Two inputs of ids, one of which it looks up with the sequence in front; positions are told from ids."""

    def __init__(self, wrong: bool = False) -> None:
        super().__init__()
        self.words, self.positions, self.head = nn.Embedding(9, 4), Positions(5, 4), nn.Linear(4, 3)
        self.last = Doubled(wrong)

    def forward(self, input_ids: Tensor, decoder_input_ids: Tensor) -> Tensor:
        first = (2 * self.words(input_ids.t())).transpose(0, 1) + self.positions(input_ids)
        second = self.words(decoder_input_ids) * first.mean(1, keepdim=True)
        return self.last(self.head(torch.tanh(second.sum(1))))


class Positions(nn.Embedding):
    """Takes the ids for their shape alone."""

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(torch.arange(ids.shape[1]))


@pytest.mark.parametrize("wrong", [False, True])
def test_relevance_of_each_input_of_ids_is_compared(wrong: bool) -> None:
    row: dict[str, Any] = {}
    given = {"input_ids": torch.tensor([[1, 8, 3], [4, 5, 2]]), "decoder_input_ids": torch.tensor([[3, 6], [7, 1]])}
    torch.manual_seed(0)
    examine(lambda: Case(Translates(wrong).double().eval(), given), row.update)
    assert row["gradient_error"] == (pytest.approx(0.5) if wrong else pytest.approx(0.0, abs=1e-12))
    assert sweep.judgement(row) == ("wrong" if wrong else "explained")


class AddsPositions(nn.Module):
    """Writes the positions into the rows that it has looked up, in front of a norm."""

    def __init__(self, wrong: bool = False) -> None:
        super().__init__()
        self.words, self.norm, self.head, self.last = (
            nn.Embedding(9, 4),
            nn.LayerNorm(4),
            nn.Linear(4, 3),
            Doubled(wrong),
        )

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.words(input_ids)
        x += torch.arange(4, dtype=x.dtype)
        return self.last(self.head(torch.tanh(self.norm(x).sum(1))))


@pytest.mark.parametrize("wrong", [False, True])
def test_rows_are_compared_as_they_were_looked_up(wrong: bool) -> None:
    row: dict[str, Any] = {}
    torch.manual_seed(0)
    examine(lambda: Case(AddsPositions(wrong).double().eval(), torch.tensor([[1, 8, 3], [4, 5, 2]])), row.update)
    assert row["gradient_error"] == (pytest.approx(0.5) if wrong else pytest.approx(0.0, abs=1e-12))


def _sleeps(make: Any, tell: Any) -> None:
    tell({"step": make})
    if make == "works":
        raise ValueError("a fault")
    if make == "runs":
        while True:
            pass
    if make == "takes memory":
        torch.ones(2**28)
    if make == "sleeps":
        time.sleep(60)


def test_limits_of_a_process_and_rows_on_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "examine", _sleeps)
    file = tmp_path / "new" / "rows.jsonl"
    names: list[Any] = ["works", "runs", "takes memory", "ends", "sleeps"]
    monkeypatch.setattr(sweep, "PATIENCE", 100)
    sweep.sweep([("g", name, name) for name in names[:4]], file, 4, 1, 0.75)
    monkeypatch.setattr(sweep, "PATIENCE", 1)
    sweep.sweep([("g", "sleeps", names[4])], file, 1, 1, 0.75)
    rows = {name: row for (_, name), row in sweep.read(file).items()}
    assert {row["group"] for row in rows.values()} == {"g"}
    assert {name: row["step"] for name, row in rows.items()} == {name: name for name in names}
    assert "finished" not in rows["works"]
    assert rows["works"]["failed"] == "ValueError: a fault"
    assert rows["runs"]["ended"] == "more than 1 s"
    assert rows["sleeps"]["ended"] == "more than 1 s by the clock"
    assert "can't allocate memory" in rows["takes memory"]["failed"]
    assert sweep.judgement(rows["ends"]) == "explained"


def test_the_page(tmp_path: Path) -> None:
    rows = [
        GOOD,
        {**GOOD, "name": "other", "refused": "cond in module 'a.b' (s1 3) branches on data. Then more. And more."},
        {**GOOD, "name": "third", "refused": "cond in module 'c' (s7 4) branches on data. Then more. And more."},
    ]
    file = tmp_path / "models.md"
    page.write(file, {(r["group"], r["name"]): r for r in rows}, [("g", "m"), ("g", "never"), ("h", "x")])
    text = file.read_text()
    assert "| g | 3 (1 more not measured) | 1 (33 %) | 3 | 0 | 2 | 0 |" in text
    assert "| h | 0 (1 more not measured) | – |" in text
    assert "| `other`, `third` |" in text, "one cause"
    assert "branches on data, or has sizes" in text


def test_every_row_of_the_results_is_of_a_model_that_is_known() -> None:
    lines = Path(page.__file__).parents[1].joinpath("results", "zoo", "sweep.jsonl").read_text().splitlines()
    # PyTorch 2.11 does not show whether a norm has a bias.
    keys = [(row["group"], re.sub(", bias=(True|False)", "", row["name"])) for row in map(json.loads, lines)]
    groups = {group for group, _, _ in catalogue.entries()}
    known = {(group, re.sub(", bias=(True|False)", "", name)) for group, name, _ in catalogue.entries()}
    assert {key for key in keys if key[0] in groups} <= known


SHORT = (
    "timm files/tnt_s_patch16_224", "timm files/vit_tiny_r_s16_p8_224", "timm files/test_vit_relpos",
    "timm files/xcit_nano_12_p16_224", "transformers/BERT", "transformers/ViT", "transformers/ConvNeXT",
)  # fmt: skip
COVERED = (
    "timm files/qwen3_vit_88m", "timm files/beit_base_patch16_224", "transformers/GPT-2", "transformers/Llama",
    "transformers/Mistral", "transformers/Swin", "torchvision classification/resnet18",
    "torchvision optical flow/raft_small",
)  # fmt: skip
"""What tests/transformers and tests/models have too; and raft_small, of operations that are tested one by one."""


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SHORT, *(pytest.param(name, marks=pytest.mark.full) for name in COVERED)])
def test_a_short_zoo(name: str) -> None:
    entries = {f"{group}/{member}": make for group, member, make in catalogue.entries()}
    if name not in entries:
        pytest.skip("its library is not installed")
    row: dict[str, Any] = {}
    with torch.random.fork_rng():
        examine(entries[name], row.update)
    assert sweep.judgement(row) == "explained", sweep.reason(row)
    assert row["step"] == "done"
