"""The command line. Modules import light things only: ``pfungst --help`` must not import torch."""

from __future__ import annotations

import io
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NoReturn

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
from pfungst.cli.reproduce import reproduce
from pfungst.cli.tools import check, conditions, demo, people, report
from pfungst.errors import PfungstError
from pfungst.files import disk_is_full
from pfungst.memory import keep_freed_memory
from pfungst.threads import share_the_machine

app = group(
    "Find out what a model really looks at, measure what that costs after deployment, and mend the model."
)
app.add_typer(audit, name="audit")
app.command()(discover)
app.command()(label)
app.add_typer(pool, name="pool")
for command in (demo, doctor, check, compare, watch, export, report, people, conditions, claims, reproduce):
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
    debug: Annotated[
        bool, typer.Option("--debug", help="Show where an unforeseen error came from; also PFUNGST_DEBUG=1.")
    ] = False,
) -> None:
    if debug:
        os.environ["PFUNGST_DEBUG"] = "1"


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Entry point: whatever goes wrong becomes one message and exit code 2; 1 is a gate that failed.

    Ctrl-C exits with 130, and with 141 what nobody reads any more, as shells say it.
    """
    keep_freed_memory()
    share_the_machine()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that lacks a sign shows its number
            stream.reconfigure(errors="backslashreplace")
    words = list(sys.argv[1:] if args is None else args)
    try:
        code = app(words, standalone_mode=False)
    except SystemExit as error:  # typer's, of a pipe that was closed
        code = 141 if isinstance(error.__context__, BrokenPipeError) else error.code
    except PfungstError as error:
        code = _refuse(str(error))
    except Exception as error:
        if hasattr(error, "show"):  # typer's own, about options
            error.show()
            code = getattr(error, "exit_code", 2)
        elif os.environ.get("PFUNGST_DEBUG"):
            traceback.print_exc()
            code = 2
        else:
            code = _refuse(_unforeseen(error))
    if code == 130:
        again = "with --resume " if {"audit", "discover"} & set(words[:1]) else ""
        typer.secho(f"\ninterrupted; finished parts are kept, run the same command {again}to go on", err=True)
    sys.exit(code if isinstance(code, int) else 0)


def _refuse(text: str) -> int:
    typer.secho(f"pfungst: {text}", fg=typer.colors.RED, err=True)
    return 2


def _unforeseen(error: Exception) -> str:
    """What happened and where, in two lines, of an error that nobody gave a name."""
    text = " ".join(str(error).split())[:300] or "no more is known"
    kind = type(error).__name__
    if disk_is_full(error):
        return f"the disk is full: {text}\n  → free some space and run the same command again"
    if isinstance(error, MemoryError) or "OutOfMemory" in kind or "not enough memory" in text:
        return f"memory does not suffice: {text}\n  → use smaller images, batches or fewer workers"
    if isinstance(error, RecursionError):
        return f"an input is nested too deeply: {text}\n  → flatten it"
    if isinstance(error, OSError) and error.strerror:
        name = f"{str(error.filename)[:200]!r}: " if error.filename else ""
        return f"{name}{error.strerror}\n  → check the path and its rights"
    frames = [
        f for f in traceback.extract_tb(error.__traceback__) if f"{os.sep}pfungst{os.sep}" in f.filename
    ]
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return (
        f"an error that was not foreseen: {kind}: {text}{where}\n"
        "  → check the files and options given; PFUNGST_DEBUG=1 shows the whole way to it"
    )
