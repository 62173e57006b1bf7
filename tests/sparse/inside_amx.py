"""What only the emulator can show of AMX; ``test_sparse_amx.py`` runs it (``emulated.py``)."""

from __future__ import annotations

import ctypes

import pytest
import torch

from fastlrp import Explainer, composites
from fastlrp.plan.paths import rates
from fastlrp.plan.products import reduced
from tests.sparse import emulated
from tests.sparse.cases import KERNELS, Problem
from tests.sparse.test_sparse_bf16 import LAYERS, network

AMX = emulated.emulator()


def configuration() -> bytes:
    """Of this thread's tiles."""
    memory = ctypes.create_string_buffer(64)
    AMX.amx_emulator_store_configuration(memory)
    return memory.raw


@pytest.fixture
def by_amx(threads: None) -> None:
    KERNELS.set_bf16_unit("amx")


def test_amx_is_what_auto_takes() -> None:
    KERNELS.set_bf16_unit("auto")
    assert KERNELS.bf16_unit() == "amx"


def test_whole_explanations_have_the_bits_of_tiles_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "bf16_unit", lambda: "amx")  # By software the products are never the cheapest way.
    monkeypatch.setattr(reduced, "NEAREST", 0)  # The last convolution has its kernel of bfloat16, too.
    model, x = network(), torch.randn(2, 3, 14, 14)
    found = []
    for unit in ("software_tiles", "amx"):
        KERNELS.set_bf16_unit(unit)
        before = emulated.counted()["tdpbf16ps"]
        explainer = Explainer(model, composites.epsilon_plus(), precision="bf16", paths="sparse")
        found.append(explainer(x, range(20)))
        assert str(explainer.plan).count("sparse bf16") == 3
        assert (emulated.counted()["tdpbf16ps"] > before) == (unit == "amx")
    KERNELS.set_bf16_unit("auto")
    assert torch.equal(*found)


@pytest.mark.parametrize("count", [1, 2])
def test_tiles_are_released_where_memory_runs_out(count: int, by_amx: None) -> None:
    torch.set_num_threads(count)
    problem = Problem(LAYERS["one axis"], 20, torch.float32)
    expected = problem.call(narrow=True)[:, :20]
    for request in (1, 2, 5, 9):
        AMX.amx_emulator_fail_allocation(request)
        with pytest.raises(MemoryError):
            problem.call(narrow=True)
        assert AMX.amx_emulator_configured() == 0
    assert torch.equal(problem.call(narrow=True)[:, :20], expected)


def test_each_thread_configures_its_own_tiles(by_amx: None) -> None:
    problem = Problem(LAYERS["one axis"], 20, torch.float32)
    before = emulated.counted()
    for count in (1, 2):
        torch.set_num_threads(count)
        problem.call(narrow=True)
        after = emulated.counted()
        assert after["ldtilecfg"] - before["ldtilecfg"] == after["tilerelease"] - before["tilerelease"] == count
        before = after
    assert before["threads"] >= 2


@pytest.mark.parametrize("count", [1, 2])
def test_a_configuration_of_others_is_there_again(count: int, by_amx: None) -> None:
    torch.set_num_threads(count)
    problem = Problem(LAYERS["3x3"], 20, torch.float32)
    expected = problem.call(narrow=True)[:, :20]
    theirs = bytearray(64)
    theirs[0], theirs[16], theirs[18], theirs[48], theirs[49] = 1, 32, 4, 3, 16
    AMX.amx_emulator_load_configuration(bytes(theirs))
    found = problem.call(narrow=True)[:, :20]
    assert configuration() == bytes(theirs)
    assert AMX.amx_emulator_configured() == 1, "another thread has it too"
    AMX.amx_emulator_load_configuration(bytes(64))
    assert torch.equal(found, expected)
    problem.call(narrow=True)
    assert configuration() == bytes(64)
