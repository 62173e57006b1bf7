"""The command line: ``fastlrp explain``, ``report``, ``verify``, ``bench``, ``demo``, ``info``.

Needs click, tqdm, Pillow and matplotlib: ``pip install "fastlrp[cli]"``. Nothing here is imported by the rest of the
package, and importing this package alone loads none of them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from fastlrp.cli import pipe

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line on ``arguments``, by default the program's own, and leave with its exit code.

    Exit codes: 0 all done; 1 some inputs failed, a check failed, or the run had to stop; 2 it could not be done as
    asked; 130 interrupted.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if arguments is None:
        pipe.settle()
    try:
        import click  # noqa: F401
    except ImportError:
        if _without_click(given):
            raise SystemExit(0) from None
        print('fastlrp: error: the command line needs click: pip install "fastlrp[cli]"', file=sys.stderr)
        raise SystemExit(2) from None
    from fastlrp.cli.app import app

    app.main(args=None if arguments is None else list(arguments), prog_name="fastlrp")


def _without_click(arguments: Sequence[str]) -> bool:
    """Answer what needs no extra package: the version, and what is installed. Says whether that was asked."""
    if arguments not in (["--version"], ["info"], ["info", "--all"]):
        return False
    from fastlrp import info

    if arguments == ["--version"]:
        print(f"fastlrp {info.package_version('fastlrp')}")
    else:
        print(info.text() if "--all" in arguments else info.short())
    return True
