"""The group of commands, and what becomes of errors: one line, an exit code, no traceback unless asked for."""

from __future__ import annotations

import errno
import traceback
from typing import Any

import click

from fastlrp.cli import options, stop
from fastlrp.cli.bench import bench
from fastlrp.cli.demo import demo
from fastlrp.cli.errors import FAILED, INTERRUPTED, USAGE, Failure, one_line, printable
from fastlrp.cli.explain import explain
from fastlrp.cli.report import report
from fastlrp.cli.verify import verify

_AS_ASKED = (ImportError, ValueError, TypeError, LookupError)


class App(click.Group):
    """Commands that fail in one line."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except KeyboardInterrupt:
            stop.deaf()
            click.echo("error: interrupted", err=True)
            ctx.exit(INTERRUPTED)
        except Exception as error:
            if isinstance(error, OSError) and error.errno == errno.EPIPE:
                raise
            if ctx.meta.get(options.DEBUG):
                traceback.print_exc()
            click.echo(f"error: {printable(_message(error))}", err=True)
            ctx.exit(_code(error))


def _message(error: Exception) -> str:
    expected = isinstance(error, (Failure, OSError, *_AS_ASKED)) or type(error).__module__.startswith("fastlrp")
    return one_line(error) if expected else f"{one_line(error)} (--debug shows where)"


def _code(error: Exception) -> int:
    if isinstance(error, Failure):
        return error.code
    if type(error).__module__.startswith("fastlrp"):
        return USAGE
    return USAGE if isinstance(error, _AS_ASKED) else FAILED


@click.group(cls=App, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="fastlrp", message="%(prog)s %(version)s")
def app() -> None:
    """Layer-wise relevance propagation: which pixels speak for a class, and which against it?

    \b
    First steps
      fastlrp demo                                    try it: no data, no download
      fastlrp explain torchvision:resnet18@DEFAULT cat.jpg
      fastlrp explain --help                          everything that it can do
    """


@click.command(short_help="Versions and backends, for a bug report.")
@click.option("--all", "everything", is_flag=True, help="Each operation, and why a backend cannot run.")
def info(everything: bool) -> None:
    """Versions, how fastlrp was built, and who computes here; with --all what to paste into a bug report."""
    from fastlrp.info import short, text

    click.echo(text() if everything else short())


for _command in (explain, report, verify, bench, demo, info):
    app.add_command(_command)
