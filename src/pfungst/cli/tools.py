"""``pfungst demo``, ``check``, ``report`` and ``conditions``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pfungst.cli.common import Out


def demo(
    out: Out = None,
    only: Annotated[str | None, typer.Option(help="anomaly, similarity or classifier [all three].")] = None,
    train: Annotated[
        bool, typer.Option("--train", help="Train the small networks anew instead of taking those at hand.")
    ] = False,
) -> None:
    """A Clever Hans effect, found, measured and mended, on data that Pfungst makes itself."""
    from pfungst.audit.demo import run_demo
    from pfungst.audit.summary import print_summary
    from pfungst.report import write

    for result, page in run_demo(out or Path("pfungst-demo"), write, only, train):
        print_summary(result)
        typer.echo(f"\nreport: {page}")


def check(
    folder: Annotated[Path, typer.Argument(help="Folder of an audit.")],
    maximum: Annotated[list[str] | None, typer.Option("--max", help="METRIC=BOUND, fails above.")] = None,
    minimum: Annotated[list[str] | None, typer.Option("--min", help="METRIC=BOUND, fails below.")] = None,
    junit: Annotated[Path | None, typer.Option(help="Write JUnit XML to this file.")] = None,
) -> None:
    """Hold the result of an audit against gates; exits 0 or 1."""
    from pfungst.audit.check import Gate, write_junit
    from pfungst.audit.check import check as run_gates
    from pfungst.audit.result import load

    gates = [Gate.parse(text, "max") for text in maximum or []] + [
        Gate.parse(text, "min") for text in minimum or []
    ]
    outcomes = run_gates(load(folder), gates)
    for outcome in outcomes:
        typer.secho(str(outcome), fg=None if outcome.passed else typer.colors.RED)
    if junit is not None:
        write_junit(outcomes, junit)
    raise typer.Exit(0 if all(outcome.passed for outcome in outcomes) else 1)


def report(folder: Annotated[Path, typer.Argument(help="Folder of an audit.")]) -> None:
    """Write the report of an audit anew from its result."""
    from pfungst.report import write

    typer.echo(write(folder))


def conditions() -> None:
    """List the conditions under which images can reach a model: steps, their parameters, resizers."""
    from pfungst.conditions import condition_page

    typer.echo(condition_page(), nl=False)
