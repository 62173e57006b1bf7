"""``MODEL`` on the command line: which model is meant, and what it brings along."""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import modulefinder
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastlrp.cli import archive, hub, hub_text, weights
from fastlrp.cli.errors import Failure, one_line
from fastlrp.cli.preprocess import Preprocessing

DTYPES = {
    "float32": torch.float32, "float64": torch.float64, "float16": torch.float16, "bfloat16": torch.bfloat16,
}  # fmt: skip
FORMS = (
    "torchvision:NAME, torchvision:NAME@WEIGHTS, hf:FOLDER, FILE.py:FACTORY, FILE.pt2 (torch.export.save), "
    "or a Toolbox file (.txt, .nn)"
)
_TOOLBOX = (".txt", ".nn", ".pickle", ".pickled", ".pkl")


@dataclass
class Loaded:
    """A model in evaluation mode, and what is known of it.

    Attributes:
        about: for people. facts: what distinguishes it from other models, without its weights.
        preprocessing: its own, if it has any. labels: names of its classes.
        output: which output to explain. batch: the only batch size that it takes. shape: the only shape of a sample.
        reader: its tokenizer, if it was asked for texts. notes: what a user should know.
    """

    module: nn.Module
    about: str
    facts: dict[str, Any] = field(default_factory=dict)
    preprocessing: Preprocessing | None = None
    labels: Mapping[int, str] | None = None
    output: str | None = None
    batch: int | None = None
    shape: tuple[int, ...] | None = None
    notes: list[str] = field(default_factory=list)
    reader: hub_text.TextReader | None = None


def load(options: dict[str, Any]) -> Loaded:
    """The model that the options name, with its weights, on its device, in its dtype.

    Raises:
        Failure: says what was expected. ImportError: names the package that is missing.
    """
    device = _device(options["device"])
    found = _find(options["model"], bool(options.get("text") or options.get("text_file")))(options)
    if options["classes"] is not None and not options["model"].startswith("torchvision:"):
        raise Failure("--classes is for torchvision:NAME: other models know their number of classes")
    if options["weights"] is not None:
        weights.load(found.module, Path(options["weights"]))
        found.about += f", weights of {options['weights']}"
    found.module = found.module.to(device, DTYPES[options["dtype"]])
    if options["dtype"] != "float32":
        found.about += f", {options['dtype']}"
    found.output = options["output"] if options["output"] is not None else found.output
    found.facts |= {"model": options["model"], "output": found.output, "dtype": options["dtype"]}
    found.facts["structure"] = weights.structure(found.module)
    return found


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise Failure(f"--device {name}: there is no device of that name, expected cpu, cuda or cuda:1") from None
    if device.type == "meta":
        raise Failure(f"--device {name}: it has no numbers to explain; --device cpu is always there")
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        if device.type == "cuda" and not torch.cuda.is_available():
            why = "this PyTorch is built without CUDA" if torch.version.cuda is None else "there is no GPU here"
        elif device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            why = f"the GPUs are cuda:0 to cuda:{torch.cuda.device_count() - 1}"
        else:
            why = f"this PyTorch cannot use it ({type(error).__name__})"
        raise Failure(f"--device {name}: {why}; --device cpu is always there") from error
    return device


def _find(spec: str, of_text: bool) -> Callable[[dict[str, Any]], Loaded]:
    if of_text and not spec.startswith("hf:"):
        raise Failure(f"--text needs a model with a tokenizer, hf:FOLDER, got {spec!r}")
    if spec.startswith("torchvision:"):
        return lambda options: Loaded(**hub.torchvision(spec.partition(":")[2], options))
    if spec.startswith("hf:") and of_text:
        return lambda options: Loaded(**hub_text.load(Path(spec.partition(":")[2]), options["trust"]))
    if spec.startswith("hf:"):
        return lambda options: Loaded(**hub.huggingface(Path(spec.partition(":")[2])))
    if re.search(r"\.py:[^/\\:]*$", spec):
        path, _, name = spec.rpartition(":")
        return lambda options: _factory(Path(path), name, options["seed"])
    path_of, kind = Path(spec), Path(spec).suffix.lower()
    if kind in (".pt2", *_TOOLBOX):
        if not path_of.is_file():
            raise Failure(f"there is no model file {spec!r}")
        return lambda options: _program(path_of, options.get("trust", False)) if kind == ".pt2" else _toolbox(path_of)
    raise Failure(f"unknown model {spec!r}: {_hint(path_of, kind)}")


def _hint(path: Path, kind: str) -> str:
    if kind == ".py":
        return f"name the function in it that makes the model, {path}:FACTORY"
    if kind in (".pt", ".pth") and weights.is_torchscript(path):
        return (
            "that is a TorchScript program (torch.jit.save), which cannot be explained: name the Python model that it "
            "was made from, file.py:FACTORY, or export it with torch.export.save as .pt2"
        )
    if kind in (".pt", ".pth", ".safetensors", ".bin"):
        return f"that is a file of weights; name the model first, such as torchvision:resnet18 --weights {path}"
    if path.is_dir():
        return f"for a Hugging Face folder write hf:{path}"
    if re.fullmatch(r"\w+", str(path)) and hub.has_torchvision(str(path)):
        return f"did you mean torchvision:{path}?"
    return f"expected {FORMS}"


def _factory(path: Path, name: str, seed: int) -> Loaded:
    """The model that a function of a Python file returns. The file is a program: it is run, whatever it does."""
    if not path.is_file():
        raise Failure(f"there is no file {str(path)!r}")
    spec = importlib.util.spec_from_file_location(f"fastlrp_model_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # Dataclasses and pickles look their module up.
    sys.path.insert(0, str(path.resolve().parent))  # The file may import its neighbours.
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            spec.loader.exec_module(module)
            make = getattr(module, name, None)
            if not callable(make) and not isinstance(make, nn.Module):
                raise Failure(f"{path} has no function {name!r}: it has {', '.join(_functions(module)) or 'none'}")
            model = make if isinstance(make, nn.Module) else make()
    except (Failure, KeyboardInterrupt):
        raise
    except BaseException as error:  # Whatever the user's code raises, SystemExit too.
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if Path(f.filename) == path]
        where = f"{path}, line {lines[-1]}" if lines else str(path)
        raise Failure(f"{where}: {type(error).__name__}: {' '.join(str(error).split())}") from error
    finally:
        sys.path.remove(str(path.resolve().parent))
    if not isinstance(model, nn.Module):
        raise Failure(f"{path}:{name} returned {type(model).__name__}, expected a torch.nn.Module")
    code = hashlib.sha256(path.read_bytes())
    for neighbour in _neighbours(path.resolve()):
        code.update(neighbour.read_bytes())
    return Loaded(model.eval(), f"{path}:{name} ({type(model).__name__})", {"code": code.hexdigest()[:16]})


def _neighbours(path: Path) -> list[Path]:
    """The files in the folder of a model's file, and below it, that it imports, or that those import.

    By what stands in them, so that it does not matter what this process has imported before.
    """
    finder = modulefinder.ModuleFinder(path=[str(path.parent)])
    finder.run_script(str(path))
    files = (getattr(module, "__file__", None) for module in finder.modules.values())
    found = {Path(file).resolve() for file in files if file is not None}
    return sorted(file for file in found - {path} if file.suffix == ".py")


def _functions(module: Any) -> list[str]:
    return [k for k, v in vars(module).items() if callable(v) and getattr(v, "__module__", "") == module.__name__][:8]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without PyTorch's warnings about its own calls, and its log, in which one message has a wrong format."""
    logger = logging.getLogger("torch._export.serde.serialize")
    before, logger.disabled = logger.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = before


def _program(path: Path, trust: bool) -> Loaded:
    """A saved ``torch.export`` program, with the module paths that it was exported with.

    Unless the file is trusted, nothing in it is run: see :mod:`fastlrp.cli.archive`.
    """
    try:
        with _quiet():
            program = torch.export.load(path if trust else archive.repacked(path))
            # Flat, a program has lost the paths that --layers and composites speak of.
            model = torch.export.unflatten(program)
    except archive.Refused as error:
        raise Failure(
            f"{path} is not loaded, because that could run code from the file: {error}. If you know who made the file "
            "and trust them, say --trust"
        ) from error
    except Exception as error:  # Damage shows as whatever torch.export meets first.
        raise Failure(
            f"{path} is no program of torch.export.save that PyTorch {torch.__version__} reads: {one_line(error)[:200]}"
        ) from error
    inputs = [n for n in program.graph.nodes if n.name in program.graph_signature.user_inputs]
    if len(inputs) != 1:
        raise Failure(f"{path} takes {len(inputs)} inputs, the command line explains models of one: use the library")
    sizes = inputs[0].meta["val"].shape
    batch, shape = sizes[0], tuple(sizes[1:])
    fixed = None if isinstance(batch, torch.SymInt) else int(batch)
    known = shape if all(isinstance(n, int) for n in shape) else None
    notes = [] if fixed is None else [
        f"the program was exported for batches of {fixed}: all run as such, which wastes work for fewer; export it "
        f"with dynamic_shapes to avoid that"
    ]  # fmt: skip
    return Loaded(model, f"{path} (exported program)", batch=fixed, shape=known, notes=notes)


def _toolbox(path: Path) -> Loaded:
    from fastlrp import io

    model = io.read_model(path)
    return Loaded(model.eval(), f"{path} (LRP Toolbox, {len(list(model.children()))} layers)")
