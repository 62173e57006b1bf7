"""Models as the LRP Toolbox has them: classes to pickle under its names, and files to spoil."""

from __future__ import annotations

import contextlib
import pickle
import sys
import types
from collections.abc import Iterator
from typing import Any

import numpy as np

FILES = {
    "Sequential": "sequential",
    "Convolution": "convolution",
    "Linear": "linear",
    "Rect": "rect",
    "SumPool": "sumpool",
    "MaxPool": "maxpool",
    "Flatten": "flatten",
    "SoftMax": "softmax",
}
TEXT = "Linear 2 3\n1 2 3 4 5 6\n0.5 0 -0.5\nTanh\nLinear 3 2\n1 -1 2 -2 3 -3\n0.25 -0.25\nSoftMax\n"


def layer(kind: str, **attributes: Any) -> types.SimpleNamespace:
    """A layer that :func:`dumps` turns into one of the Toolbox's."""
    return types.SimpleNamespace(kind=kind, **attributes)


def linear(m: int = 2, n: int = 3, **attributes: Any) -> types.SimpleNamespace:
    weights = {"W": np.arange(m * n, dtype=np.float64).reshape(m, n) / 7, "B": np.linspace(-1, 1, n)}
    return layer("Linear", **{**weights, "m": m, "n": n, "X": None, "lrp_param": np.float64(1.0), **attributes})


def network() -> list[types.SimpleNamespace]:
    """One layer of each kind, for images of 6 x 6."""
    W = np.random.default_rng(0).normal(size=(3, 3, 2, 4))
    return [
        layer("Convolution", W=W, B=np.arange(4.0), fh=3, fw=3, fd=2, n=4, stride=(1, 1)),
        layer("Rect", Y=np.ones((2, 3))),
        layer("SumPool", pool=(2, 2), stride=(1, 1)),
        layer("MaxPool", pool=(2, 1), stride=(1, 2)),
        layer("Flatten", inputshape=[]),
        linear(16, 3),
        layer("SoftMax"),
    ]


@contextlib.contextmanager
def classes(one_file: bool) -> Iterator[dict[str, type]]:
    """The Toolbox's classes, empty, in ``sys.modules`` as long as the block runs."""
    before = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "modules"}
    made = {}
    sys.modules["modules"] = package = types.ModuleType("modules")
    for name, file in FILES.items():
        home = "modules" if one_file else f"modules.{file}"
        module = package if one_file else sys.modules.setdefault(home, types.ModuleType(home))
        made[name] = type(name, (), {"__module__": home})
        setattr(module, name, made[name])
    try:
        yield made
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == "modules"]:
            del sys.modules[name]
        sys.modules.update(before)


def dumps(layers: Any, protocol: int = 2, one_file: bool = False) -> bytes:
    """A pickle of a Sequential of these layers, as the Toolbox under Python 3 writes it.

    ``one_file``: with the names of the Toolbox's first version.
    """
    with classes(one_file) as made_of:

        def made(item: Any) -> Any:
            if not isinstance(item, types.SimpleNamespace):
                return item
            instance = made_of[item.kind]()
            instance.__dict__.update({key: value for key, value in vars(item).items() if key != "kind"})
            return instance

        model = made_of["Sequential"]()
        model.__dict__["modules"] = [made(item) for item in layers] if isinstance(layers, list) else layers
        return pickle.dumps(model, protocol)
