"""What a model's pickle may hold: inert stand-ins for the Toolbox's classes, and NumPy's arrays."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fastlrp.io.pickle_ops import PickleError

_LAYERS = {
    "Sequential": "sequential",
    "Convolution": "convolution",
    "Linear": "linear",
    "Rect": "rect",
    "Tanh": "tanh",
    "SumPool": "sumpool",
    "MaxPool": "maxpool",
    "Flatten": "flatten",
    "SoftMax": "softmax",
}
# The Toolbox's first version had all its classes in one file, modules.py.
CLASSES = {f"modules.{file}.{name}" for name, file in _LAYERS.items()} | {f"modules.{name}" for name in _LAYERS}

# NumPy 2 has moved its private package; both names are in files.
RECONSTRUCT = {f"numpy.{core}.multiarray._reconstruct" for core in ("core", "_core")}
SCALAR = {f"numpy.{core}.multiarray.scalar" for core in ("core", "_core")}
FROM_BUFFER = {f"numpy.{core}.numeric._frombuffer" for core in ("core", "_core")}
# What Python 3 writes for bytes in the protocols of Python 2.
ENCODE = {"_codecs.encode"}
CALLABLE = RECONSTRUCT | SCALAR | FROM_BUFFER | ENCODE | {"numpy.dtype"}
ALLOWED = CLASSES | CALLABLE | {"numpy.ndarray"}

_NUMBERS = {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"}


@dataclass(frozen=True)
class Name:
    """A global that the pickle names. It stands for itself; what it names is never looked up."""

    full: str

    @staticmethod
    def of(module: object, name: object, position: int) -> Name:
        """The name, if a model may contain it.

        Raises:
            PickleError: any other global.
        """
        full = f"{module}.{name}"
        if full not in ALLOWED:
            shown = full if len(full) <= 80 else full[:80] + "…"
            raise PickleError(
                f"the pickle names the global {shown!r}, which is refused: a model is made of the Toolbox's layers "
                "(modules.*) and NumPy's arrays",
                position,
            )
        return Name(full)


@dataclass(eq=False)
class Instance:
    """An object of a class of the Toolbox: the class's name and its attributes as plain data."""

    kind: str
    attributes: dict[str, Any] = field(default_factory=dict)

    def update(self, state: object) -> None:
        """Take the attributes of a BUILD."""
        if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
            raise PickleError(
                f"the state of a {self.kind} is a {type(state).__name__}, expected its attributes by name"
            )
        self.attributes.update(state)


@dataclass(eq=False)
class DType:
    """A dtype that is being read: kind and size such as ``f8``, and byte order."""

    code: str
    order: str = "="

    def update(self, state: object) -> None:
        """Take the state of a BUILD: version, byte order, then fields that only structured dtypes have."""
        if not isinstance(state, tuple) or len(state) < 5 or state[1] not in ("<", ">", "|", "="):
            raise PickleError(f"the state of dtype {self.code!r} is not one of NumPy's")
        if any(part is not None for part in state[2:5]):
            raise PickleError("structured dtypes are refused: weights are plain numbers")
        self.order = state[1]

    def numpy(self) -> np.dtype[Any]:
        """The dtype itself; its code is one of a fixed list."""
        return np.dtype(self.order + self.code)


@dataclass(eq=False)
class Array:
    """An array's parts, as they stand in the file. They become an array when a layer asks for its weights."""

    shape: object = None
    dtype: object = None
    order: object = None
    data: object = None

    def update(self, state: object) -> None:
        """Take the state of a BUILD: version, shape, dtype, column order, bytes."""
        if not isinstance(state, tuple) or len(state) != 5:
            raise PickleError("the state of an array is not one of NumPy's: version, shape, dtype, order, bytes")
        _, self.shape, self.dtype, columns_first, self.data = state
        self.order = "F" if columns_first else "C"

    @property
    def nbytes(self) -> int:
        """How many bytes decoding has to hold."""
        return len(self.data) if isinstance(self.data, (str, bytes, bytearray)) else 0

    def decode(self) -> np.ndarray:
        """The array. The bytes that are there are counted before anything of its shape is made.

        Raises:
            PickleError: for parts that do not belong together.
        """
        shape, dtype = self.shape, self.dtype
        if not isinstance(dtype, DType):
            raise PickleError(f"the dtype of an array is a {type(dtype).__name__}")
        if not isinstance(shape, tuple) or len(shape) > 8 or not all(is_size(size, least=0) for size in shape):
            raise PickleError("the shape of an array is not a short tuple of sizes")
        content, kind = raw(self.data), dtype.numpy()
        expected = math.prod(shape) * kind.itemsize
        if len(content) != expected:
            raise PickleError(f"an array of shape {shape} and dtype {kind} has {expected} bytes, found {len(content)}")
        if self.order not in ("C", "F"):
            raise PickleError("the order of an array is neither C nor F")
        return np.frombuffer(content, kind).reshape(shape, order="F" if self.order == "F" else "C")


def is_size(value: object, least: int = 1) -> bool:
    """An integer that can be the size of something; pickles hold integers of any length."""
    return type(value) is int and least <= value < 2**31


def raw(data: object) -> bytes:
    """Bytes, also those that Python 2 wrote as a string."""
    if isinstance(data, (bytes, bytearray)):
        return bytes(data)
    if isinstance(data, str):
        try:
            return data.encode("latin-1")
        except UnicodeEncodeError:
            raise PickleError("the content of an array is text") from None
    raise PickleError(f"the content of an array is a {type(data).__name__}, expected bytes")


def reduced(function: object, arguments: object) -> object:
    """What REDUCE does for the few functions of NumPy that it may name. Each is done here; none is called."""
    if not isinstance(function, Name) or function.full not in CALLABLE:
        found = function.full if isinstance(function, Name) else f"a {type(function).__name__}"
        raise PickleError(f"the pickle calls {found}, which is refused")
    if not isinstance(arguments, tuple):
        raise PickleError(f"the pickle calls {function.full} with a {type(arguments).__name__}, expected a tuple")
    name, count = function.full, len(arguments)
    if name in RECONSTRUCT and count == 3 and arguments[0] == Name("numpy.ndarray"):
        return Array()
    if name == "numpy.dtype" and 1 <= count <= 3:
        return _dtype(arguments[0])
    if name in SCALAR and count == 2:
        return Array((), arguments[0], "C", arguments[1]).decode().item()
    if name in FROM_BUFFER and count == 4:
        data, dtype, shape, order = arguments
        return Array(shape, dtype, order, data)
    if name in ENCODE and count == 2 and arguments[1] in ("latin1", "latin-1"):
        return raw(arguments[0])
    raise PickleError(f"the pickle calls {name} with arguments that NumPy does not write")


def _dtype(code: object) -> DType:
    text = code.lstrip("<>|=") if isinstance(code, str) else ""
    if text not in _NUMBERS:
        shown = repr(code[:20]) if isinstance(code, str) else f"a {type(code).__name__}"
        raise PickleError(
            f"the dtype of an array is {shown}, which is refused: expected one of {', '.join(sorted(_NUMBERS))}"
        )
    assert isinstance(code, str)
    order = code[: len(code) - len(text)]
    return DType(text, order if order in ("<", ">", "|") else "=")
