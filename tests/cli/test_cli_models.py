"""Where models and weights come from; nothing is downloaded."""

from __future__ import annotations

import hashlib
import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

import fastlrp
from fastlrp import io
from fastlrp.cli import hub, weights
from tests.cli.conftest import HERE, MODEL, files
from tests.cli.models import factory, grey
from tests.cli.test_cli_explain import loaded, pixels
from tests.torchvision_models import import_models

MODELS = HERE / "models.py"


def relevance(run, spec, source, out, *words):
    done = run("explain", spec, source, "-t", 1, "-f", "npy", "-o", out, *words)
    assert done.code == 0, done.err
    return torch.from_numpy(np.load(next(path for name, path in files(out).items() if name.endswith("_relevance.npy"))))


@pytest.mark.parametrize("kind", ["pth", "wrapped.pt", "safetensors"])
def test_weights_of_a_file(run, photos, tmp_path, kind):
    torch.manual_seed(77)
    model, path = factory().eval(), tmp_path / f"weights.{kind}"
    if kind == "safetensors":
        pytest.importorskip("safetensors.torch").save_file(model.state_dict(), path)
    elif kind == "pth":
        torch.save(model.state_dict(), path)
    else:  # As training scripts with torch.nn.DataParallel do.
        torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, path)
    found = relevance(run, MODEL, photos / "a.png", tmp_path / "out", "--weights", path)
    expected = fastlrp.Explainer(model)(pixels(photos / "a.png"), 1)
    torch.testing.assert_close(found[None], expected)


def test_nothing_in_a_file_of_weights_is_run(run, photos, tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "trapped",))

    torch.save({"0.weight": Trap()}, tmp_path / "trap.pth")
    done = run("explain", MODEL, photos / "a.png", "--weights", tmp_path / "trap.pth", "-o", tmp_path / "out")
    assert done.code == 2
    assert "loading those would run code from the file" in done.err
    assert not (tmp_path / "trapped").exists()


def test_the_digest_knows_every_weight():
    model = factory()
    before = weights.digest(model)
    assert before == weights.digest(model)
    with torch.no_grad():
        model[7].bias[3] += 1e-6
    assert weights.digest(model) != before


@pytest.mark.parametrize("dynamic", [True, False])
def test_an_exported_program(run, photos, tmp_path, dynamic):
    model, path = factory().eval(), tmp_path / "model.pt2"
    x = torch.rand(4, 3, 20, 24)
    shapes = ({0: torch.export.Dim("batch")},) if dynamic else None
    torch.export.save(torch.export.export(model, (x,), dynamic_shapes=shapes), path)
    out = tmp_path / "out"
    done = run("explain", path, photos, "-t", "all", "-f", "npz", "--layers", "3", "-o", out)
    assert done.code == 0, done.err
    assert ("exported for batches of 4" in done.err) == (not dynamic)
    for name in ("a.png", "more/e.bmp"):
        expected = fastlrp.Explainer(model)(pixels(photos / name), "all", layers=["3"])
        found = np.load(out / f"{name}_relevance.npz")
        np.testing.assert_allclose(found["relevance"], expected["input"][0], rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(found["relevance@3"], expected["3"][0], rtol=1e-4, atol=1e-7)
    wrong = run("explain", path, photos, "--resize", "8x8", "-o", tmp_path / "no")
    assert wrong.code == 2
    assert "is an input (3, 8, 8), the model takes (3, 20, 24)" in wrong.err


def test_an_exported_program_of_two_inputs(run, photos, tmp_path):
    class Two(torch.nn.Module):
        def forward(self, a, b):
            return a.flatten(1) + b.flatten(1)

    x = torch.rand(2, 3, 4, 4)
    torch.export.save(torch.export.export(Two(), (x, x)), tmp_path / "two.pt2")
    done = run("explain", tmp_path / "two.pt2", photos, "-o", tmp_path / "out")
    assert done.code == 2
    assert "takes 2 inputs, the command line explains models of one" in done.err


def test_a_program_that_was_exported_in_training_mode(run, photos, tmp_path):
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(), torch.nn.Linear(3 * 20 * 24, 2)).train()
    torch.export.save(torch.export.export(model, (torch.rand(2, 3, 20, 24),)), tmp_path / "model.pt2")
    done = run("explain", tmp_path / "model.pt2", photos, "-o", tmp_path / "out")
    assert done.code == 2
    assert "training mode" in done.err


def test_a_model_of_the_toolbox(run, tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(16, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3)).eval()
    io.write_model(model, tmp_path / "net.txt")
    x = torch.rand(2, 16)
    np.save(tmp_path / "x.npy", x)
    found = relevance(run, tmp_path / "net.txt", tmp_path / "x.npy", tmp_path / "out", "-c", "epsilon")
    torch.testing.assert_close(found.float(), fastlrp.Explainer(model, "epsilon")(x, 1)[0], rtol=1e-4, atol=1e-6)


def test_neighbours_of_a_model_file_can_be_imported(run, photos, tmp_path):
    (tmp_path / "neighbour_of_test.py").write_text("width = 4\n")
    (tmp_path / "made.py").write_text(
        "from torch import nn\nfrom neighbour_of_test import width\ndef make():\n"
        "    return nn.Sequential(nn.Conv2d(3, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())\n"
    )
    before = list(sys.path)
    assert run("explain", f"{tmp_path / 'made.py'}:make", photos / "a.png", "-o", tmp_path / "out").code == 0
    assert sys.path == before


def test_seed_of_random_weights(run, photos, tmp_path):
    maps = [
        relevance(run, MODEL, photos / "a.png", tmp_path / str(i), "--seed", seed) for i, seed in enumerate((1, 1, 2))
    ]
    assert torch.equal(maps[0], maps[1])
    assert not torch.equal(maps[0], maps[2])


# torchvision


@pytest.mark.slow
def test_torchvision_with_random_weights(run, photos, tmp_path):
    import_models()
    words = ["--classes", 7, "-f", "png", "--json"]
    done = run("explain", "torchvision:resnet18", photos / "a.png", "-t", "top2", "-o", tmp_path / "out", *words)
    assert done.code == 0, done.err
    assert (
        "note: random weights (seed 0): the maps mean nothing. Give --weights FILE, or one of resnet18@IMAGENET1K_V1"
        in done.err
    )
    assert max(target["class"] for target in done.lines[0]["targets"]) < 7
    told = run("explain", "torchvision:resnet18", photos / "a.png", "-t", "top2", "-o", tmp_path / "out", *words[:-1])
    assert (
        "ImageNet defaults: shorter side 256 (bilinear), crop 224x224, mean 0.485,0.456,0.406, std 0.229,0.224,0.225"
        in told.err
    )


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of PyTorch's, and no way to the network."""
    import socket

    def refuse(*args, **kwargs):
        raise AssertionError("fastlrp downloads nothing")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints"


@pytest.mark.slow
def test_weights_come_from_the_cache_only(run, photos, tmp_path, cache, monkeypatch):
    models = import_models()
    spec, words = "torchvision:mobilenet_v2@IMAGENET1K_V2", [photos / "a.png", "-t", "top1", "--json"]
    entry = models.get_model_weights("mobilenet_v2").IMAGENET1K_V2
    done = run("explain", spec, *words, "-o", tmp_path / "no")
    assert done.code == 2
    path = cache / entry.url.rpartition("/")[2]
    assert "are not in the local cache, and fastlrp downloads nothing" in done.err
    assert f"Get them with: curl -L --create-dirs -o {path} {entry.url}" in done.err
    cache.mkdir(parents=True)
    torch.manual_seed(5)
    model = models.mobilenet_v2(weights=None).eval()
    torch.save(model.state_dict(), path)
    damaged = run("explain", spec, *words, "-o", tmp_path / "no")
    assert damaged.code == 2
    assert "is damaged or incomplete (its SHA-256 does not begin with" in damaged.err
    # As if the file had the digest in its name.
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    renamed = path.with_name(f"mobilenet_v2-{digest[:8]}.pth")
    path.rename(renamed)
    monkeypatch.setattr(type(entry), "url", f"https://example.org/{renamed.name}", raising=False)
    found = run("explain", spec, *words, "-o", tmp_path / "out")
    assert found.code == 0, found.err
    target = found.lines[0]["targets"][0]
    assert target["name"] == entry.meta["categories"][target["class"]]
    from PIL import Image

    x = entry.transforms()(Image.open(photos / "a.png").convert("RGB"))[None]
    assert target["score"] == pytest.approx(float(model(x).max().detach()), rel=1e-4)


@pytest.mark.parametrize(
    ("spec", "words", "message"),
    [
        ("torchvision:resnet81", [], "torchvision has no classifier 'resnet81': it has, for example, resnet18"),
        ("torchvision:resnet18@V9", [], "torchvision's resnet18 has no weights 'V9': it has IMAGENET1K_V1, DEFAULT"),
        ("torchvision:resnet18@DEFAULT", ["--classes", "3"], "names its weights: leave --classes out"),
        ("resnet18", [], "did you mean torchvision:resnet18?"),
        ("torchvision:fcn_resnet50", [], "torchvision has no classifier 'fcn_resnet50'"),
        (MODEL, ["--classes", "3"], "--classes is for torchvision:NAME"),
    ],
)
def test_torchvision_that_is_not_there(run, photos, tmp_path, cache, spec, words, message):
    import_models()
    done = run("explain", spec, photos, "-o", tmp_path / "out", *words)
    assert done.code == 2
    assert message in done.err


def test_weights_for_another_number_of_classes(run, photos, tmp_path):
    models = import_models()
    torch.save(models.resnet18(weights=None, num_classes=3).state_dict(), tmp_path / "three.pth")
    words = [
        "explain",
        "torchvision:resnet18",
        photos / "a.png",
        "--weights",
        tmp_path / "three.pth",
        "-o",
        tmp_path / "out",
    ]
    done = run(*words)
    assert done.code == 2
    assert "2 of another shape (fc.weight (3, 512) for (1000, 512), fc.bias (3,) for (1000,))" in done.err
    assert "--classes" in done.err
    assert run(*words, "--classes", 3, "--crop", 64).code == 0


def test_without_torchvision(run, photos, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    done = run("explain", "torchvision:resnet18", photos, "-o", tmp_path / "out")
    assert done.code == 2
    assert "torchvision:NAME needs torchvision" in done.err
    assert "pip install torchvision" in done.err


# Hugging Face


@pytest.fixture
def folder(tmp_path):
    """A folder as ``save_pretrained`` leaves it, as far as fastlrp itself looks."""
    found = tmp_path / "hf"
    found.mkdir()
    (found / "config.json").write_text("{}")
    size = {"do_resize": True, "size": {"height": 12, "width": 14}, "resample": 2, "rescale_factor": 1 / 255}
    config = {"image_processor_type": "ViTImageProcessor", **size, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    (found / "preprocessor_config.json").write_text(json.dumps(config))
    return found


def test_a_folder_of_hugging_face(run, photos, tmp_path, folder, monkeypatch):
    """With a stand-in for transformers; the real one is used in the test below where it is installed."""

    class Classifier(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.body = factory()
            self.config = types.SimpleNamespace(id2label={0: "ant", 1: "bee"})

        def forward(self, pixel_values):
            return {"logits": self.body(pixel_values), "hidden_states": pixel_values}

    asked = []

    class Auto:
        @staticmethod
        def from_pretrained(path, **options):
            asked.append((path, options))
            return Classifier(), {"missing_keys": []}

    fake = types.ModuleType("transformers")
    fake.__spec__ = types.SimpleNamespace()
    fake.AutoModelForImageClassification = Auto
    logging = types.ModuleType("transformers.utils.logging")
    logging.disable_progress_bar = lambda: None
    monkeypatch.setitem(sys.modules, "transformers", fake)
    monkeypatch.setitem(sys.modules, "transformers.utils.logging", logging)
    monkeypatch.setattr(hub.importlib.util, "find_spec", lambda name: name == "transformers")
    done = run("explain", f"hf:{folder}", photos / "a.png", "-t", "1,2", "-f", "npy", "--json", "-o", tmp_path / "out")
    assert done.code == 0, done.err
    safe = {"trust_remote_code": False, "weights_only": True}
    assert asked == [(folder, {"local_files_only": True, "output_loading_info": True, **safe})]
    assert [target["name"] for target in done.lines[0]["targets"]] == ["bee", "2"]
    assert np.load(tmp_path / "out" / "a.png_relevance.npy").shape == (2, 3, 12, 14)


def test_without_transformers(run, photos, tmp_path, folder, monkeypatch):
    monkeypatch.setattr(hub.importlib.util, "find_spec", lambda name: None)
    done = run("explain", f"hf:{folder}", photos, "-o", tmp_path / "out")
    assert done.code == 2
    assert done.err == "error: hf:FOLDER needs transformers: pip install transformers\n"


def test_with_transformers(run, photos, tmp_path):
    pytest.importorskip("transformers")
    hub.torchvision_models()
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=3,
        id2label={0: "ant", 1: "bee", 2: "cat"},
    )  # fmt: skip
    model = ResNetForImageClassification(config).eval()
    model.save_pretrained(tmp_path / "hf")
    words = ["-t", "all", "-f", "npz", "--layers", "resnet.encoder.stages.0", "-o", tmp_path / "out", "--json"]
    done = run("explain", f"hf:{tmp_path / 'hf'}", photos / "a.png", *words)
    assert done.code == 0, done.err
    assert "has no preprocessor_config.json" in done.err
    assert [target["name"] for target in done.lines[0]["targets"]] == ["ant", "bee", "cat"]
    expected = fastlrp.Explainer(model, output="logits")(pixels(photos / "a.png"), "all")
    found = np.load(tmp_path / "out" / "a.png_relevance.npz")["relevance"]
    np.testing.assert_allclose(found, expected[0], rtol=1e-4, atol=1e-7)


def test_grey_images(run, photos, tmp_path):
    torch.manual_seed(0)
    spec = f"{MODELS}:grey"
    found = relevance(run, spec, photos / "a.png", tmp_path / "out", "--grey")
    assert found.shape == (1, 1, 20, 24)
    torch.testing.assert_close(found, fastlrp.Explainer(loaded(spec))(pixels(photos / "a.png", grey=True), 1)[0])
    assert grey()[0].in_channels == 1
