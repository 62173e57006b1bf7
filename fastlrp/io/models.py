"""Models of the LRP Toolbox: reading text and pickles, writing text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch

from fastlrp import nn
from fastlrp.errors import FormatError
from fastlrp.files import PathLike, read_bytes, replacing
from fastlrp.io import model_pickle, model_text
from fastlrp.io.describe import describe
from fastlrp.io.model_text import VARIANTS, Variant
from fastlrp.io.modules import build

_PICKLES = (".nn", ".pickle", ".pickled", ".pkl")
MODEL_BYTES = 2**30


def read_model(path: PathLike, dtype: torch.dtype = torch.float32, *, max_bytes: int = MODEL_BYTES) -> nn.Sequential:
    """A network from the LRP Toolbox's text format or from one of its pickles.

    A pickle is only read, never run: it may name the Toolbox's layers and NumPy's arrays, and these become data.
    Text is ``*.txt``, a pickle ``*.nn``, ``*.pickle``, ``*.pickled`` or ``*.pkl``; other names are judged by their
    first byte. Both variants of the text format are recognised, see :func:`write_model`.

    Args:
        path: the file. dtype: of the weights; ``torch.float64`` is what the files of the Toolbox hold.
        max_bytes: the largest file that is read.

    Returns:
        A network in NCHW, in evaluation mode. The Toolbox's Flatten becomes ``Flatten(order="hwc")``: with it the
        Linear layers behind it keep their weights.

    Raises:
        FormatError: a malformed, truncated or hostile file, with line or byte, what was found and what was expected.
        TypeError: for a dtype that is not floating-point. OSError: as :func:`open`.

    Example::

        net = fastlrp.nn.Sequential(fastlrp.nn.Linear(4, 3), fastlrp.nn.Tanh(), fastlrp.nn.Linear(3, 2))
        fastlrp.io.write_model(net, "net.txt")
        same = fastlrp.io.read_model("net.txt")
    """
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(f"dtype must be a floating-point torch.dtype, got {dtype}")
    data = read_bytes(path, max_bytes)
    parse = model_pickle.parse if _is_pickle(path, data) else model_text.parse
    try:
        return build(parse(path, data), dtype)
    except FormatError:
        raise
    except ValueError as error:
        raise FormatError(path, str(error)) from None


def _is_pickle(path: PathLike, data: bytes) -> bool:
    suffix = Path(path).suffix.lower()
    return suffix in _PICKLES or (suffix != ".txt" and data[:1] in (b"\x80", b"("))


def write_model(
    model: torch.nn.Module,
    path: PathLike,
    variant: Variant = "line",
    *,
    number_format: str | None = None,
    input_shape: Sequence[int] | None = None,
) -> None:
    """Write a network in the LRP Toolbox's text format. The file is replaced in one step.

    Args:
        model: a ``fastlrp.nn.Sequential``, or a ``torch.nn.Sequential`` of Linear, Conv2d without padding, dilation
            and groups, MaxPool2d, ReLU, Tanh, Softmax and Flatten. No bias is written as zeros.
        variant: ``"line"``, W of a Linear in one line, or ``"rows"``, in m lines, as the Toolbox's first version has
            it, which knows no convolutions and pools.
        number_format: None writes each weight with the fewest digits that give back the same float32 or float64. A
            format such as ``".3f"`` rounds to it.
        input_shape: ``(channels, height, width)`` of one input. Where PyTorch's Flatten puts channels first, the next
            Linear's weight is turned into the Toolbox's order, for which sizes must be known.
        path: the file.

    Raises:
        TypeError, ValueError: what the format cannot express, by name of the module. OSError: as :func:`open`.

    Example::

        net = fastlrp.nn.Sequential(fastlrp.nn.Linear(4, 3), fastlrp.nn.Tanh(), fastlrp.nn.Linear(3, 2))
        fastlrp.io.write_model(net, "net.txt")
    """
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}: expected one of {', '.join(VARIANTS)}")
    if number_format is not None and not re.fullmatch(r"[.]\d{1,2}[efg]", number_format):
        raise ValueError(f"number_format must be None or such as '.3f', '.12g', '.6e', got {number_format!r}")
    if Path(path).suffix.lower() in _PICKLES:
        raise ValueError(f"{path} is the name of a pickle: models are written as text, name it *.txt")
    entries = describe(model, input_shape)
    if variant == "rows":
        unknown = [e.header() for e in entries if e.header().split()[0] not in ("Linear", "Rect", "Tanh", "SoftMax")]
        if unknown:
            raise ValueError(f"variant 'rows' has no {unknown[0].split()[0]} ({unknown[0]}): write variant 'line'")
    with replacing(path) as stream:
        model_text.write(entries, stream, variant, number_format)
