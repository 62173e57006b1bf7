"""The examples run and their numbers hold; the code in the README and in the documentation runs."""

from __future__ import annotations

import importlib.util
import re
import sys
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import torch

import fastlrp

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\(([^)#\s]+)?(#[^)\s]+)?\)")


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"examples_{name}", ROOT / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _as_before(monkeypatch):
    """Rules registered, threads and random numbers as they were."""
    from fastlrp.plan import assign

    monkeypatch.setattr(assign, "_REGISTERED", dict(assign._REGISTERED))
    threads = torch.get_num_threads()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
    torch.set_num_threads(threads)


def blocks(page: Path) -> list[tuple[int, str]]:
    """Line and text of each Python block."""
    text = page.read_text()
    return [(text[: m.start(1)].count("\n"), m[1]) for m in re.finditer(r"^```python\n(.*?)^```", text, re.S | re.M)]


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p)], ids=lambda p: p.name)
def test_code_of_a_page_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "page"}
    for line, code in blocks(page):
        exec(compile("\n" * line + code, str(page), "exec", dont_inherit=True), namespace)
    assert not list(tmp_path.iterdir()), "a page leaves no files behind"


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as they are made for the web."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_of_a_page_lead_somewhere(page):
    for path, anchor in LINK.findall(page.read_text()):
        if path.startswith("http"):
            continue
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: there is no {path}"
        assert not anchor or anchor[1:] in anchors(target), f"{page.name}: {path} has no {anchor}"


def test_composites_page_names_every_preset():
    text = (ROOT / "docs" / "composites.md").read_text() + (ROOT / "README.md").read_text()
    missing = [name for name in fastlrp.composites.PRESETS if f"`{name}" not in text]
    assert not missing


def test_own_rule_by_weights_equals_the_four_steps():
    relevance, by_hand = example("own_rule").strong_weights()
    # Class 0: weights (1, 0, -0.5), bias 0, z = 0.5, score 0.8.
    # Class 1: weights (0, 2, 0.3), bias 0.4, z = 4.7, score 4.85.
    exact = torch.tensor([[[1 / 0.5 * 0.8, 0.0, -0.5 / 0.5 * 0.8], [0.0, 4 / 4.7 * 4.85, 0.3 / 4.7 * 4.85]]])
    torch.testing.assert_close(by_hand, exact)
    torch.testing.assert_close(relevance, exact)


def test_own_rule_written_out_equals_a_computation_by_hand():
    own_rule = example("own_rule")
    with pytest.raises(fastlrp.UnsupportedOperationError, match="no rule for operation 'hypot'"):
        fastlrp.explain(own_rule.Energy().eval(), torch.rand(1, 4, 10), 0)
    model, x, relevance = own_rule.energies()
    with torch.no_grad():
        pairs = model.conv(x).unflatten(1, (2, 6))  # (B, 2, 6, 8)
        lengths = pairs.square().sum(1).sqrt()
        # Of the score, each channel's weight times its mean; of that, each step's part of the mean.
        arriving = lengths.unsqueeze(1) / 8 * model.head.weight.unsqueeze(-1)  # (B, 3, 6, 8)
        # Each of the two filters its part by squares, which add up to all; flat: each of the 4 x 3 inputs the same.
        expected = torch.zeros(2, 3, 10)
        for step in range(8):
            expected[:, :, step : step + 3] += arriving[..., step].sum(2, keepdim=True) / 3
    torch.testing.assert_close(relevance.sum(2), expected, rtol=1e-4, atol=1e-6)


def test_many_targets_agree_with_single_calls(tmp_path):
    many = example("many_targets")
    model, x = many.network(), torch.randn(2, 3, 32, 32)
    explainer = fastlrp.Explainer(model, "epsilon_plus", max_memory="4MB")
    with explainer.forward(x) as record:
        answers = many.ask(record)
    torch.testing.assert_close(answers["classes 3, 1, 4"][:, 1:2], explainer(x, 1))
    torch.testing.assert_close(answers["own classes for each sample"][1, :1], explainer(x, 2)[1])
    maps = many.stream_to_file(explainer, x, tmp_path / "maps.f32")
    torch.testing.assert_close(torch.from_numpy(maps), answers["one map per class, channels summed"])


@pytest.mark.parametrize("name", ["own_rule", "many_targets"])
def test_example_runs(name, capsys):
    example(name).main()
    assert capsys.readouterr().out.count("\n") > 5


def test_boxes_of_a_detector_agree_with_autograd():
    """Each box's own score, of levels of several sizes put together."""
    nn = torch.nn

    class Levels(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU())

        def forward(self, x):
            y = self.first(x)
            return {"0": y, "1": nn.functional.max_pool2d(y, 2)}

    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.objectness, self.boxes = nn.Conv2d(8, 3, 1), nn.Conv2d(8, 12, 1)

        def forward(self, levels):
            return [self.objectness(level) for level in levels], [self.boxes(level) for level in levels]

    class Proposals(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone, self.rpn = Levels(), nn.Module()
            self.rpn.head = Head()

    detection = example("detection")
    model, x = detection.BackboneAndHead(Proposals().double()).eval(), torch.randn(1, 3, 16, 16).double()
    found = model(x)
    assert found["scores"].shape == (1, 3 * (64 + 16), 1)
    assert found["boxes"].shape == (1, 3 * (64 + 16), 4)
    explainer = fastlrp.Explainer(model, "gradient", output="scores")
    point = x.clone().requires_grad_()
    scores = model(point)["scores"]
    chosen = detection.strongest(scores, 2)
    assert scores[0, chosen[0][0], 0] == scores.max()
    relevance = explainer(x, chosen, initial="one", at="pairs")
    for k, (anchor, label) in enumerate(chosen):
        (expected,) = torch.autograd.grad(scores[0, anchor, label], point, retain_graph=True)
        torch.testing.assert_close(relevance[:, k], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
def test_demo(tmp_path, monkeypatch, capsys):
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    demo, out = example("demo"), tmp_path / "new" / "demo.png"
    monkeypatch.setattr(demo, "rates", partial(demo.rates, repeats=2))
    monkeypatch.setattr(sys, "argv", ["demo.py", "--out", str(out), "--composite", "epsilon_gamma_box"])
    assert demo.main() == 0
    printed = dict(re.findall(r"^ *(\S.*?)  +(\S.*)$", capsys.readouterr().out, re.M))
    # 98.3 to 99.2 % for the first three seeds.
    assert float(printed["accuracy on held-out digits"].split()[0]) > 97
    assert float(printed["largest error of a layer in float64"].split(",")[0]) < 1e-9
    assert float(printed["largest error of a digit's float32 maps"].split(",")[0]) < 1e-5
    assert printed["not accounted for"] == "0.0000 %"
    assert out.read_bytes().startswith(b"\x89PNG")
    assert 20_000 < out.stat().st_size < 200_000


@pytest.mark.slow
def test_relevance_of_text_is_at_the_words_that_decide(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    text = example("text")
    model, accuracy = text.train()
    assert accuracy > 0.98
    texts, labels = text.sentences(100, torch.Generator().manual_seed(99))
    for composite in ("attnlrp", "cp_lrp"):
        relevance = fastlrp.explain(model, text.ids_of(texts), {1: 1.0, 0: -1.0}, composite)[:, 0]
        pairs = [(row, text.deciding(words)) for row, words in zip(relevance, texts, strict=True)]
        assert sum(int(row.abs().argmax()) in places for row, places in pairs) >= 95  # 100 and 100
        shares = torch.stack([row[places].sum() for row, places in pairs])
        assert int(((shares > 0) == (labels == 1)).sum()) >= 95  # 100 and 100
    monkeypatch.setattr(text, "train", lambda: (model, accuracy))
    monkeypatch.setattr(sys, "argv", ["text.py", "--out", str(tmp_path)])
    text.main()
    assert "lovely[++]" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text.html", "text.png", "text_layers.png"]


def test_tutorial_on_digits(tmp_path, capsys):
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    found = example("tutorial").digits(tmp_path, 0, epochs=6)
    assert found["error"] < 0.1  # 0.03 to 0.05 for the first three seeds.
    relevance = found["relevance"]
    own = found["scores"].gather(1, found["classes"].unsqueeze(1))
    torch.testing.assert_close(relevance["output"].sum(2), own)
    # zB keeps nothing but what its 1e-9 does.
    torch.testing.assert_close(relevance["input"].sum(2), relevance["1"].sum(2), rtol=1e-4, atol=1e-4)
    assert (tmp_path / "tutorial_mlp.png").read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out.count("\n") > 12


@pytest.mark.slow
def test_tutorial_on_a_photograph(tmp_path, monkeypatch, capsys):
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    pytest.importorskip("PIL")
    found = example("tutorial").photograph(tmp_path, 0, None, None, 224)
    best = found["best"]
    assert float(found["score map"]) == pytest.approx(float(best.values[0]), rel=1e-4)
    assert [tuple(m.shape) for m in found["maps"].values()] == [(7, 7), (28, 28), (56, 56), (224, 224), (224, 224)]
    sums = [float(m.sum()) for m in found["maps"].values()]
    assert sums[0] == pytest.approx(float(best.values[0]), rel=1e-3)  # LRP-0, and biases are zero
    assert sums[2:] == pytest.approx([sums[2]] * 3, rel=1e-3)  # gamma and zB keep nothing
    assert 0 < sums[2] < sums[1] < sums[0]  # epsilon does
    assert (tmp_path / "tutorial_vgg.png").read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out.count("class ") >= 10


def test_tutorial_refuses_what_it_cannot_read(tmp_path, capsys):
    tutorial = example("tutorial")
    (tmp_path / "bad").write_text("hello")
    with pytest.raises(SystemExit, match=r"--weights .*bad is not a state_dict of VGG-16"):
        tutorial.load_weights(torch.nn.Linear(1, 1), tmp_path / "bad")
    pytest.importorskip("PIL")
    with pytest.raises(SystemExit, match=r"--image .*bad: cannot identify image file"):
        tutorial.load_image(tmp_path / "bad", 224)
    with pytest.raises(SystemExit):
        tutorial.main(["--larger", "100"])
    assert "--larger must be at least 224" in capsys.readouterr().err
