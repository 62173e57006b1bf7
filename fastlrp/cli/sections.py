"""Help in sections: what a newcomer looks for comes first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click


class Option(click.Option):
    """An option that stands in a section of the help."""

    def __init__(self, *names: Any, section: str = "Messages", **settings: Any) -> None:
        super().__init__(*names, **settings)
        self.section = section


class Command(click.Command):
    """A command whose help has its arguments first and then sections, in the order in which they first appear."""

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        pieces = super().collect_usage_pieces(ctx)
        return [*pieces[1:], *pieces[:1]]  # What must be given comes before what may be.

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            row = parameter.get_help_record(ctx)
            if row is not None:
                rows.setdefault(getattr(parameter, "section", "Messages"), []).append(row)
        messages = rows.pop("Messages", [])
        for section, found in (*rows.items(), ("Messages", messages)):
            with formatter.section(section):
                formatter.write_dl(found)


def option(section: str) -> Callable[..., Callable[[Any], Any]]:
    """``click.option`` for a section."""

    def make(*names: str, **settings: Any) -> Callable[[Any], Any]:
        return click.option(*names, cls=Option, section=section, **settings)

    return make
