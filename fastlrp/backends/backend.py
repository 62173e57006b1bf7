"""What a backend has to say of itself."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import torch

from fastlrp.backends.operations import STEMS


class Backend:
    """Computes operations on some devices and dtypes. A backend is one file with one subclass.

    Attributes:
        name: what users write, ``backend="cpu"``.
        dtypes: of relevance, that its kernels are for; None for every floating-point one.
        package: where its operations are, one module for each stem: ``fastlrp.aten``.
        automatic: types of devices on which ``"auto"`` may choose it, ``("cpu",)``; None for all, ``()`` for none.
        stand_ins: backends that take over an operation that this one has no kernel for.
        fuses: whether its kernels do in one step what others compose of several.
    """

    name: str
    dtypes: tuple[torch.dtype, ...] | None = None
    package: str = ""
    automatic: tuple[str, ...] | None = ()
    stand_ins: tuple[str, ...] = ()
    fuses = False

    def why_not(self, device: torch.device) -> str | None:
        """Why it cannot run on this device, or None."""
        return None

    def dtypes_of(self, op: str) -> tuple[torch.dtype, ...] | None:
        """Those of one operation, where its kernels take others than the backend's usual ones."""
        return self.dtypes

    def why_not_dtype(self, dtype: torch.dtype, op: str) -> str | None:
        """Why it cannot compute the operation with this dtype, or None."""
        dtypes = self.dtypes_of(op)
        if dtypes is None:
            return None if dtype.is_floating_point else f"dtype is {dtype}, relevance needs a floating-point one"
        if dtype in dtypes:
            return None
        *others, last = (str(known).removeprefix("torch.") for known in dtypes)
        return f"dtype is {dtype}, kernels are for {', '.join(others)} and {last}"

    def load(self, op: str) -> ModuleType | Any:
        """The module that holds the operation, loaded now: importing fastlrp does not load every backend."""
        return importlib.import_module(f"{self.package}.{STEMS[op]}")

    def has(self, op: str) -> bool:
        """Whether there is a kernel for the operation; asked only where ``why_not`` is None."""
        try:
            return hasattr(self.load(op), op)
        except ModuleNotFoundError as error:  # Of a stem that this backend has nothing of.
            if error.name == f"{self.package}.{STEMS[op]}":
                return False
            raise
