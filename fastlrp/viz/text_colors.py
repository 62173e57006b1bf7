"""The two colours of coloured text: black and white letters alike are read on either, 4.5 to 1."""

from __future__ import annotations

Color = tuple[int, int, int]

POSITIVE: Color = (226, 40, 40)
NEGATIVE: Color = (38, 111, 236)


def share_of(value: float, level: float) -> float:
    """A value's place between -1 and 1, the ends of the colours."""
    if level == 0:
        return 0.0 if value == 0 else (1.0 if value > 0 else -1.0)
    return max(-1.0, min(1.0, value / level))


def on_white(share: float) -> Color:
    """The colour of a share on white paper."""
    color, size = (POSITIVE if share > 0 else NEGATIVE), abs(share)
    red, green, blue = (round(255 + (c - 255) * size) for c in color)
    return red, green, blue
