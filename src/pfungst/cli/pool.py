"""``pfungst pool``: index, score, search, export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pfungst.cli.common import TrustCheckpoint, group, needs
from pfungst.progress import progress_bar

pool = group("Search millions of unlabelled images.")


@pool.command("index")
def pool_index(
    source: Annotated[Path, typer.Argument(help="Folder of images, of tar shards or of Parquet files.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the pool.")],
    column: Annotated[str, typer.Option(help="Image column of Parquet files.")] = "image",
    id_column: Annotated[str | None, typer.Option(help="Column with unique ids [file and row].")] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave unreadable files out.")] = False,
) -> None:
    """List the images of a pool; nothing is copied."""
    needs("pool", "duckdb")
    from pfungst.pool import index

    found = index(source, out, column=column, id_column=id_column, skip_bad=skip_bad)
    typer.echo(f"{found.rows:,} images in {found.shards} shards: {out}")
    for file, reason in found.unreadable.items():
        typer.secho(f"  left out {file}: {reason}", err=True)


@pool.command("score")
def pool_score(
    folder: Annotated[Path, typer.Argument(help="Folder of the pool.")],
    model: Annotated[
        list[str],
        typer.Option(
            help="[NAME=]SPEC[,checkpoint=FILE][,condition=CONDITION][,size=PIXELS]; may be repeated. "
            "SPEC as for `audit classifier`; images are prepared as for the published weights unless told "
            "otherwise."
        ),
    ],
    workers: Annotated[
        int,
        typer.Option(help="Worker processes, 0 works in this one; with --ray at most so many, 0 for all."),
    ] = 0,
    threads: Annotated[int, typer.Option(help="Decoding threads per process.")] = 2,
    batch_size: Annotated[int, typer.Option(help="Images per forward pass.")] = 64,
    ray: Annotated[
        str | None,
        typer.Option(
            help="Score on a Ray cluster: HOST:PORT, or auto (the running one, else one of its own)."
        ),
    ] = None,
    trust_checkpoint: TrustCheckpoint = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda.")] = "auto",
) -> None:
    """Run models over a pool once and keep their features; finished parts are skipped."""
    needs("pool", "duckdb")
    if ray is not None:
        needs("ray", "ray")
    from pfungst.pool import PoolModel, score

    models = [PoolModel.parse(text, trust_checkpoint) for text in model]
    with progress_bar("scoring") as bar:
        done = score(folder, models, workers, batch_size, device, threads, ray, bar.reach)
    typer.echo(f"{done.rows:,} images, {done.shards} parts scored, {done.skipped} were finished before")
    for name, count in done.errors.items():
        if count:
            typer.secho(f"  {name}: {count} images could not be read or scored", err=True)


@pool.command("search")
def pool_search(
    folder: Annotated[Path, typer.Argument(help="Folder of a scored pool.")],
    npca: Annotated[Path, typer.Option(help="Folder of a classifier audit, or what NeuralPCA.save wrote.")],
    class_: Annotated[str, typer.Option("--class", help="Class, by name or index.")],
    component: Annotated[int, typer.Option(help="Component, counted from 0.")],
    model: Annotated[
        str | None, typer.Option(help="Model whose features are searched [the one that was audited].")
    ] = None,
    agree: Annotated[
        int, typer.Option(help="How many models must predict the class; 0 looks at all images.")
    ] = 0,
    top: Annotated[int, typer.Option(help="How many images.")] = 625,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Task folder for `pfungst label` to make.")
    ] = None,
) -> None:
    """Find the images that show a component most, from the stored features."""
    needs("pool", "duckdb")
    from pfungst.pool import open_pool, read_component, search, to_label_task
    from pfungst.pool.component import model_of

    wanted = read_component(npca, class_, component)
    model = model or model_of(open_pool(folder), wanted.direction)
    hits = search(folder, wanted.direction, model, agree=agree, top=top)
    for hit in hits[:10]:
        typer.echo(f"{hit.alpha:10.4g}  {hit.id}")
    typer.echo(f"{len(hits)} images found" + (", the first 10 are shown" if len(hits) > 10 else ""))
    if out is not None:
        about = wanted.direction.class_index, wanted.class_name, component, model
        names, shown = wanted.names, wanted.reference
        to_label_task(folder, hits, out, *about, class_names=names, reference=shown)
        typer.echo(f"to judge them: pfungst label {out} --labeller NAME")


@pool.command("export")
def pool_export(
    folder: Annotated[Path, typer.Argument(help="Labelled task folder of images.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the data set.")],
) -> None:
    """Write the images that all labellers judged out as a data set in Spurious ImageNet's layout."""
    needs("pool", "duckdb")
    from pfungst.pool import to_spurious_folder

    for name, count in to_spurious_folder(folder, out).items():
        typer.echo(f"{count:6,}  {name}")
