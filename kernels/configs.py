"""Tile sizes and routes of the Triton kernels, as data: by kernel, shape class, device and kind of product.

``tables/<device key>.json`` holds what is chosen without a measurement; its ``measured`` says so (null) or what was
measured, on what and when. A user's own table, written by ``python -m fastlrp.tune`` into :func:`cache_folder`, goes
first; it counts for one device name and one version of Triton. A row for shape class ``"*"`` holds for all shapes that
have no row of their own, one of kind ``"*"`` for kernels without products.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from fastlrp.kernels.launch import convolution_precision, matmul_precision

Kind = Literal["tf32", "ieee", "half"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""How a kernel's products are made: float32 on tensor cores, float32 without them, 16-bit."""

DEVICE_KEYS = ("sm80", "sm90", "other", "interpreter")
FORMAT = 1

_TABLES = Path(__file__).parent / "tables"
_CAPABILITIES = {(8, 0): "sm80", (9, 0): "sm90"}
_MATRIX_PRODUCTS = ("linear", "attention")
_BLOCKS = ("block_m", "block_n", "block_k")
_LIMITS = {**dict.fromkeys(_BLOCKS, 4096), "num_warps": 32}
_STAGES = 8

Key = tuple[str, str, str]
"""Kernel, shape class (or ``"*"``), kind."""


@dataclass(frozen=True)
class Config:
    """How one kernel is launched.

    Attributes:
        block_m, block_n, block_k: tile of positions (times targets), of result channels, of the reduction; of attention
            the queries, the keys, and the targets that share one tile of probabilities.
        route: ``"fused"``, or ``"library"``: cuBLAS or cuDNN for the product, our kernels around it.
    """

    block_m: int
    block_n: int
    block_k: int
    num_warps: int = 4
    num_stages: int = 3
    route: Literal["fused", "library"] = "fused"

    def __str__(self) -> str:
        tile = f"{self.block_m}x{self.block_n}x{self.block_k}w{self.num_warps}s{self.num_stages}"
        return tile if self.route == "fused" else f"{self.route}.{tile}"


class TableError(ValueError):
    """A table of configurations that cannot be used; the message names the file and what to do."""


@dataclass(frozen=True)
class Measured:
    """On what a table was measured, and when (``YYYY-MM-DD``)."""

    device: str
    triton: str
    date: str


@dataclass(frozen=True)
class Table:
    """One file. ``device``: its device key. ``measured``: None where its rows were chosen by reasoning."""

    device: str
    measured: Measured | None
    rows: Mapping[Key, Config]


Choice = Callable[[str, str, str], Config | None]
"""``(kernel, shape class, kind)`` to a configuration, or None for that of the tables."""

_choices: list[Choice] = []
_listed: tuple[str, ...] = ("sm80", "sm90", "other")


# Choosing


def configuration(
    kernel: str, shape_class: str, device: torch.device, dtype: torch.dtype, precision: str | None = None
) -> Config:
    """The configuration of a kernel for tensors on ``device``.

    Args:
        precision: ``"tf32"`` or ``"ieee"`` for float32 where the caller knows; else PyTorch's switch decides.

    Raises:
        TableError: for a kernel or shape class without a row, and for a user's table that is broken.
    """
    kind = _kind(kernel, dtype, precision)
    for choice in _choices:
        found = choice(kernel, shape_class, kind)
        if found is not None:
            return found
    return _chosen(kernel, shape_class, device.type, device.index, kind)


@contextmanager
def choosing(choice: Choice) -> Iterator[None]:
    """Inside, ``choice`` is asked before the tables, in all threads: for measurements and tests."""
    _choices.insert(0, choice)
    try:
        yield
    finally:
        _choices.remove(choice)


def configurations(kernel: str, dtype: torch.dtype, precision: str | None = None) -> dict[str, Config]:
    """All that :func:`configuration` may return on a GPU without a user's table, each under its own name.

    For float32 without a ``precision`` those of both.
    """
    classes = configurations_of_classes(kernel, dtype, precision)
    return {name: config for found in classes.values() for name, config in found.items()}


def configurations_of_classes(
    kernel: str, dtype: torch.dtype, precision: str | None = None
) -> dict[str, dict[str, Config]]:
    """:func:`configurations` by shape class: for kernels whose tiles fit the shapes of one class alone."""
    if dtype.itemsize == 2:
        kinds: tuple[str, ...] = ("half",)
    else:
        kinds = ("tf32", "ieee") if precision is None else (precision,)
    found: dict[str, dict[str, Config]] = {}
    for t in (table(key) for key in _listed):
        for (name, shape_class, kind), config in t.rows.items():
            if name == kernel and kind in kinds:
                found.setdefault(shape_class, {})[str(config)] = config
    if not found:
        raise TableError(f"no table has a row for the kernel {kernel!r}")
    return found


@contextmanager
def of_devices(*keys: str) -> Iterator[None]:
    """Inside, :func:`configurations` lists what the tables of these devices hold."""
    global _listed
    before, _listed = _listed, keys
    try:
        yield
    finally:
        _listed = before


def _kind(kernel: str, dtype: torch.dtype, precision: str | None) -> str:
    if dtype.itemsize == 2:
        return "half"
    if precision is not None:
        return precision
    return matmul_precision() if kernel.startswith(_MATRIX_PRODUCTS) else convolution_precision()


@cache
def _chosen(kernel: str, shape_class: str, device_type: str, index: int | None, kind: str) -> Config:
    tables = [table(device_key(device_type, index))]
    own = own_table(index) if device_type == "cuda" else None
    for candidate in ([] if own is None else [own]) + tables:
        for shape in (shape_class, "*"):
            found = candidate.rows.get((kernel, shape, kind))
            if found is not None:
                return found
    raise TableError(
        f"no configuration for the kernel {kernel!r}, shape class {shape_class!r}, kind {kind!r}: add a row to "
        f"{_TABLES / tables[0].device}.json"
    )


def device_key(device_type: str, index: int | None) -> str:
    """Which table holds for a device: ``"interpreter"`` on a CPU, else by compute capability."""
    if device_type == "cpu":
        return "interpreter"
    if device_type != "cuda" or torch.version.hip is not None:
        return "other"
    return _CAPABILITIES.get(torch.cuda.get_device_capability(index), "other")


def reload() -> None:
    """Read the tables again at the next launch."""
    _chosen.cache_clear()
    own_table.cache_clear()
    table.cache_clear()


# Files


@cache
def table(key: str) -> Table:
    """The table that fastlrp brings for a device key."""
    return read(_TABLES / f"{key}.json")


@lru_cache(maxsize=16)
def own_table(index: int | None) -> Table | None:
    """The user's table for a CUDA device and this version of Triton, or None if there is none.

    Raises:
        TableError: if the file is broken, or was measured on another device or version.
    """
    import triton

    name = torch.cuda.get_device_name(index)
    path = own_path(name, triton.__version__)
    if not path.exists():
        return None
    found = read(path)
    if found.measured is None or (found.measured.device, found.measured.triton) != (name, triton.__version__):
        was = found.measured and f"{found.measured.device} with Triton {found.measured.triton}"
        raise TableError(_broken(path, f"it was measured on {was}, this is {name} with Triton {triton.__version__}"))
    return found


def cache_folder() -> Path:
    """``$FASTLRP_CACHE``, else ``fastlrp`` in the platform's folder for a user's caches."""
    given = os.environ.get("FASTLRP_CACHE")
    if given:
        return Path(given)
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "fastlrp"


def own_path(device_name: str, triton_version: str) -> Path:
    """Where the user's table for a device and a version of Triton lies."""
    plain = re.sub(r"[^A-Za-z0-9.]+", "-", f"{device_name} triton {triton_version}").strip("-")
    return cache_folder() / "kernels" / f"{plain}.json"


def read(path: Path) -> Table:
    """A table from its file.

    Raises:
        TableError: for anything that is not one.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TableError(_broken(path, f"it cannot be read: {error}")) from error
    try:
        return parse(data)
    except TableError as error:
        raise TableError(_broken(path, str(error))) from None


def parse(data: Any) -> Table:
    """A table from what its JSON holds; rows of kind ``"*"`` stand for all kinds.

    Raises:
        TableError: says what is wrong.
    """
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise TableError(f"expected an object with 'format': {FORMAT}")
    if data.get("device") not in DEVICE_KEYS:
        raise TableError(f"'device' must be one of {', '.join(DEVICE_KEYS)}, got {data.get('device')!r}")
    if not isinstance(data.get("rows"), list):
        raise TableError("'rows' must be a list")
    rows: dict[Key, Config] = {}
    for number, row in enumerate(data["rows"]):
        for key, config in _row(row, f"row {number}"):
            if key in rows:
                raise TableError(f"row {number}: a second row for {key}")
            rows[key] = config
    return Table(data["device"], _measured(data.get("measured")), rows)


def _measured(data: Any) -> Measured | None:
    if data is None:
        return None
    names = ("device", "triton", "date")
    if not isinstance(data, dict) or not all(isinstance(data.get(name), str) for name in names):
        raise TableError(f"'measured' must be null or name {', '.join(names)}, got {data!r}")
    return Measured(*(data[name] for name in names))


def _row(row: Any, place: str) -> list[tuple[Key, Config]]:
    if not isinstance(row, dict):
        raise TableError(f"{place}: expected an object, got {row!r}")
    known = {"kernel", "shape_class", "kind", *_BLOCKS, "num_warps", "num_stages", "route", "why", "microseconds"}
    if set(row) - known:
        raise TableError(f"{place}: unknown entries {', '.join(sorted(set(row) - known))}")
    for name in ("kernel", "shape_class", "kind"):
        if not isinstance(row.get(name), str) or not row[name]:
            raise TableError(f"{place}: {name!r} must be a name, got {row.get(name)!r}")
    if row["kind"] not in (*KINDS, "*"):
        raise TableError(f"{place}: 'kind' must be one of {', '.join(KINDS)} or '*', got {row['kind']!r}")
    for name, limit in _LIMITS.items():
        if not _is_power_of_two(row.get(name)) or row[name] > limit:
            raise TableError(f"{place}: {name!r} must be a power of two up to {limit}, got {row.get(name)!r}")
    stages, route = row.get("num_stages"), row.get("route", "fused")
    if type(stages) is not int or not 1 <= stages <= _STAGES:
        raise TableError(f"{place}: 'num_stages' must be 1 to {_STAGES}, got {stages!r}")
    if route not in ("fused", "library"):
        raise TableError(f"{place}: 'route' must be 'fused' or 'library', got {route!r}")
    config = Config(*(row[name] for name in (*_BLOCKS, "num_warps")), stages, route)
    kinds = KINDS if row["kind"] == "*" else (row["kind"],)
    return [((row["kernel"], row["shape_class"], kind), config) for kind in kinds]


def _is_power_of_two(value: Any) -> bool:
    return type(value) is int and value > 0 and value & (value - 1) == 0


def _broken(path: Path, what: str) -> str:
    if path.parent == _TABLES:
        return f"{path}: {what}; fastlrp is not installed as it should be: install it again"
    return f"{path}: {what}; delete the file, and write it anew with 'python -m fastlrp.tune'"
