"""``pfungst claims``."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from typing import Annotated

import typer


def claims(
    status: Annotated[str | None, typer.Option(help="verified, measured or not-verified [all].")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Each method and finding of Pfungst: verified against what, measured on what, not verified, and the test
    that shows it."""
    from pfungst.claims import STATUSES, choose

    chosen = choose(status)
    if as_json:
        typer.echo(
            json.dumps([{"status": c.status, **asdict(c)} for c in chosen], indent=1, ensure_ascii=False)
        )
        return
    for claim in chosen:
        typer.secho(f"{claim.area}: {claim.name}", bold=True)
        told = [
            ("verified against", claim.verified),
            ("measured on", claim.measured),
            ("not verified" if claim.status == "not-verified" else "not shown", claim.missing),
            ("see", ", ".join(claim.tests)),
        ]
        for word, text in told:
            if text:
                typer.echo(f"    {word}: {text}")
    count = Counter(claim.status for claim in chosen)
    typer.echo(f"\n{len(chosen)} claims: " + ", ".join(f"{count[s]} {s}" for s in STATUSES if count[s]))
