"""Tables and chart from a tiny results file."""

from __future__ import annotations

import json

import pytest

from benchmarks import tables
from benchmarks.render import CHART, MARKERS, render

OLD = {
    "date": "2020-01-01", "commit": "abc", "machine": "M, 2 threads", "torch": "2", "model": "vgg16",
    "composite": "epsilon_plus", "provider": "fastlrp auto", "targets": 32, "dtype": "float32",
    "seconds_per_target": 0.5, "spread": 1.0, "error": 0.0, "times_faster_than_zennit": 6.5, "share_of_gradient": 0.75,
}  # fmt: skip
OLD_SMALL = {
    "date": "2020-01-01", "commit": "abc", "machine": "M, 2 threads", "torch": "2", "model": "small",
    "composite": "epsilon_plus", "provider": "fastlrp auto", "targets": 10, "dtype": "float32", "seconds": 0.001,
    "times_one_gradient": 2.25,
}  # fmt: skip
NEW = {
    **OLD, "scenario": "targets", "batch": 1, "size": 224, "density_asked": None, "density": 0.5,
    "command": "python -m benchmarks.compare --repeats 2", "commit": "def", "peak_bytes": 100 << 20, "zennit": "0.5",
    "seconds_per_target": 0.25, "times_faster_than_zennit": 13.0,
}  # fmt: skip


@pytest.fixture
def root(tmp_path):
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    for page in ("README.md", "benchmarks/README.md"):
        (tmp_path / page).write_text(f"before\n{MARKERS.begin}\nstale\n{MARKERS.end}\nafter\n")
    return tmp_path


def written(root, *rows):
    (root / "benchmarks" / "results" / "cpu.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    render(root)
    return (root / "README.md").read_text(), (root / "benchmarks" / "README.md").read_text()


def test_nothing_measured(root):
    render(root)
    for page in ("README.md", "benchmarks/README.md"):
        text = (root / page).read_text()
        assert "Nothing has been measured yet: `make bench`." in text
        assert text.startswith("before\n")
        assert text.endswith("after\n")
        assert "stale" not in text
    assert not (root / CHART).exists()


def test_old_rows_are_readable(root):
    short, detailed = written(root, OLD, OLD_SMALL)
    assert (
        "| one 224×224 image | float32, 32 targets |\n| --- | ---: |\n| vgg16, `epsilon_plus` | 6.5 (0.75) |" in short
    )
    assert "cost 2.2 times one forward pass" in short
    assert "| vgg16 | epsilon_plus | 32 | fastlrp auto | 500 |" in detailed
    assert "commit abc, M, 2 threads, PyTorch 2, 2020-01-01." in short
    assert "`python -m benchmarks.compare`: commit abc, M, 2 threads, PyTorch 2, 2020-01-01" in detailed


def test_the_newest_row_wins_and_ends_the_old_ones_of_its_question(root):
    gone = {**OLD, "provider": "gradient"}
    newer = {**NEW, "times_faster_than_zennit": 14.0, "commit": "fed"}
    short, detailed = written(root, OLD, gone, NEW, newer)
    assert "| vgg16, `epsilon_plus` | 14.0 (0.75) |" in short
    assert "13.0" not in short + detailed
    assert "commit fed" in short
    assert "commit abc" not in short + detailed
    assert "| gradient |" not in detailed


def test_the_key_has_density_scenario_batch_and_size(root):
    others = [{"density_asked": 0.25}, {"scenario": "batch", "batch": 8}, {"size": 64}, {"batch": 2}]
    written(root, NEW, *({**NEW, **change} for change in others))
    assert len(tables.read(root / "benchmarks" / "results")) == 5
    detailed = (root / "benchmarks" / "README.md").read_text()
    assert "### One image, many targets, 224×224\n" in detailed
    assert "biases shifted so that 0.25 of the neurons are alive" in detailed
    assert "### A batch of images, one target each, 224×224, 8 images\n" in detailed


def test_the_latest_machine_answers_and_products_of_bfloat16_are_named(root):
    later = {**NEW, "machine": "N, 1 threads", "times_faster_than_zennit": 15.0}
    narrow = {**later, "provider": "fastlrp auto/bf16", "times_faster_than_zennit": 19.0, "error": 0.003}
    short, detailed = written(root, NEW, later, narrow)
    assert "| float32, 32 targets | bfloat16, 32 targets |\n| --- | ---: | ---: |" in short
    assert "| vgg16, `epsilon_plus` | 15.0 (0.75) | 19.0 (0.75) |" in short
    assert "Products of bfloat16 change the relevance by at most 3e-03." in short
    assert "13.0" not in short
    assert "13.0" in detailed


def test_rows_of_another_benchmark_lie_beside(root):
    (root / "benchmarks" / "results" / "directions.jsonl").write_text(
        json.dumps({"part": "choice", "seconds": {}}) + "\n"
    )
    short, _ = written(root, NEW)
    assert "| vgg16, `epsilon_plus` |" in short


def test_one_table_has_a_column_for_each_number_of_targets(root):
    few = {**NEW, "targets": 1, "times_faster_than_zennit": 4.0, "share_of_gradient": None}
    other = {**NEW, "model": "resnet50", "times_faster_than_zennit": 12.0}
    gamma = {**NEW, "composite": "epsilon_gamma_box", "times_faster_than_zennit": 50.0}
    rare = [{**row, "density_asked": 0.25, "share_of_gradient": 0.125} for row in (NEW, other)]
    short, _ = written(root, NEW, other, gamma, few, *rare)
    assert "| one 224×224 image | float32, 1 target | float32, 32 targets |" in short
    assert (
        "| vgg16, `epsilon_plus` | 4.0 | 13.0 (0.75) |\n"
        "| vgg16, `epsilon_gamma_box` | – | 50.0 (0.75) |\n"
        "| resnet50, `epsilon_plus` | – | 12.0 (0.75) |" in short
    )
    assert "time under `epsilon_plus`: vgg16 0.12, resnet50 0.12." in short


def test_who_was_not_timed_has_a_reason(root):
    lost = {
        **NEW, "provider": "captum looped", "seconds_per_target": None, "times_faster_than_zennit": None,
        "share_of_gradient": None, "spread": None, "reason": "its output differs by 1.0e+00",
    }  # fmt: skip
    _, detailed = written(root, NEW, lost)
    assert "| not timed, because |" in detailed
    assert "its output differs by 1.0e+00 |" in detailed


def test_chart(root):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    short, _ = written(root, NEW, {**NEW, "density_asked": 0.25})
    first = (root / CHART).read_bytes()
    assert f"]({CHART})" in short
    assert b"<svg" in first
    render(root)
    assert (root / CHART).read_bytes() == first


def test_a_page_without_markers_is_refused(tmp_path):
    (tmp_path / "page.md").write_text(f"{MARKERS.end} {MARKERS.begin}")
    with pytest.raises(ValueError, match=r"page\.md needs the lines"):
        MARKERS.write(tmp_path / "page.md", "text")
