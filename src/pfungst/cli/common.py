"""What the commands share: options that several have, and what happens before and after their work."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pfungst.errors import ConfigError

if TYPE_CHECKING:
    from pfungst.audit.result import Result

Out = Annotated[Path | None, typer.Option("--out", "-o", help="Folder for result, arrays and report.")]
TrustCheckpoint = Annotated[
    bool, typer.Option("--trust-checkpoint", help="Also read checkpoints that can run code.")
]


def group(text: str) -> typer.Typer:
    """A group of commands with plain help: rich alone would take 0.4 s."""
    return typer.Typer(help=text, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)


def needs(extra: str, *modules: str) -> None:
    """Refuse to go on without the modules of an extra."""
    from importlib.util import find_spec

    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise ConfigError(f"{', '.join(missing)} is not installed", f"pip install 'pfungst[{extra}]'")


def finish(result: Result, folder: Path, fail_on: Sequence[str] = ()) -> None:
    """Print what an audit found and write its report; exit with 1 where its verdict is one to fail on."""
    from pfungst.audit.summary import print_summary
    from pfungst.report import write

    print_summary(result)
    typer.echo(f"\nreport: {write(folder, result)}")
    if result.verdict.level in fail_on:
        typer.secho(f"FAIL  the verdict is {result.verdict.level}", fg=typer.colors.RED)
        raise typer.Exit(1)
