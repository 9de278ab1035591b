"""The command line. Only light imports at the top: ``pfungst --help`` must not import torch."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from pfungst import __version__
from pfungst.errors import PfungstError

app = typer.Typer(
    help="Find out what a model really looks at, measure what that costs after deployment, and mend the model.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
audit = typer.Typer(help="Audit a model: explain, measure, mitigate, report.", no_args_is_help=True)
app.add_typer(audit, name="audit")


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
    try:
        app()
    except PfungstError as error:
        typer.secho(f"pfungst: {error}", fg=typer.colors.RED, err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        typer.secho("\ninterrupted; run the same command with --resume to go on", err=True)
        sys.exit(130)
