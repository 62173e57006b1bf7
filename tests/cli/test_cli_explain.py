"""``fastlrp explain``: the numbers are the explainer's, the pictures those of fastlrp.viz, the files the ones named."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

import fastlrp
from fastlrp import io, viz
from fastlrp.cli import models
from tests.cli.conftest import HERE, MODEL, files

NAMES = ["a.png", "b.jpg", "c.png", "d.jpg", "more/a.png", "more/e.bmp"]


def loaded(spec=MODEL, **more):
    options = {"model": spec, "weights": None, "classes": None, "seed": 0, "output": None, "device": "cpu"}
    return models.load({**options, "dtype": "float32", **more}).module


def pixels(path, grey=False):
    """``(1, C, H, W)`` in [0, 1]."""
    image = np.asarray(Image.open(path).convert("L" if grey else "RGB"), np.float32) / 255
    return torch.from_numpy(image[None] if grey else image.transpose(2, 0, 1).copy())[None]


def test_arrays_are_the_explainers_own(run, photos, tmp_path):
    out = tmp_path / "out"
    done = run("explain", MODEL, photos, "-o", out, "-f", "npy,npz", "-t", "top3", "--layers", "3,4", "--batch-size", 4)
    assert done.code == 0, done.err
    explainer = fastlrp.Explainer(loaded())
    x = torch.cat([pixels(photos / name) for name in NAMES])
    for start in (0, 4):  # The batches of the run: the numbers agree to the last bit.
        with explainer.forward(x[start : start + 4]) as record:
            expected = record.relevance("top3", layers=["3", "4"])
            classes = record.scores.topk(3).indices
        for i, name in enumerate(NAMES[start : start + 4]):
            found = np.load(out / f"{name}_relevance.npz")
            assert set(found) == {"classes", "scores", "relevance", "relevance@3", "relevance@4"}
            np.testing.assert_array_equal(found["relevance"], expected["input"][i])
            np.testing.assert_array_equal(found["relevance@3"], expected["3"][i])
            np.testing.assert_array_equal(found["classes"], classes[i])
            np.testing.assert_allclose(found["scores"], record.scores[i][classes[i]], rtol=1e-6)
            np.testing.assert_array_equal(np.load(out / f"{name}_relevance.npy"), expected["input"][i])
            np.testing.assert_array_equal(np.load(out / f"{name}_relevance@4.npy"), expected["4"][i])


def test_pictures_are_those_of_viz(run, photos, tmp_path):
    out = tmp_path / "out"
    look = {"cmap": "coldnhot", "normalize": "absolute", "zoom": 3}
    words = [f"--{name}={value}" for name, value in look.items()]
    done = run(
        "explain", MODEL, photos / "a.png", "-o", out, "-t", "4,1", "--layers", "0", "--overlay", "--plain", *words
    )
    assert done.code == 0, done.err
    assert list(files(out)) == [
        "a.png_1.png", "a.png_1@0.png", "a.png_1_overlay.png", "a.png_4.png", "a.png_4@0.png", "a.png_4_overlay.png",
    ]  # fmt: skip
    x = pixels(photos / "a.png")
    expected = fastlrp.Explainer(loaded())(x, [4, 1], layers=["0"], reduce="channels")
    for k, number in enumerate((4, 1)):
        picture = np.asarray(Image.open(out / f"a.png_{number}.png").convert("RGB"))
        np.testing.assert_array_equal(picture, np.asarray(viz.heatmap(expected["input"][0, k], **look)))
        hidden = np.asarray(Image.open(out / f"a.png_{number}@0.png").convert("RGB"))
        np.testing.assert_array_equal(hidden, np.asarray(viz.heatmap(expected["0"][0, k], **look)))
        over = viz.overlay(expected["input"][0, k], x[0], alpha="relevance", grey=True, **look)
        np.testing.assert_array_equal(np.asarray(Image.open(out / f"a.png_{number}_overlay.png")), np.asarray(over))


@pytest.mark.parametrize("normalize", ["symmetric", "absolute", "unaligned"])
@pytest.mark.parametrize("level", [None, 0.5])
def test_a_palette_has_the_colours_of_a_heatmap(normalize, level):
    from io import BytesIO

    from fastlrp.cli.drawing import Look

    if normalize == "unaligned":
        level = None
    values = np.random.default_rng(1).normal(size=(3, 13, 17))
    drawn = Image.open(BytesIO(Look("viridis", normalize, level).heatmap(values)))
    assert drawn.mode == "P"
    expected = viz.heatmap(values, cmap="viridis", normalize=normalize, level=level)
    np.testing.assert_array_equal(np.asarray(drawn.convert("RGB")), np.asarray(expected))


def test_files_of_a_folder_keep_their_places(run, photos, tmp_path):
    out = tmp_path / "out"
    done = run("explain", MODEL, photos, "-o", out, "--json")
    assert done.code == 0
    *lines, end = done.lines
    assert [line["input"] for line in lines] == [str(photos / name) for name in NAMES]
    assert end == {
        **end,
        "event": "end",
        "inputs": 6,
        "done": 6,
        "kept": 0,
        "failed": 0,
        "left": 0,
        "interrupted": False,
    }
    assert list(files(out)) == sorted(name for line in lines for name in line["files"])
    for name, line in zip(NAMES, lines, strict=True):
        number = line["targets"][0]["class"]
        assert line == {
            "event": "input", "input": str(photos / name), "sample": None, "status": "done", "error": None,
            "targets": [{"class": number, "name": str(number), "score": line["targets"][0]["score"]}],
            "files": [f"{name}_top1_{number}.png"],
        }  # fmt: skip


def test_odd_folders(run, photos, tmp_path):
    from PIL import Image

    odd = photos / "mit Leerzeichen" / "ünï%s{}"
    odd.mkdir(parents=True)
    Image.new("RGB", (9, 7), "blue").save(odd / "a [1].tar.PNG")
    Image.new("RGB", (9, 7), "blue").save(photos / ".hidden.png")
    (photos / "loop").symlink_to(photos, target_is_directory=True)
    (photos / "again").symlink_to(odd, target_is_directory=True)
    out = photos / "out"  # Inside of the folder that is searched.
    done = run("explain", MODEL, photos, "-o", out, "-t", 0, "--json")
    assert done.code == 0, done.err
    assert done.lines[-1]["done"] == 7
    assert "again/a [1].tar.PNG_0.png" in files(out)
    again = run("explain", MODEL, photos, "-o", out, "-t", 0, "--json")
    assert again.lines[-1]["kept"] == again.lines[-1]["inputs"] == 7


def test_same_names_from_different_places_stay_apart(run, photos, tmp_path):
    out = tmp_path / "out"
    assert run("explain", MODEL, photos / "a.png", photos / "more" / "a.png", "-o", out, "-t", 0).code == 0
    assert list(files(out)) == ["a.png_0.png", "a.png~2_0.png"]
    apart = tmp_path / "apart"
    assert run("explain", MODEL, photos / "more" / "a.png", "-o", apart, "-t", 0).code == 0
    before = files(apart)["a.png_0.png"].read_bytes()
    assert run("explain", MODEL, photos / "a.png", "-o", apart, "-t", 0).code == 0
    assert list(files(apart)) == ["a.png_0.png", "a.png~2_0.png"]
    assert files(apart)["a.png_0.png"].read_bytes() == before


def test_minimal_leaves_two_text_files(run, photos, tmp_path):
    out = tmp_path / "out"
    assert run("explain", MODEL, photos, "-o", out, "--minimal").code == 0
    expected = [f"{name}_{what}.txt" for name in NAMES for what in ("rawhm", "toptenscores")]
    assert sorted(files(out)) == sorted(expected)
    x = pixels(photos / "c.png")
    model = loaded()
    relevance = fastlrp.Explainer(model)(x, "top1")[0, 0]
    torch.testing.assert_close(io.read_raw_heatmap(out / "c.png_rawhm.txt"), relevance, rtol=1e-5, atol=1e-7)
    top = io.read_top_scores(out / "c.png_toptenscores.txt")
    scores = model(x)[0].detach()
    assert top.classes.tolist() == scores.argsort(descending=True).tolist()
    torch.testing.assert_close(top.scores, scores[top.classes])


def test_several_targets_in_text(run, photos, tmp_path):
    out = tmp_path / "out"
    assert run("explain", MODEL, photos / "a.png", "-o", out, "-f", "raw", "-t", "7,2").code == 0
    assert list(files(out)) == ["a.png_2_rawhm.txt", "a.png_7_rawhm.txt", "a.png_toptenscores.txt"]


def test_a_list_says_each_inputs_class(run, photos, tmp_path):
    listed, out = photos / "list.txt", tmp_path / "out"
    listed.write_text("# file class\na.png 3\n\nmore/a.png 9\nb.jpg 10\nc.png\nnosuch.png 1\n")
    done = run("explain", MODEL, "--list", listed, "-t", "class", "-o", out, "--json", "--plain")
    assert done.code == 1
    assert list(files(out)) == ["a.png_3.png", "more/a.png_9.png"]
    errors = {line["input"].rpartition("/")[2]: line["error"] for line in done.lines[:-1]}
    assert errors == {
        "a.png": None,
        "b.jpg": f"class 10 of {photos / 'b.jpg'} is out of range: the model has 10 classes, 0 to 9",
        "c.png": f"the list has no class for {photos / 'c.png'}: write PATH CLASS",
        "nosuch.png": f"line 7 of {listed}: there is no file 'nosuch.png'",
    }
    found = np.asarray(Image.open(out / "more" / "a.png_9.png").convert("RGB"))
    relevance = fastlrp.Explainer(loaded())(pixels(photos / "more" / "a.png"), 9, reduce="channels")
    np.testing.assert_array_equal(found, np.asarray(viz.heatmap(relevance[0, 0])))


def test_a_list_without_classes(run, photos, tmp_path):
    listed = tmp_path / "list.txt"
    listed.write_text(f"{photos}/a.png\n{photos}/b.jpg 4\n")
    done = run("explain", MODEL, "--list", listed, "-t", "2", "-o", tmp_path / "out")
    assert done.code == 0
    assert list(files(tmp_path / "out")) == ["a.png_2.png", "b.jpg_2.png"]


@pytest.mark.parametrize("kind", ["npy", "npz", "mat"])
def test_an_array_holds_many_samples(run, tmp_path, kind):
    x = torch.rand(12, 3, 10, 12)
    if kind == "mat":
        pytest.importorskip("scipy")
    source, out = tmp_path / f"x.{kind}", tmp_path / "out"
    io.write_array(x, source)
    done = run("explain", MODEL, source, "-o", out, "-t", 5, "-f", "npy")
    assert done.code == 0, done.err
    assert list(files(out)) == [f"x.{kind}_{i:02}_relevance.npy" for i in range(12)]
    expected = fastlrp.Explainer(loaded())(x, 5)
    for i in range(12):
        found = np.load(out / f"x.{kind}_{i:02}_relevance.npy")
        np.testing.assert_allclose(found, expected[i], rtol=1e-4, atol=1e-6)


def test_rows_of_text_are_samples(run, tmp_path):
    x = torch.rand(3, 16)
    io.write_array(x, tmp_path / "x.txt")
    out, spec = tmp_path / "out", f"{HERE / 'models.py'}:vectors"
    words = ["explain", spec, tmp_path / "x.txt", "-o", out, "-t", "all", "-c", "epsilon", "-f", "png,npy,raw"]
    refused = run(*words)
    assert refused.code == 2
    assert "--map-shape" in refused.err
    assert not out.exists()
    over = run(*words, "--map-shape", "4x4", "--overlay")
    assert over.code == 2
    assert "--overlay draws over pictures, and an input (16,) is none" in over.err
    assert run(*words, "--map-shape", "4x4", "--zoom", 2, "--plain").code == 0
    expected = fastlrp.Explainer(loaded(spec), "epsilon")(x, "all")
    found = np.load(out / "x.txt_1_relevance.npy")
    np.testing.assert_allclose(found, expected[1], rtol=1e-5, atol=1e-7)
    assert Image.open(out / "x.txt_1_2.png").size == (8, 8)
    assert io.read_raw_heatmap(out / "x.txt_1_0_rawhm.txt").shape == (1, 4, 4)


def test_sample_shape(run, tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random((4, 64)))
    out, spec = tmp_path / "out", f"{HERE / 'models.py'}:grey"
    assert run("explain", spec, tmp_path / "x.npy", "--sample-shape", "1,8,8", "-o", out).code == 0
    assert len(files(out)) == 4
    wrong = run("explain", spec, tmp_path / "x.npy", "--sample-shape", "1,9,9", "-o", tmp_path / "o2")
    assert wrong.code == 1
    assert "no whole number of samples of (1, 9, 9)" in wrong.err


def test_sum_channels_and_memory(run, photos, tmp_path):
    out, bounded = tmp_path / "out", tmp_path / "bounded"
    words = ["explain", MODEL, photos, "-t", "all", "-f", "npy"]
    assert run(*words, "--sum-channels", "-o", out).code == 0
    assert run(*words, "--max-memory", "100KB", "-o", bounded).code == 0
    for name in NAMES:
        summed, whole = (np.load(folder / f"{name}_relevance.npy") for folder in (out, bounded))
        assert summed.shape == (10, 20, 24)
        np.testing.assert_allclose(summed, whole.sum(1), rtol=1e-3, atol=1e-6)


def test_blocks_of_targets_are_put_together(run, photos, tmp_path, monkeypatch):
    from fastlrp.cli import engine

    whole, blocks = tmp_path / "whole", tmp_path / "blocks"
    words = ["explain", MODEL, photos, "-t", "all", "-f", "png,npz", "--batch-size", 2]
    assert run(*words, "-o", whole).code == 0
    monkeypatch.setattr(engine, "BLOCK_BYTES", 3 * 2 * 4 * 3 * 20 * 24)
    assert run(*words, "-o", blocks).code == 0
    assert files(whole).keys() == files(blocks).keys()
    for name in NAMES:
        a, b = (np.load(folder / f"{name}_relevance.npz")["relevance"] for folder in (whole, blocks))
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_labels_name_the_targets(run, photos, tmp_path):
    text, table = tmp_path / "names.txt", tmp_path / "names.json"
    text.write_text("\n".join(f"kind {i}" for i in range(10)) + "\n")
    table.write_text(json.dumps({str(i): f"Art {i} ü" for i in range(5)}))
    words = ["explain", MODEL, photos / "a.png", "-t", "all", "-o", tmp_path / "out", "--json"]
    names = [target["name"] for target in run(*words, "--labels", text).lines[0]["targets"]]
    assert names == [f"kind {i}" for i in range(10)]
    kept = run(*words, "--labels", table).lines[0]
    assert kept["status"] == "kept"
    assert [target["name"] for target in kept["targets"]] == [f"Art {i} ü" for i in range(5)] + list("56789")


def test_parameters_profile_and_initial(run, photos, tmp_path):
    def relevance(name, *words):
        assert run("explain", MODEL, photos / "a.png", "-t", 1, "-f", "npy", "-o", tmp_path / name, *words).code == 0
        return torch.from_numpy(np.load(tmp_path / name / "a.png_relevance.npy"))[None]

    x, model = pixels(photos / "a.png"), loaded()
    made = fastlrp.composites.preset("gamma", "tutorial", gamma=0.5, max_pool="ties")
    words = ["-c", "gamma", "-p", "gamma=0.5", "-p", "max_pool=ties", "--profile", "tutorial"]
    torch.testing.assert_close(relevance("gamma", *words), fastlrp.Explainer(model, made)(x, 1))
    plain = fastlrp.Explainer(model, "gradient")(x, 1, initial="one")
    torch.testing.assert_close(relevance("gradient", "-c", "gradient"), plain)
    box = fastlrp.composites.epsilon_gamma_box(low=-1.0, high=1.0)
    found = relevance("box", "-c", "epsilon_gamma_box", "--range", "-1,1")
    torch.testing.assert_close(found, fastlrp.Explainer(model, box)(2 * x - 1, 1))


def test_dtypes(run, photos, tmp_path):
    words = ["explain", MODEL, photos / "a.png", "-t", 1, "-f", "npy,png,raw", "-p", "stabilizer=0.01"]
    found = {}
    for dtype in ("float64", "float16", "bfloat16"):
        assert run(*words, "--dtype", dtype, "-o", tmp_path / dtype).code == 0
        found[dtype] = np.load(tmp_path / dtype / "a.png_relevance.npy")
    assert [str(values.dtype) for values in found.values()] == ["float64", "float16", "float32"]
    np.testing.assert_allclose(found["float16"], found["float64"], atol=0.02 * np.abs(found["float64"]).max())


def test_relevance_that_is_not_finite_is_no_result(run, photos, tmp_path):
    """One picture of a batch has infinite scores: it is named, the others are explained."""
    Image.new("RGB", (16, 16), "white").save(photos / "white.png")
    words = ["explain", f"{HERE / 'models.py'}:overflowing", photos, "-t", 1, "-f", "npy"]
    done = run(*words, "-o", tmp_path / "out")
    assert done.code == 1
    assert "white.png: the model's output is NaN or infinite" in done.err
    assert "linear (last)" in done.err or "mul (model)" in done.err
    names = [str(file) for file in files(tmp_path / "out")]
    assert any("a.png" in name for name in names)
    assert not any("white" in name for name in names)


def test_one_of_several_outputs(run, photos, tmp_path):
    spec = f"{HERE / 'models.py'}:two_outputs"
    words = ["explain", spec, photos / "a.png", "-t", 0, "--json", "-o", tmp_path / "out"]
    refused = run(*words)
    assert refused.code == 2
    assert "the model returns 2 tensors (logits, doubled): name one with --output" in refused.err
    score = run(*words, "--output", "doubled").lines[0]["targets"][0]["score"]
    assert score == pytest.approx(2 * float(loaded(spec)(pixels(photos / "a.png"))["logits"][0, 0].detach()), rel=1e-5)


def test_an_image_of_another_size_is_explained_too(run, photos, tmp_path):
    Image.new("RGB", (31, 17), "red").save(photos / "b2.png")
    done = run("explain", MODEL, photos, "-o", tmp_path / "out", "-t", 0, "--json", "--plain")
    assert done.code == 0
    assert [line["input"] for line in done.lines[:-1]] == [
        str(photos / name) for name in sorted([*NAMES[:4], "b2.png"])
    ] + [str(photos / name) for name in NAMES[4:]]
    assert Image.open(tmp_path / "out" / "b2.png_0.png").size == (31, 17)
