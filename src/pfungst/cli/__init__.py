"""The command line. Only light imports at the top of its modules: ``pfungst --help`` must not import
torch."""

from __future__ import annotations

import io
import sys
from typing import Annotated

import typer

from pfungst import __version__
from pfungst.cli.audit import audit
from pfungst.cli.claims import claims
from pfungst.cli.common import group
from pfungst.cli.compare import compare, watch
from pfungst.cli.discover import discover
from pfungst.cli.doctor import doctor
from pfungst.cli.export import export
from pfungst.cli.label import label
from pfungst.cli.pool import pool
from pfungst.cli.tools import check, conditions, demo, report
from pfungst.errors import PfungstError
from pfungst.memory import keep_freed_memory
from pfungst.threads import share_the_machine

app = group(
    "Find out what a model really looks at, measure what that costs after deployment, and mend the model."
)
app.add_typer(audit, name="audit")
app.command()(discover)
app.command()(label)
app.add_typer(pool, name="pool")
for command in (demo, doctor, check, compare, watch, export, report, conditions, claims):
    app.command()(command)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"pfungst {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point: our own errors become one message and exit code 2."""
    keep_freed_memory()
    share_the_machine()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that lacks a sign shows its number
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except PfungstError as error:
        typer.secho(f"pfungst: {error}", fg=typer.colors.RED, err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        typer.secho("\ninterrupted; run the same command with --resume to go on", err=True)
        sys.exit(130)
