"""The command line: ``fastlrp explain``, ``report``, ``verify``, ``bench``, ``demo``, ``info``.

Needs click, tqdm, Pillow and matplotlib: ``pip install "fastlrp[cli]"``. Nothing here is imported by the rest of the
package, and importing this package alone loads none of them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line on ``arguments``, by default the program's own, and leave with its exit code.

    Exit codes: 0 all done; 1 some inputs failed, a check failed, or the run had to stop; 2 it could not be done as
    asked; 130 interrupted.
    """
    try:
        import click  # noqa: F401
    except ImportError:
        print('fastlrp: error: the command line needs click: pip install "fastlrp[cli]"', file=sys.stderr)
        raise SystemExit(2) from None
    from fastlrp.cli.app import app

    app.main(args=None if arguments is None else list(arguments), prog_name="fastlrp")
