"""A narrow place on the way down, through which a basis may go in the place of the targets."""

from __future__ import annotations

from dataclasses import dataclass

from fastlrp.capture.graph import Value


@dataclass(frozen=True)
class Neck:
    """A place in a schedule where one register carries everything.

    Attributes:
        position: steps before it are the upper part. register: what carries. value: the activation whose relevance
            it is (times its factor). width: entries per sample.
    """

    position: int
    register: int
    value: Value
    width: int
