"""``pfungst demo``, ``check``, ``report``, ``people`` and ``conditions``."""

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
    maximum: Annotated[
        list[str] | None, typer.Option("--max", help="METRIC=BOUND, fails above; of what is better low.")
    ] = None,
    minimum: Annotated[
        list[str] | None, typer.Option("--min", help="METRIC=BOUND, fails below; of what is better high.")
    ] = None,
    verdict: Annotated[
        list[str] | None, typer.Option(help="Verdicts that pass, comma-separated, such as sound,fragile.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--config", help="TOML file of gates: [max], [min], verdict = […].")
    ] = None,
    junit: Annotated[Path | None, typer.Option(help="Write JUnit XML to this file.")] = None,
    markdown: Annotated[
        Path | None, typer.Option(help="Write a summary for a pull request to this file.")
    ] = None,
) -> None:
    """Hold the result of an audit against gates: exits with 0, or 1 where one fails. Without gates, list
    what could be gated on."""
    from pfungst.audit.check import Gates, list_metrics, write_junit
    from pfungst.audit.check import check as run_gates
    from pfungst.audit.check import markdown as summary
    from pfungst.audit.result import load
    from pfungst.files import write

    result = load(folder)
    gates = Gates.read(file, maximum or (), minimum or (), verdict or ())
    outcomes = run_gates(result, gates)
    if junit is not None:
        write_junit(outcomes, result, junit)
    if markdown is not None:
        write(markdown, summary(outcomes, result))
    if not gates:
        typer.echo(list_metrics(result))
    for outcome in outcomes:
        typer.secho(str(outcome), fg=None if outcome.passed else typer.colors.RED)
    raise typer.Exit(0 if all(outcome.passed for outcome in outcomes) else 1)


def report(folder: Annotated[Path, typer.Argument(help="Folder of an audit.")]) -> None:
    """Write the report of an audit anew from its result."""
    from pfungst.report import write

    typer.echo(write(folder))


def people(
    images: Annotated[Path, typer.Argument(help="Folder, CSV or Parquet of images.")],
    detector: Annotated[
        Path | None,
        typer.Option(
            help="Weights of torchvision's Faster R-CNN v2 (COCO), a face cascade (.xml) or YuNet (.onnx) "
            "[faces, where facenet-pytorch is installed]."
        ),
    ] = None,
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="The CSV, for --groups-file or --people.")],
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, … [auto].")] = "auto",
) -> None:
    """Say of every image whether a detector finds people in it, as a column "human"."""
    from pfungst.data.people import people_table

    for note in people_table(images, detector, out, device):
        typer.echo(note)


def conditions() -> None:
    """List the conditions under which images can reach a model: steps, their parameters, resizers."""
    from pfungst.conditions import condition_page

    typer.echo(condition_page(), nl=False)
