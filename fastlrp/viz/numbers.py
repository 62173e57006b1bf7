"""Numbers as papers print them: a minus sign that is one, powers of ten instead of ``e-05``."""

from __future__ import annotations

import math

_SUPERSCRIPT = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


def number(value: float, digits: int = 2, sign: bool = False) -> str:
    """``-0.00012`` is ``−1.2×10⁻⁴``.

    Args:
        digits: significant ones. sign: a plus before what is positive.
    """
    if not math.isfinite(value):
        return str(value).replace("-", "−")
    text = f"{abs(value):.{digits}g}"
    if "e" in text or (value != 0 and abs(value) < 1e-3):
        mantissa, _, exponent = f"{abs(value):.{digits - 1}e}".partition("e")
        if "." in mantissa:
            mantissa = mantissa.rstrip("0").rstrip(".")
        text = f"{mantissa}×10{str(int(exponent)).translate(_SUPERSCRIPT)}"
    before = "−" if value < 0 else "+" if sign and value > 0 else ""
    return before + text


def fixed(value: float, places: int = 2) -> str:
    """A score with a sign and so many places behind the point; with a power of ten where they would show nothing."""
    if value != 0 and (abs(value) < 0.5 * 10**-places or abs(value) >= 1e6) and math.isfinite(value):
        return number(value, places + 1, sign=True)
    return f"{value:+.{places}f}".replace("-", "−")
