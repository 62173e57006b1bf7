"""Texts on the command line: tokenizers, targets by name, files, errors."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch

import fastlrp
from fastlrp.cli import hub, hub_text, text_targets
from fastlrp.cli.errors import Failure
from tests.cli import text_folders

TEXT = "the capital of france is"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    torch.manual_seed(0)
    base = tmp_path_factory.mktemp("hf")
    text_folders.language_model(base / "words")
    text_folders.classifier(base / "classes")
    text_folders.classifier(base / "masked", "BertForMaskedLM")
    text_folders.classifier(base / "tags", "BertForTokenClassification")
    return base


def lines(done):
    assert done.code == 0, done.err
    return [line for line in done.lines if line["event"] == "text"]


@pytest.mark.slow
def test_language_model_by_token_text(run, folders, tmp_path):
    out = tmp_path / "out"
    words = ["--text", TEXT, "-t", " paris, london, paris vs  london", "-f", "html,csv,npz", "-o", out, "--json"]
    (found,) = lines(run("explain", f"hf:{folders / 'words'}", *words))
    transformers = text_folders.transformers()
    model = transformers.AutoModelForCausalLM.from_pretrained(folders / "words").eval()
    ids = torch.tensor([found["ids"]])
    paris, london = (target["class"] for target in found["targets"][:2])
    assert [target["name"] for target in found["targets"]] == [" paris", " london", " paris − ␣london"]
    assert found["targets"][2]["class"] is None
    assert [target["at"] for target in found["targets"]] == [4, 4, 4]
    logits = model(ids).logits[0, -1].detach()
    for target, number in zip(found["targets"], (paris, london), strict=False):
        assert target["score"] == pytest.approx(float(logits[number]), abs=1e-5)
    asked = [paris, london, {paris: 1.0, london: -1.0}]
    mask = torch.ones_like(ids)
    inputs = {"input_ids": ids, "attention_mask": mask}
    expected = fastlrp.explain(model, inputs, asked, "attnlrp", output="logits", at=-1)["input_ids"][0]
    relevance = np.array([target["relevance"] for target in found["targets"]])
    np.testing.assert_allclose(relevance, expected, rtol=1e-4, atol=1e-7)
    rows = list(csv.DictReader((out / "texts.csv").open(encoding="utf-8")))
    assert len(rows) == 15
    np.testing.assert_allclose([float(row["relevance"]) for row in rows], relevance.ravel(), rtol=1e-6)
    assert [row["piece"] for row in rows[:5]] == ["the", "Ġcapital", "Ġof", "Ġfrance", "Ġis"]
    with np.load(out / "texts.npz") as arrays:
        np.testing.assert_allclose(arrays["relevance_1"], relevance, rtol=1e-6)
        assert list(arrays["tokens_1"]) == found["tokens"]
    page = (out / "texts.html").read_text()
    assert "&#9251;paris" in page
    assert "attnlrp" in page


@pytest.mark.slow
def test_each_next_token(run, folders, tmp_path):
    done = run("explain", f"hf:{folders / 'words'}", "--text", TEXT, "-t", "next", "-o", tmp_path, "--json")
    (found,) = lines(done)
    assert [target["name"] for target in found["targets"]] == [
        " capital at 0", " of at 1", " france at 2", " is at 3",
    ]  # fmt: skip
    relevance = np.array([target["relevance"] for target in found["targets"]])
    assert (np.triu(relevance, 1) == 0).all()  # Nothing behind a token explains it.


@pytest.mark.slow
def test_texts_of_a_file_are_padded_and_agree_with_each_alone(run, folders, tmp_path):
    file = tmp_path / "texts.txt"
    file.write_text(f"{TEXT}\n\nthe film was good\n", encoding="utf-8")
    words = [f"hf:{folders / 'classes'}", "-t", "positive,neutral vs negative", "-o", tmp_path / "out", "--json"]
    both = lines(run("explain", *words, "--text-file", file))
    assert [found["text"] for found in both] == [TEXT, "the film was good"]
    for found in both:
        (alone,) = lines(run("explain", *words, "--text", found["text"]))
        assert alone["tokens"] == found["tokens"]
        for one, other in zip(alone["targets"], found["targets"], strict=True):
            assert one["name"] == other["name"]
            assert one["score"] == pytest.approx(other["score"], abs=1e-5)
            np.testing.assert_allclose(one["relevance"], other["relevance"], rtol=1e-3, atol=1e-6)


@pytest.mark.slow
def test_masked_tokens_and_layers(run, folders, tmp_path):
    pytest.importorskip("matplotlib")
    words = ["--text", f"{TEXT} [MASK] .", "-t", "top2", "--layers", "bert.encoder.layer.0,bert.encoder.layer.1"]
    done = run("explain", f"hf:{folders / 'masked'}", *words, "-f", "html,npz,png,txt", "-o", tmp_path, "--json")
    (found,) = lines(done)
    assert [target["at"] for target in found["targets"]] == [6, 6]
    assert found["files"] == ["texts.html", "texts.npz", "texts.png", "texts.txt", "layers_1.png"]
    with np.load(tmp_path / "texts.npz") as arrays:
        assert arrays["relevance_1@bert.encoder.layer.1"].shape == (2, 9)
    assert "data:image/png;base64," in (tmp_path / "texts.html").read_text()


@pytest.mark.slow
def test_text_for_people_and_the_report(run, folders, tmp_path):
    model = f"hf:{folders / 'tags'}"
    done = run("explain", model, "--text", TEXT, "-t", "all", "--at", "1,-2", "--words", "-o", tmp_path)
    assert done.code == 0, done.err
    assert "negative at 1   score" in done.out
    assert "positive at 5   score" in done.out
    assert "speaks for the target" in done.out
    assert "composite  attnlrp()" in done.err
    done = run(
        "report", model, "--text", TEXT, "--at", "1", "-o", tmp_path / "r.html", "--title", "<b>", "-c", "epsilon"
    )
    assert done.code == 0, done.err
    page = (tmp_path / "r.html").read_text()
    assert "<h1>&lt;b&gt;</h1>" in page
    assert "Where the score went" in page
    assert "epsilon()" in page
    assert page.count('class="number"') == 18  # Three targets, six numbers each.


@pytest.mark.slow
def test_what_fails_does_not_stop_the_others(run, folders, tmp_path):
    words = ["--text", "the film", "--text", "the " * 40, "--text", "  ", "-o", tmp_path]
    done = run("explain", f"hf:{folders / 'classes'}", *words)
    assert done.code == 1
    assert "text 2 has 42 tokens, the model takes at most 24: shorten it" in done.err
    assert "text 3 is empty" in done.err
    assert "text 1" in done.out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "words", "code", "says"),
    [
        ("words", ["--text", ""], 1, "the text is empty"),
        ("words", ["--text", TEXT, "-t", " parsi"], 2, "' parsi' is no token of the vocabulary"),
        ("words", ["--text", TEXT, "-t", " paris vs  paris"], 2, "sets a target against itself"),
        ("words", ["--text", TEXT, "-t", "99999"], 2, "99999 is out of range: the model scores"),
        ("words", ["--text", TEXT, "-t", "a,,b"], 2, "has an empty entry"),
        ("words", ["--text", TEXT, "--at", "9"], 1, "has 5 tokens, 0 to 4: --at 9 is out of range"),
        ("words", ["--text", TEXT, "--at", "last"], 2, "'last' is not a list of positions"),
        ("words", ["--text", TEXT, "--layers", "h"], 2, "h"),
        ("words", ["--text", TEXT, "--overlay"], 2, "--overlay is for images and arrays"),
        ("words", ["--text", TEXT, "-f", "npy"], 2, "unknown 'npy', expected for texts some of html, csv"),
        ("words", ["--text", TEXT, "x.png"], 2, "leave INPUTS and --list out"),
        ("words", ["--text-file", "nosuch"], 2, "--text-file: there is no file 'nosuch'"),
        (
            "classes",
            ["--text", TEXT, "-t", "postive"],
            2,
            "has no label 'postive': did you mean 'negative', 'positive'?",
        ),
        ("classes", ["--text", TEXT, "-t", "next"], 2, "next is for language models"),
        ("classes", ["--text", TEXT, "--at", "0"], 2, "--at is for models that score each token"),
        ("classes", ["x.png", "--words"], 2, "--words is for texts: give some with --text or --text-file"),
        ("masked", ["--text", TEXT], 1, "has no masked token: write [MASK] in it, or say with --at"),
    ],
)
def test_errors(run, folders, tmp_path, model, words, code, says):
    done = run("explain", f"hf:{folders / model}", *words, "-o", tmp_path / "out")
    assert done.code == code, done.err
    assert says in done.err


@pytest.mark.slow
def test_folders_that_hold_no_model_of_texts(run, folders, tmp_path, monkeypatch):
    def explain(folder):
        return run("explain", f"hf:{folder}", "--text", TEXT, "-o", tmp_path / "out").err

    for name in ("empty", "bare", "vision", "python"):
        (tmp_path / name).mkdir()
    assert "there is no config.json in it" in explain(tmp_path / "empty")
    (tmp_path / "vision" / "config.json").write_text('{"architectures": ["ViTForImageClassification"]}')
    assert "--text takes classifiers of texts" in explain(tmp_path / "vision")
    for folder, architectures in (("bare", ["BertForMaskedLM"]), ("python", ["OwnForCausalLM"])):
        config = {"architectures": architectures, "model_type": "bert" if folder == "bare" else "own"}
        config["auto_map"] = {} if folder == "bare" else {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}
        (tmp_path / folder / "config.json").write_text(json.dumps(config))
    assert "there is no tokenizer in it" in explain(tmp_path / "bare")
    (tmp_path / "python" / "tokenizer.json").write_text("{}")
    (tmp_path / "python" / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass C: pass\nclass M: pass\n")
    assert "transformers cannot load OwnForCausalLM" in explain(tmp_path / "python")
    assert not (tmp_path / "ran").exists()
    monkeypatch.setattr(hub.importlib.util, "find_spec", lambda name: None)
    assert explain(folders / "words") == "error: hf:FOLDER needs transformers: pip install transformers\n"


@pytest.mark.slow
def test_pickled_weights_need_trust(run, folders, tmp_path):
    transformers = text_folders.transformers()
    model = transformers.AutoModelForCausalLM.from_pretrained(folders / "words")
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / file).write_bytes((folders / "words" / file).read_bytes())
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    words = ["--text", TEXT, "-o", tmp_path / "out"]
    assert "safetensors" in run("explain", f"hf:{tmp_path}", *words).err
    assert run("explain", f"hf:{tmp_path}", *words, "--trust").code == 0


def test_other_models_have_no_tokenizer(run):
    assert (
        "--text needs a model with a tokenizer, hf:FOLDER" in run("explain", "torchvision:resnet18", "--text", "a").err
    )


def test_commas_quotes_and_numbers_of_targets():
    class Reader:
        scores, marks = "words", "none"

        def __init__(self):
            self.vocabulary = {",": 0, "7": 1, "good": 2}

        def name(self, number):
            return list(self.vocabulary)[number]

        def id_of(self, text):
            return self.vocabulary.get(text), [text]

    reader: hub_text.TextReader = Reader()
    assert text_targets.read('",","7",2,good', reader, None, 3) == [0, 1, 2, 2]
    assert text_targets.read("good vs 0", reader, None, 3) == [{2: 1.0, 0: -1.0}]
    assert text_targets.read("top3", reader, None, 3) == "top3"
    with pytest.raises(Failure, match="near are 'good'"):
        text_targets.read("goood", reader, None, 3)


@pytest.mark.slow
def test_the_first_token_that_an_encoder_and_decoder_answer(run, tmp_path):
    torch.manual_seed(0)
    folder = text_folders.encoder_decoder(tmp_path / "t5")
    words = ["--text", "the film was good", "-t", "top2", "-o", tmp_path / "out", "--json"]
    (found,) = lines(run("explain", f"hf:{folder}", *words))
    model = text_folders.transformers().AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    ids = torch.tensor([found["ids"]])
    logits = model(input_ids=ids, decoder_input_ids=torch.zeros_like(ids[:, :1])).logits[0, 0].detach()
    best = logits.topk(2)
    assert [target["class"] for target in found["targets"]] == best.indices.tolist()
    assert [target["score"] for target in found["targets"]] == pytest.approx(best.values.tolist(), rel=1e-4)
    assert len(found["targets"][0]["relevance"]) == len(found["tokens"])
    refused = run("explain", f"hf:{folder}", *words, "--at", "0")
    assert (refused.code, "--at is for models that score each token" in refused.err) == (2, True)


@pytest.mark.slow
def test_where_an_answer_begins_and_ends(run, tmp_path):
    torch.manual_seed(0)
    folder = text_folders.classifier(tmp_path / "qa", "BertForQuestionAnswering")
    words = ["--text", "capital of france", "--context", "paris is the capital", "-o", tmp_path / "out", "--json"]
    model = text_folders.transformers().AutoModelForQuestionAnswering.from_pretrained(folder).eval()
    for output in ("start_logits", "end_logits"):
        (found,) = lines(run("explain", f"hf:{folder}", *words, "-t", "top1", "--output", output, "--json"))
        assert len(found["tokens"]) > 7
        ids = torch.tensor([found["ids"]])
        scores = getattr(model(ids, torch.ones_like(ids)), output)[0].detach()
        (target,) = found["targets"]
        assert target["class"] == int(scores.argmax())
        assert target["name"].endswith(f" at {target['class']}")
    for more, message in (
        (words[:2], "with --context"),
        ([*words, "-t", "paris"], "the targets are tokens of the text"),
    ):
        done = run("explain", f"hf:{folder}", *more)
        assert (done.code, message in done.err) == (2, True), done.err
    done = run("explain", f"hf:{text_folders.classifier(tmp_path / 'c')}", *words)
    assert "--context is for models that answer questions" in done.err
