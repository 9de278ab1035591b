"""``pfungst reproduce``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pfungst.cli.common import Out
from pfungst.errors import ConfigError


def reproduce(
    what: Annotated[str | None, typer.Argument(help="Table or figure, such as 001-table2.")] = None,
    *,
    list_: Annotated[
        bool, typer.Option("--list", help="List every table and figure, and what each needs.")
    ] = False,
    data: Annotated[Path | None, typer.Option(help="The data it needs.")] = None,
    val: Annotated[Path | None, typer.Option(help="Validation images of classifiers.")] = None,
    spurious: Annotated[Path | None, typer.Option(help="Images with only a spurious feature.")] = None,
    components: Annotated[
        Path | None, typer.Option(help="Components of the first classifier that people judged spurious.")
    ] = None,
    diffusion: Annotated[
        Path | None, typer.Option(help="Diffusion model in image space, as diffusers saves pipelines.")
    ] = None,
    logo: Annotated[Path | None, typer.Option(help="Picture of the logo that is pasted.")] = None,
    people: Annotated[Path | None, typer.Option(help="CSV of path and human, human or no human.")] = None,
    letters: Annotated[
        Path | None,
        typer.Option(help="EMNIST letters, which train the digits' one-class model [rendered ones]."),
    ] = None,
    alexnet: Annotated[Path | None, typer.Option(help="torchvision's AlexNet, for LPIPS distances.")] = None,
    lpips: Annotated[Path | None, typer.Option(help="LPIPS's linear weights on it, as published.")] = None,
    models: Annotated[
        str | None, typer.Option(help="Encoders or classifiers: A,checkpoint=FILE,B,checkpoint=FILE.")
    ] = None,
    stand_in: Annotated[
        bool, typer.Option("--stand-in", help="Use what Pfungst brings, or --data that are not the paper's.")
    ] = False,
    tiny: Annotated[bool, typer.Option("--tiny", help="As small as it runs, with --stand-in.")] = False,
    seeds: Annotated[int | None, typer.Option(min=1, help="Repetitions [of the audit].")] = None,
    size: Annotated[
        int | None, typer.Option(min=8, help="Side of the images in pixels [the models'].")
    ] = None,
    classes: Annotated[
        str | None, typer.Option(help="Few classes or corruptions, comma-separated [all].")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, … [auto].")] = "auto",
    out: Out = None,
) -> None:
    """Make a table or figure of the papers beside the paper's own numbers."""
    from pfungst.papers import catalogue, find

    if list_:
        for piece in catalogue().values():
            typer.secho(f"{piece.id}: {piece.title}", bold=True)
            told = (("needs", piece.needs), ("stand-in, runs here", piece.stand_in), ("note", piece.note))
            for word, text in (("state", piece.state), *told):
                if text:
                    typer.echo(f"    {word}: {text}")
        return
    if what is None:
        raise ConfigError("no table or figure is named", "see pfungst reproduce --list")
    piece = find(what)
    if tiny and not stand_in:
        raise ConfigError("--tiny reproduces nothing", "use it with --stand-in")
    from pfungst.papers.made import Wish
    from pfungst.papers.run import reproduce as make

    given = {"val": val, "spurious": spurious, "components": components, "diffusion": diffusion}
    given |= {"logo": logo, "people": people, "letters": letters, "alexnet": alexnet, "lpips": lpips}
    more = {k: v for k, v in given.items() if v is not None}
    folder = out or Path("pfungst-reproduce")
    few = [name.strip() for name in (classes or "").split(",") if name.strip()]
    wish = Wish(piece, folder, data, stand_in, tiny, models, more, seeds, size, few, device)
    found, where = make(wish)
    for numbers in found.numbers:
        typer.secho(f"\n{numbers.title}", bold=True)
        for cell in numbers.cells:
            ours = "–" if cell.ours is None else f"{cell.ours.value:.3f}"
            theirs = "" if cell.paper is None else f"   paper {cell.paper:.3f}"
            typer.echo(f"  {cell.row}, {cell.column}: {ours}{theirs}")
    if found.stand_in:
        typer.secho(f"\n{found.stand_in}", fg=typer.colors.YELLOW)
    typer.echo(f"\npage: {where}")
