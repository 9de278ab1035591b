"""``pfungst label``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pfungst.cli.common import needs


def label(
    folder: Annotated[
        Path, typer.Argument(help="Task folder with label-task.json, for example of an audit.")
    ],
    labeller: Annotated[list[str], typer.Option(help="Name of a labeller; once per person.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="TCP port, 0 for any free one.")] = 8765,
    name: Annotated[
        list[str] | None, typer.Option(help="Host name under which browsers reach the server.")
    ] = None,
) -> None:
    """Let people judge components, findings or images, in the browser, each on their own."""
    needs("label", "fastapi", "uvicorn")
    from pfungst.label import serve

    serve(folder, labeller, host, port, name or (), typer.echo)
