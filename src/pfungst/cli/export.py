"""``pfungst export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pfungst.errors import ConfigError


def export(
    folder: Annotated[Path, typer.Argument(help="Folder of an audit.")],
    onnx: Annotated[bool, typer.Option("--onnx", help="model.onnx, for ONNX Runtime and others.")] = False,
    torch_export: Annotated[
        bool, typer.Option("--torch-export", help="model.pt2, which torch runs without Pfungst.")
    ] = False,
    state_dict: Annotated[
        bool,
        typer.Option("--state-dict", help="state_dict.safetensors, under the names of the original network."),
    ] = False,
    entry: Annotated[str | None, typer.Option(help="CATEGORY / DETECTOR of an anomaly audit [all].")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder to write into [beside the mended model].")
    ] = None,
) -> None:
    """Write the mended model of an audit in other formats; each is read back and compared."""
    wanted = {"onnx": onnx, "torch-export": torch_export, "state-dict": state_dict}
    formats = [name for name, given in wanted.items() if given]
    if not formats:
        raise ConfigError("no format is named", "give --onnx, --torch-export or --state-dict, or several")
    from pfungst.audit.mended import export_mended, folders

    models = folders(folder, entry)
    for model in models:
        where = model if out is None else out / model.name if len(models) > 1 else out
        for file, gap in export_mended(model, formats, where).items():
            told = "not compared" if gap != gap else f"differs by {gap:.1g} from the audited model"
            typer.echo(f"{file}: {told}")
