"""``pfungst doctor``."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

_MARKS = {"ok": ("ok", None), "missing": ("--", typer.colors.YELLOW), "wrong": ("!!", typer.colors.RED)}


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """What this machine and this installation can run, what not and what to do about it, and a short
    self-test; exits 2 if Pfungst does not work."""
    from pfungst.doctor import examine

    findings = []
    for finding in examine():
        findings.append(finding)
        if not as_json:
            mark, colour = _MARKS[finding.state]
            typer.secho(f"{mark} {finding.about}: {finding.found}", fg=colour)
            if finding.remedy:
                typer.echo(f"     → {finding.remedy}")
    wrong = sum(finding.state == "wrong" for finding in findings)
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        missing = sum(finding.state == "missing" for finding in findings)
        typer.echo(
            f"\n{wrong} wrong, {missing} missing that nothing needs unless you ask for it"
            if wrong or missing
            else "\nall is well"
        )
    raise typer.Exit(2 if wrong else 0)
