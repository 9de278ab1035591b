"""The command line. Only light imports at the top of its modules: ``pfungst --help`` must not import torch."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from pfungst import __version__
from pfungst.cli.audit import audit
from pfungst.cli.common import group
from pfungst.cli.label import label
from pfungst.cli.pool import pool
from pfungst.cli.tools import check, demo, report
from pfungst.errors import PfungstError

app = group(
    "Find out what a model really looks at, measure what that costs after deployment, and mend the model."
)
app.add_typer(audit, name="audit")
app.command()(label)
app.add_typer(pool, name="pool")
for command in (demo, check, report):
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


def _keep_freed_memory() -> None:
    """Let glibc reuse the memory of large tensors instead of giving it back after each operation.

    By default every array above 32 MB is mapped and unmapped anew; the page faults cost as much as the
    arithmetic (measured: a third of the demo's CPU time). A decision for a whole process, so the command line
    makes it and the library does not. Other C libraries are left alone.
    """
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mmap_threshold, trim_threshold = -3, -1
        mallopt(mmap_threshold, 1 << 30)
        mallopt(trim_threshold, (1 << 31) - 1)


def main() -> None:
    """Entry point: our own errors become one message and exit code 2."""
    _keep_freed_memory()
    try:
        app()
    except PfungstError as error:
        typer.secho(f"pfungst: {error}", fg=typer.colors.RED, err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        typer.secho("\ninterrupted; run the same command with --resume to go on", err=True)
        sys.exit(130)
