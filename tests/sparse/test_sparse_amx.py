"""The machine code of AMX that ships, under an emulator of its instructions (``emulated.py``, tests/native/amx)."""

from __future__ import annotations

import re
import subprocess

import pytest

from tests.sparse import emulated

REASON = emulated.why_not()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(REASON is not None, reason=REASON or "")]

REFUSED = {
    "palette": "ldtilecfg .*: #GP, there is no palette 2",
    "reserved": "ldtilecfg .*: #GP, not zero is the reserved byte 5",
    "ninth tile's columns": "ldtilecfg .*: #GP, not zero is the reserved byte 32",
    "ninth tile's rows": "ldtilecfg .*: #GP, not zero is the reserved byte 56",
    "wide": "ldtilecfg .*: #GP, a row of more than 64 bytes for tile 2",
    "high": "ldtilecfg .*: #GP, more than 16 rows for tile 1",
    "empty rows": "ldtilecfg .*: #GP, rows without bytes or bytes without rows for tile 7",
    "not permitted": "ldtilecfg .*: #NM, the system was not asked for the memory of tiles",
    "no configuration": "tilezero tmm3 at .*: #UD, no tiles are configured",
    "released": "tilezero tmm3 at .*: #UD, no tiles are configured",
    "another thread's configuration": "tilezero tmm0 at .*: #UD, no tiles are configured",
    "no tile": "tilezero tmm7 at .*: #UD, the configuration has no tile 7",
    "odd row": r"tileloadd tmm0, \[0x.* \+ 64 a row\] at .*: #UD, rows that are no multiple of 4 bytes, but 62",
    "first row behind the last": r"tilestored \[0x.*\], tmm0 at .*: #UD, the first row is behind the last: 5",
    "first row of a product": "tdpbf16ps tmm0, tmm1, tmm2 at .*: #UD, the first row is 1",
    "twice": "tdpbf16ps tmm0, tmm1, tmm1 at .*: #UD, one tile twice",
    "rows differ": "tdpbf16ps tmm0, tmm1, tmm2 at .*: #UD, sums and first operand differ in rows",
    "columns differ": "tdpbf16ps tmm0, tmm1, tmm2 at .*: #UD, sums and second operand differ in columns",
    "pairs differ": "tdpbf16ps tmm0, tmm1, tmm2 at .*: #UD, the first operand's pairs are not the second one's rows",
    "odd pairs": "tdpbf16ps tmm0, tmm1, tmm2 at .*: #UD, rows that are no multiple of 4 bytes, but 62",
    "no second operand": "tdpbf16ps tmm0, tmm1, tmm2 at .*: #UD, the configuration has no tile 2",
    "wide prefix": "tilerelease .*: #UD, a wrong prefix",
}
"""Uses that a processor refuses, and what the emulator says of them."""


def instructions(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = emulated.built("amx_instructions", *emulated.EMULATOR, "instructions.cpp")
    return subprocess.run([str(program), *arguments], capture_output=True, text=True)


def test_emulated_instructions_do_what_is_documented() -> None:
    made = instructions()
    assert (made.returncode, made.stdout) == (0, "passed\n"), made.stderr


def test_the_emulator_refuses_what_a_processor_refuses() -> None:
    for name, message in REFUSED.items():
        made = instructions(name)
        assert made.returncode == emulated.VIOLATION, (name, made)
        assert re.fullmatch(f"amx: {message}\n", made.stderr), (name, made.stderr)
    made = instructions("none of these")
    assert made.returncode == -4, "what the emulator does not know stays an illegal instruction"


def test_the_kernel_with_amx_under_the_emulator() -> None:
    """All that tests one unit, with AMX; bits against tiles in memory; and what inside_amx.py asks."""
    files = ("tests/sparse/inside_amx.py", "tests/sparse/test_sparse_bf16.py")
    made = emulated.run("-q", *files, "-k", "inside_amx or amx or bits or edges")
    assert made.returncode == 0, made.stdout + made.stderr
    counts = emulated.said(made.stdout)
    assert all(counts[name] > 0 for name in emulated.INSTRUCTIONS if name != "tileloaddt1"), counts
    assert counts["threads"] >= 2
