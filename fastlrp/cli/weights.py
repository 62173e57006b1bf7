"""Weights from a file: ``.pt`` and ``.pth`` without running anything in them, ``.safetensors``."""

from __future__ import annotations

import hashlib
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastlrp.cli.errors import Failure, need

WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Under which of these keys training scripts put the weights, beside the optimizer's state and others."""

_SHOWN = 6


def _is_stored(path: Path) -> bool:
    """Whether an archive of tensors unpacks to no more than it is: a few compressed megabytes could be gigabytes."""
    if not zipfile.is_zipfile(path):
        return True
    try:
        with zipfile.ZipFile(path) as archive:
            return sum(member.file_size for member in archive.infolist()) <= path.stat().st_size
    except (zipfile.BadZipFile, OSError):  # Told by torch.load.
        return True


def read(path: Path) -> dict[str, Tensor]:
    """Names and tensors of a file of weights.

    Raises:
        Failure: for a missing or damaged file, another format, or one that holds more than tensors.
    """
    if not path.is_file():
        raise Failure(f"--weights: there is no file {str(path)!r}")
    kind = path.suffix.lower()
    if kind == ".safetensors":
        load = need("safetensors.torch", "safetensors").load_file
        try:
            return dict(load(str(path)))
        except Exception as error:  # safetensors has one exception type, made in Rust.
            raise Failure(f"--weights: {path} is no whole safetensors file: {' '.join(str(error).split())}") from error
    if kind not in (".pt", ".pth", ".bin"):
        raise Failure(f"--weights: {path.name!r} ends in {kind or 'nothing'}: expected .pt, .pth or .safetensors")
    if is_torchscript(path):
        raise Failure(
            f"--weights: {path} is a TorchScript program (torch.jit.save), not weights: save those of the model it was "
            "made from, torch.save(model.state_dict(), …), or the program with torch.export.save as .pt2"
        )
    if not _is_stored(path):
        raise Failure(f"--weights: {path} is a compressed archive, which torch.save does not write: save it again")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise Failure(
            f"--weights: {path} holds Python objects beside tensors, and loading those would run code from the file: "
            f"save the weights alone, torch.save(model.state_dict(), …)"
        ) from error
    except Exception as error:  # Damage shows as whatever torch.load meets first.
        raise Failure(
            f"--weights: {path} is no whole file of torch.save: {' '.join(str(error).split())[:200]}"
        ) from error
    return _unwrapped(found, path)


def _unwrapped(found: Any, path: Path) -> dict[str, Tensor]:
    whole = found
    for key in WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
            break
    else:
        inner = [value for value in found.values() if _is_weights(value)] if isinstance(found, Mapping) else []
        if len(inner) == 1 and not _is_weights(found):
            found = inner[0]
    if not isinstance(found, Mapping) or not found or not all(isinstance(value, Tensor) for value in found.values()):
        raise Failure(f"--weights: {path} holds no state_dict (names and tensors), but {_contents(whole)}")
    # torch.nn.DataParallel puts this before every name.
    if all(name.startswith("module.") for name in found):
        return {name.removeprefix("module."): value for name, value in found.items()}
    return dict(found)


def _is_weights(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(isinstance(v, Tensor) for v in value.values())


def _contents(found: Any) -> str:
    """What a file holds, one level deep."""
    if not isinstance(found, Mapping):
        return type(found).__name__
    parts = [
        f"{name} ({f'{len(value)} tensors' if _is_weights(value) else type(value).__name__})"
        for name, value in list(found.items())[:_SHOWN]
    ]
    return f"{type(found).__name__} with {', '.join(parts) or 'nothing in it'}{', …' if len(found) > _SHOWN else ''}"


def is_torchscript(path: Path) -> bool:
    """Whether a file is what ``torch.jit.save`` writes."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError):
        return False


def load(model: nn.Module, path: Path) -> None:
    """Put a file's weights into the model; all of them, and nothing else.

    Raises:
        Failure: lists what is missing, unexpected, or of another shape. What :func:`read` raises.
    """
    found, own = read(path), model.state_dict()
    missing = [name for name in own if name not in found and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in found if name not in own]
    shapes = [
        f"{name} {tuple(found[name].shape)} for {tuple(own[name].shape)}"
        for name in own
        if name in found and found[name].shape != own[name].shape
    ]
    faults = [
        f"{len(names)} {what} ({', '.join(names[:_SHOWN])}{', …' if len(names) > _SHOWN else ''})"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if names
    ]
    if faults:
        hint = (
            ": the last layer has another number of classes, see --classes"
            if _only_head(missing, unexpected, shapes)
            else ""
        )
        raise Failure(f"--weights: {path} does not fit the model: {'; '.join(faults)}{hint}")
    model.load_state_dict(found, strict=False)  # Counters of batches may be missing.


def _only_head(missing: list[str], unexpected: list[str], shapes: list[str]) -> bool:
    return not missing and not unexpected and len(shapes) <= 2


def digest(model: nn.Module) -> str:
    """A fingerprint of all weights: 16 hexadecimal digits."""
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        data = tensor.detach().cpu().contiguous().flatten()
        found.update(memoryview(data.view(torch.uint8).numpy()) if data.numel() else b"")
    return found.hexdigest()[:16]


def structure(model: nn.Module) -> str:
    """A fingerprint of what a model says of its layers, beside the weights: 16 hexadecimal digits."""
    said = [repr(model)]
    for module in model.modules():
        said += [str(getattr(module, name)) for name in ("graph", "config") if hasattr(module, name)]
    without_addresses = re.sub(r" at 0x[0-9a-fA-F]+", "", "\n".join(said))
    return hashlib.sha256(without_addresses.encode()).hexdigest()[:16]
