"""Models of torchvision, and of transformers from a local folder. Nothing is ever downloaded."""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import json
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from fastlrp.cli import metadata, texts
from fastlrp.cli.errors import Failure, one_line
from fastlrp.cli.preprocess import IMAGENET

OF_TEXTS = {
    "ForSequenceClassification": ("AutoModelForSequenceClassification", "classes"),
    "ForTokenClassification": ("AutoModelForTokenClassification", "tags"),
    "ForMaskedLM": ("AutoModelForMaskedLM", "masked"),
    "ForCausalLM": ("AutoModelForCausalLM", "words"),
    "LMHeadModel": ("AutoModelForCausalLM", "words"),
    "ForConditionalGeneration": ("AutoModelForSeq2SeqLM", "first"),
    "ForQuestionAnswering": ("AutoModelForQuestionAnswering", "spans"),
}
"""Ends of the names of architectures that explain texts: transformers' class that loads them, and what they score."""

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def torchvision_models() -> ModuleType:
    """``torchvision.models``.

    Beside a PyTorch that it was not built for, torchvision's own operators do not load, and it registers shape
    functions for two that are then missing. Classifiers call neither, so that their schemas are enough.

    Raises:
        ImportError: if torchvision is not installed, or does not load for another reason.
    """
    try:
        return import_module("torchvision.models")
    except RuntimeError as error:
        if "does not exist" not in str(error):
            raise ImportError(f"torchvision does not load beside PyTorch {torch.__version__}: {error}") from error
    except ImportError as error:
        raise ImportError(f"torchvision:NAME needs torchvision ({error}): pip install torchvision") from error
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            torch.library.define(f"torchvision::{name}", _SCHEMA)
    try:
        return import_module("torchvision.models")
    except RuntimeError as error:
        raise ImportError(f"torchvision does not load beside PyTorch {torch.__version__}: {error}") from error


def has_torchvision(name: str) -> bool:
    """Whether torchvision is there and has a classifier of this name."""
    try:
        return name in _classifiers(torchvision_models())
    except ImportError:
        return False


def _classifiers(models: ModuleType) -> list[str]:
    found: list[str] = models.list_models(module=models)
    return found


def torchvision(spec: str, options: dict[str, Any]) -> dict[str, Any]:
    """``NAME`` with random weights, or ``NAME@WEIGHTS`` from the local cache.

    Raises:
        Failure: for an unknown name, or weights that are not in the cache (says how to get them).
    """
    name, _, entry = spec.partition("@")
    models, classes = torchvision_models(), options["classes"]
    known = _classifiers(models)
    if name not in known:
        close = difflib.get_close_matches(name, known, 4) or known[:6]
        raise Failure(f"torchvision has no classifier {name!r}: it has, for example, {', '.join(close)}")
    if entry and (options["weights"] is not None or classes is not None):
        raise Failure(f"{spec} names its weights: leave {'--weights' if options['weights'] else '--classes'} out")
    # These two draw their weights one truncated normal at a time, which takes half a minute.
    extra = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    with torch.random.fork_rng(), _quiet():
        torch.manual_seed(options["seed"])
        model = models.get_model(name, weights=None, **extra, **({} if classes is None else {"num_classes": classes}))
    found: dict[str, Any] = {"module": model.eval(), "about": f"torchvision:{spec}", "preprocessing": IMAGENET}
    if entry:
        chosen = _weights(models, name, entry)
        model.load_state_dict(_cached(chosen, name, entry))
        found["preprocessing"] = metadata.of_torchvision(chosen.transforms(), f"torchvision:{spec}")
        found["labels"] = dict(enumerate(chosen.meta.get("categories", ())))
    elif options["weights"] is None:
        found["notes"] = [
            f"random weights (seed {options['seed']}): the maps mean nothing. Give --weights FILE, or one of "
            f"{', '.join(f'{name}@{w.name}' for w in models.get_model_weights(name))}"
        ]
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings of models that are made in order to be filled."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _weights(models: ModuleType, name: str, entry: str) -> Any:
    known = list(models.get_model_weights(name))
    found = [w for w in known if w.name == entry.partition(".")[2] or w.name == entry]
    if entry == "DEFAULT":
        found = [models.get_model_weights(name).DEFAULT]
    if not found:
        raise Failure(
            f"torchvision's {name} has no weights {entry!r}: it has {', '.join(w.name for w in known)}, DEFAULT"
        )
    return found[0]


def _cached(chosen: Any, name: str, entry: str) -> Any:
    """The weights of a file in PyTorch's cache, checked against the digest in its name."""
    file = str(chosen.url).rpartition("/")[2]
    path = Path(torch.hub.get_dir()) / "checkpoints" / file
    get = f"curl -L --create-dirs -o {path} {chosen.url}"
    if not path.is_file():
        raise Failure(
            f"the weights {name}@{entry} are not in the local cache, and fastlrp downloads nothing. Get them with: "
            f"{get} (or give a file of your own, --weights FILE)"
        )
    digest = re.search(r"-([0-9a-f]{8,})\.pth$", file)
    if digest is not None and not hashlib.sha256(path.read_bytes()).hexdigest().startswith(digest[1]):
        raise Failure(
            f"{path} is damaged or incomplete (its SHA-256 does not begin with {digest[1]}): get it again with: {get}"
        )
    return torch.load(path, map_location="cpu", weights_only=True)


def open_folder(folder: Path) -> ModuleType:
    """transformers, ready to load from a folder that ``save_pretrained`` made, offline and quiet.

    Raises:
        Failure: if the folder is not there or is no such folder. ImportError: without transformers.
    """
    if not folder.is_dir():
        raise Failure(
            f"hf:{folder}: there is no such folder. fastlrp downloads nothing: get the model first (hf download NAME "
            f"--local-dir FOLDER), and name that folder"
        )
    config = folder / "config.json"
    if not config.is_file():
        raise Failure(f"hf:{folder}: there is no config.json in it, so it is no folder of save_pretrained")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if importlib.util.find_spec("transformers") is None:
        raise ImportError("hf:FOLDER needs transformers: pip install transformers")
    if importlib.util.find_spec("torchvision") is not None:
        torchvision_models()  # transformers imports it too, and would meet what is settled here.
    import_module("transformers.utils.logging").disable_progress_bar()
    return import_module("transformers")


def architecture(folder: Path) -> str:
    """The class that the folder's ``config.json`` names, as text; empty if it names none."""
    try:
        found = json.loads(texts.read(folder / "config.json"))["architectures"][0]
    except (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError):
        return ""
    return found if isinstance(found, str) else ""


def is_of_texts(name: str) -> bool:
    """Whether an architecture of this name scores texts."""
    return name.endswith(tuple(OF_TEXTS))


def huggingface(folder: Path) -> dict[str, Any]:
    """An image classifier from a folder that ``save_pretrained`` made.

    Raises:
        Failure: if the folder is not there or does not hold an image classifier. ImportError: without transformers.
    """
    transformers = open_folder(folder)
    try:
        auto = transformers.AutoModelForImageClassification
        # Neither Python files of the folder nor what a pickle of weights may name are run.
        model, loading = auto.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, weights_only=True, output_loading_info=True
        )
    except Exception as error:  # Everything from a missing file to an architecture that is no classifier.
        hint = " (for a model of texts give --text or --text-file)" if is_of_texts(architecture(folder)) else ""
        raise Failure(
            f"hf:{folder}: transformers cannot load an image classifier from it{hint}: {one_line(error)}"
        ) from error
    missing = sorted(loading.get("missing_keys", ()))
    if missing:
        raise Failure(
            f"hf:{folder}: the folder has no weights for {', '.join(missing[:6])}: it is no trained classifier"
        )
    labels = {int(number): str(name) for number, name in (model.config.id2label or {}).items()}
    found = {
        "module": model.eval(), "about": f"hf:{folder} ({type(model).__name__})", "output": "logits", "labels": labels,
        "preprocessing": metadata.of_huggingface(folder),
    }  # fmt: skip
    if found["preprocessing"] is None:
        found["notes"] = [f"{folder} has no preprocessor_config.json: pixels go in as --resize, --mean, … say"]
    return found
