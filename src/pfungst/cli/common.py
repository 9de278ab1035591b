"""What the commands share: options that several have, and what happens before and after their work."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pfungst.errors import ConfigError

if TYPE_CHECKING:
    from pfungst.audit.result import Result

Config = Annotated[Path | None, typer.Option(help="TOML file with the same names.")]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Folder for result, arrays and report.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda.")]
Seeds = Annotated[int | None, typer.Option(help="Repetitions [5].")]
Seed = Annotated[int | None, typer.Option(help="First seed [0].")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave unreadable images out and count them.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with an interrupted audit.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an earlier result.")]
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


def given(options: dict[str, Any]) -> dict[str, Any]:
    """The parameters of a command as ``AuditConfig.build`` takes them: flags and lists not given are None."""
    named = {name: None if value is False or value == [] else value for name, value in options.items()}
    named["file"] = named.pop("config")
    return named


def finish(result: Result, folder: Path) -> None:
    """Print what an audit found and write its report."""
    from pfungst.audit.summary import print_summary
    from pfungst.report import write

    print_summary(result)
    typer.echo(f"\nreport: {write(folder, result)}")
