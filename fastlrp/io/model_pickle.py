"""The LRP Toolbox's pickled models (``.nn``), read without running anything that they name."""

from __future__ import annotations

from typing import Literal, cast

import numpy as np

from fastlrp.errors import FormatError
from fastlrp.files import PathLike
from fastlrp.io.entries import (
    KINDS,
    PLAIN_KINDS,
    POOL_KINDS,
    ConvolutionEntry,
    Entry,
    LinearEntry,
    PlainEntry,
    PoolEntry,
    Size,
)
from fastlrp.io.pickle_machine import load
from fastlrp.io.pickle_ops import PickleError
from fastlrp.io.pickle_values import Array, Instance, is_size

_MOST_LAYERS = 10_000


def parse(path: PathLike, data: bytes) -> list[Entry]:
    """Entries of a pickled model of the Toolbox.

    Raises:
        fastlrp.io.FormatError: the global, operation or attribute that is wrong, and the byte where that can be said.
    """
    if data[:16].split(maxsplit=1)[:1] and data[:16].split()[0].decode("latin-1") in KINDS:
        raise FormatError(path, "this is the text format, not a pickle: name the file *.txt", line=1)
    try:
        return _entries(load(data), len(data))
    except PickleError as error:
        raise FormatError(path, error.reason, byte=error.position) from None


def _entries(model: object, budget: int) -> list[Entry]:
    """Entries of a Sequential whose weights hold at most ``budget`` bytes.

    A file can name one array, or one layer, many times over; each would be copied. No honest model holds more weights
    than its file has bytes.
    """
    if not isinstance(model, Instance) or model.kind != "Sequential":
        found = model.kind if isinstance(model, Instance) else type(model).__name__
        raise PickleError(f"the pickle holds a {found}, expected a modules.sequential.Sequential")
    layers = model.attributes.get("modules")
    if not isinstance(layers, (list, tuple)) or not 1 <= len(layers) <= _MOST_LAYERS:
        raise PickleError(f"the Sequential's attribute 'modules' is not a list of 1 to {_MOST_LAYERS} layers")
    entries: list[Entry] = []
    size = Size()
    for number, layer in enumerate(layers):
        kind = layer.kind if isinstance(layer, Instance) else type(layer).__name__
        try:
            if not isinstance(layer, Instance) or kind not in KINDS:
                raise ValueError(f"expected one of {', '.join(KINDS)}")
            budget -= sum(held.nbytes for held in layer.attributes.values() if isinstance(held, Array))
            if budget < 0:
                raise ValueError("the layers so far repeat weights: they would hold more bytes than the whole file")
            entries.append(_entry(layer))
            size = size.after(entries[-1])
        except ValueError as error:
            raise PickleError(f"layer {number} ({kind}): {error}") from None
    return entries


def _entry(layer: Instance) -> Entry:
    kind = layer.kind
    if kind == "Linear":
        weight = _weights(layer, "W", 2)
        _agree(layer, ("m", "n"), weight.shape)
        return LinearEntry(weight, _bias(layer, weight.shape[-1]))
    if kind == "Convolution":
        weight = _weights(layer, "W", 4)
        _agree(layer, ("fh", "fw", "fd", "n"), weight.shape)
        return ConvolutionEntry(weight, _bias(layer, weight.shape[-1]), _pair(layer, "stride"))
    if kind in POOL_KINDS:
        pool = cast(Literal["SumPool", "MaxPool"], kind)
        return PoolEntry(pool, _pair(layer, "pool"), _pair(layer, "stride"))
    assert kind in PLAIN_KINDS
    return PlainEntry(cast(Literal["Rect", "Tanh", "SoftMax", "Flatten"], kind))


def _attribute(layer: Instance, name: str) -> object:
    if name not in layer.attributes:
        raise ValueError(f"the attribute {name!r} is missing")
    return layer.attributes[name]


def _weights(layer: Instance, name: str, axes: int) -> np.ndarray:
    """An array of finite floats with as many axes, none of them empty, in native byte order."""
    held = _attribute(layer, name)
    if not isinstance(held, Array):
        raise ValueError(f"{name} is a {type(held).__name__}, expected an array")
    value = held.decode()
    if value.dtype.kind != "f":
        raise ValueError(f"{name} has the dtype {value.dtype}, expected float32 or float64")
    if value.ndim != axes or 0 in value.shape:
        raise ValueError(f"{name} has the shape {value.shape}, expected {axes} axes, none of them empty")
    if not np.isfinite(value).all():
        raise ValueError(f"{name} contains NaN or infinite entries")
    return value.astype(np.float64)


def _bias(layer: Instance, count: int) -> np.ndarray:
    value = _weights(layer, "B", 1)
    if value.shape != (count,):
        raise ValueError(f"B has {value.size} entries, expected {count} as W has the shape of so many outputs")
    return value


def _agree(layer: Instance, names: tuple[str, ...], shape: tuple[int, ...]) -> None:
    """Sizes that stand beside the weights must be those of the weights."""
    for name, size in zip(names, shape, strict=True):
        said = layer.attributes.get(name, size)
        if said != size:
            shown = said if is_size(said, least=0) else f"a {type(said).__name__}"
            raise ValueError(f"the attribute {name!r} is {shown}, but W has the shape {shape}")


def _pair(layer: Instance, name: str) -> tuple[int, int]:
    value = _attribute(layer, name)
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise ValueError(f"{name} is a {type(value).__name__}, expected two integers")
    for part in value:
        if not is_size(part):
            shown = part if type(part) is int and abs(part) < 2**31 else f"a {type(part).__name__}"
            raise ValueError(f"{name} has the entry {shown}, expected two integers of at least 1")
    return value[0], value[1]
