"""``pfungst compare`` and ``pfungst watch``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pfungst.cli.common import finish

FailOn = Annotated[
    list[str] | None, typer.Option(help="Exit with 1 where the verdict is one of these, such as fragile.")
]
_FAIL_ON = ["fragile"]


def compare(
    first: Annotated[Path, typer.Argument(help="Folder of an audit: the old model, data or version.")],
    second: Annotated[Path, typer.Argument(help="Folder of an audit of the same kind: the new one.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for result and report [pfungst-comparison].")
    ] = Path("pfungst-comparison"),
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap.")] = 0,
    fail_on: FailOn = None,
) -> None:
    """What got better and worse from one audit to another, over the images that both saw? Differences are
    gates of `pfungst check`."""
    from pfungst.audit.compare import compare as run
    from pfungst.audit.config import levels_of

    levels = levels_of(fail_on or ())
    finish(run(first, second, out, seed), out, levels)


def watch(
    folder: Annotated[Path, typer.Argument(help="Folder of an audit that wrote a mended model.")],
    images: Annotated[Path, typer.Argument(help="New images, without labels: a folder, CSV or Parquet.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for result and report [pfungst-watch].")
    ] = Path("pfungst-watch"),
    entry: Annotated[
        str | None, typer.Option(help="CATEGORY / DETECTOR of an anomaly audit with several.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda.")] = "auto",
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave unreadable images out and count them.")
    ] = False,
    fail_on: FailOn = None,
) -> None:
    """Have the images changed since the audit? Scores, shares of relevance and what the files tell, against
    what the audit kept. Exits with 1 where they have."""
    from pfungst.audit.config import levels_of
    from pfungst.audit.watch import watch as run

    levels = levels_of(_FAIL_ON if fail_on is None else fail_on)
    finish(run(folder, images, out, entry=entry, device=device, skip_bad=skip_bad), out, levels)
