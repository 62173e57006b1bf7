"""Cases in processes of their own: what one does to itself happens to no other."""

from __future__ import annotations

import os
import signal
import time

from benchmarks.gpu import isolated
from benchmarks.gpu.isolated import Case, UnableError


def fails():
    assert 1 == 2, "one is not two"


def unable():
    raise UnableError("there is no GPU")


def breaks():
    raise ValueError("a strange argument")


def test_each_has_its_own_end():
    cases = [
        Case("right", lambda: "off by 0"), Case("hangs", lambda: time.sleep(60)), Case("wrong", fails),
        Case("crashes", lambda: os.kill(os.getpid(), signal.SIGKILL)), Case("leaves", lambda: os._exit(7)),
        Case("breaks", breaks), Case("unable", unable), Case("last", lambda: None),
    ]  # fmt: skip
    begin = time.monotonic()
    found = {outcome.name: outcome for outcome in isolated.outcomes(cases, 3, limit=0.5)}
    assert time.monotonic() - begin < 20
    assert {name: outcome.result for name, outcome in found.items()} == {
        "right": "ok", "hangs": "hung", "wrong": "wrong", "crashes": "died", "leaves": "died", "breaks": "error",
        "unable": "skipped", "last": "ok",
    }  # fmt: skip
    assert found["right"].said == "off by 0"
    assert "one is not two" in found["wrong"].said
    assert "fails" in found["wrong"].said  # Where it came from.
    assert "SIGKILL" in found["crashes"].said
    assert "exit code 7" in found["leaves"].said
    assert found["breaks"].said.startswith("ValueError: a strange argument")
    assert found["unable"].said == "there is no GPU"


def test_nothing_begins_when_the_time_is_over():
    cases = [Case(str(n), lambda: time.sleep(0.2)) for n in range(4)]
    found = [outcome.result for outcome in isolated.outcomes(cases, 1, limit=5, seconds=0.1)]
    assert sorted(found) == ["no time left"] * 3 + ["ok"]


def test_who_stops_listening_leaves_nobody_behind():
    running = isolated.outcomes([Case("quick", lambda: None), Case("long", lambda: time.sleep(60))], 2, limit=90)
    next(running)
    begin = time.monotonic()
    running.close()
    assert time.monotonic() - begin < 5
