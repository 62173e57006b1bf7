"""Numbers made by other software, kept beside the repository; tests skip, with the reason, where they are absent."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

FOLDER = Path(__file__).resolve().parents[2] / "shared" / "goldens"
REASON = "the goldens are not here (../shared/goldens beside the repository)"

needs_goldens = pytest.mark.skipif(not FOLDER.is_dir(), reason=REASON)


def path(name: str) -> Path:
    """Path of a file of the goldens; skips the test where it is absent."""
    if not (FOLDER / name).is_file():
        pytest.skip(f"{REASON}: no {name}")
    return FOLDER / name


def load(name: str) -> dict[str, np.ndarray]:
    """All arrays of an ``.npz`` file of the goldens."""
    with np.load(path(name), allow_pickle=False) as arrays:
        return {key: arrays[key] for key in arrays.files}


def double(array: np.ndarray) -> Tensor:
    """The array as a float64 tensor."""
    return torch.from_numpy(np.array(array, dtype=np.float64))
