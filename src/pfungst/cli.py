"""The command line. Only light imports at the top: ``pfungst --help`` must not import torch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pfungst import __version__
from pfungst.errors import ConfigError, PfungstError

if TYPE_CHECKING:
    from pfungst.audit.result import Result

# Plain help: rich alone would take 0.4 s.
app = typer.Typer(
    help="Find out what a model really looks at, measure what that costs after deployment, and mend the model.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
audit = typer.Typer(
    help="Audit a model: explain, measure, mitigate, report.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(audit, name="audit")
pool = typer.Typer(help="Search millions of unlabelled images.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(pool, name="pool")


def _version(value: bool) -> None:
    if value:
        typer.echo(f"pfungst {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


OutOption = Annotated[Path | None, typer.Option("--out", "-o", help="Folder for result, arrays and report.")]


@audit.command("anomaly")
def audit_anomaly(
    data: Annotated[
        str | None, typer.Argument(help="MVTec folder, CSV, Parquet, image folder, or 'synthetic'.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file with the same names.")] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Detectors, comma-separated: d2neighbors, kde, patchcore, autoencoder, one-class, bag:A+B."
        ),
    ] = None,
    original: Annotated[
        str | None, typer.Option(help="Condition before deployment [opencv-nearest].")
    ] = None,
    deployed: Annotated[
        str | None, typer.Option(help="Condition after deployment [pillow-bilinear].")
    ] = None,
    mitigate: Annotated[str | None, typer.Option(help="blur, lowpass or none [blur].")] = None,
    size: Annotated[int | None, typer.Option(help="Side of the prepared images in pixels [224].")] = None,
    category: Annotated[str | None, typer.Option(help="Categories, comma-separated [all].")] = None,
    groups: Annotated[
        str | None, typer.Option(help="Columns that say where images come from [auto].")
    ] = None,
    protocol: Annotated[str | None, typer.Option(help="held-out or published [held-out].")] = None,
    seeds: Annotated[int | None, typer.Option(help="Repetitions [5].")] = None,
    seed: Annotated[int | None, typer.Option(help="First seed [0].")] = None,
    out: OutOption = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave unreadable images out and count them.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted audit.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier result.")] = False,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda.")] = None,
) -> None:
    """Does an anomaly detector look at the defects, and does it survive deployment?"""
    from pfungst.audit.anomaly.config import AnomalyConfig
    from pfungst.audit.anomaly.run import run

    settings = AnomalyConfig.build(
        config,
        data=data,
        model=model,
        original=original,
        deployed=deployed,
        mitigate=mitigate,
        size=size,
        category=category,
        groups=groups,
        protocol=protocol,
        seeds=seeds,
        seed=seed,
        out=out,
        skip_bad=skip_bad or None,
        resume=resume or None,
        overwrite=overwrite or None,
        device=device,
    )
    _finish(run(settings), settings.out)


@audit.command("similarity")
def audit_similarity(
    images: Annotated[
        str | None, typer.Option(help="Folder, CSV or Parquet of images, or 'synthetic'.")
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option(help="torchvision:NAME, timm:NAME, open_clip:NAME, sentence-transformers:PATH, …"),
    ] = None,
    texts: Annotated[
        Path | None, typer.Option(help="CSV of sentence pairs: first, second, relation.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file with the same names.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Weights of the encoder.")] = None,
    trust_checkpoint: Annotated[
        bool, typer.Option("--trust-checkpoint", help="Also read checkpoints that can run code.")
    ] = False,
    size: Annotated[int | None, typer.Option(help="Side of the images in pixels [the encoder's].")] = None,
    category: Annotated[str | None, typer.Option(help="Category, where the data have several.")] = None,
    labels: Annotated[str | None, typer.Option(help="Column that the probe predicts [label].")] = None,
    positive: Annotated[
        str | None, typer.Option(help="Of two labels the one false positives are counted for.")
    ] = None,
    groups: Annotated[
        str | None, typer.Option(help="Columns that say where images come from [auto].")
    ] = None,
    keep_together: Annotated[
        str | None, typer.Option(help="Column never split between training and test, such as patient [auto].")
    ] = None,
    split: Annotated[str | None, typer.Option(help="given, folds or auto [auto].")] = None,
    folds: Annotated[int | None, typer.Option(help="Number of folds [5].")] = None,
    condition: Annotated[
        list[str] | None, typer.Option(help="Test under it too: logo:FILE, jpeg:30, … May be repeated.")
    ] = None,
    probe: Annotated[str | None, typer.Option(help="logreg or svm [logreg].")] = None,
    mitigate: Annotated[str | None, typer.Option(help="prune:LAYER:5, prune:auto or none [none].")] = None,
    sweep: Annotated[str | None, typer.Option(help="Numbers of filters to try [1,2,5,10,20].")] = None,
    patches: Annotated[int | None, typer.Option(help="Side of the patches in pixels.")] = None,
    pairs: Annotated[int | None, typer.Option(help="Pairs shown per class [2].")] = None,
    explain: Annotated[int | None, typer.Option(help="Images averaged over [40].")] = None,
    limit: Annotated[int | None, typer.Option(help="Use this many images, drawn at random.")] = None,
    cache: Annotated[Path | None, typer.Option(help="Folder of the embeddings [in OUT].")] = None,
    seeds: Annotated[int | None, typer.Option(help="Repetitions [5].")] = None,
    seed: Annotated[int | None, typer.Option(help="First seed [0].")] = None,
    out: OutOption = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave unreadable images out and count them.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted audit.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier result.")] = False,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda.")] = None,
) -> None:
    """What makes two inputs alike to an encoder, and does a probe on it survive?"""
    from pfungst.audit.similarity.config import SimilarityConfig
    from pfungst.audit.similarity.run import run

    settings = SimilarityConfig.build(
        config,
        images=images,
        encoder=encoder,
        texts=texts,
        checkpoint=checkpoint,
        trust_checkpoint=trust_checkpoint or None,
        size=size,
        category=category,
        labels=labels,
        positive=positive,
        groups=groups,
        keep_together=keep_together,
        split=split,
        folds=folds,
        condition=condition or None,
        probe=probe,
        mitigate=mitigate,
        sweep=sweep,
        patches=patches,
        pairs=pairs,
        explain=explain,
        limit=limit,
        cache=cache,
        seeds=seeds,
        seed=seed,
        out=out,
        skip_bad=skip_bad or None,
        resume=resume or None,
        overwrite=overwrite or None,
        device=device,
    )
    _finish(run(settings), settings.out)


@audit.command("classifier")
def audit_classifier(
    config: Annotated[Path | None, typer.Option(help="TOML file with the same names.")] = None,
    model: Annotated[
        str | None,
        typer.Option(help="timm:NAME, torchvision:NAME, package.module:function or file.py:function."),
    ] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Weights: safetensors or a state dict.")] = None,
    train: Annotated[Path | None, typer.Option(help="Training images: CLASS/*.jpg, CSV or Parquet.")] = None,
    val: Annotated[Path | None, typer.Option(help="Validation images of the same classes.")] = None,
    spurious: Annotated[
        Path | None, typer.Option(help="Images with only the feature: folders …_CLASS_component_L.")
    ] = None,
    components: Annotated[
        Path | None, typer.Option(help="Components judged spurious, from the labelling app.")
    ] = None,
    classes: Annotated[
        str | None, typer.Option(help="Classes, comma-separated, by index or name [all].")
    ] = None,
    class_names: Annotated[
        Path | None, typer.Option(help="Names in the order of the model's outputs [sorted folders].")
    ] = None,
    masks: Annotated[Path | None, typer.Option(help="Masks of the object, same paths, .png.")] = None,
    layer: Annotated[str | None, typer.Option(help="The final linear layer [found by itself].")] = None,
    size: Annotated[int | None, typer.Option(help="Side of the images in pixels [the model's].")] = None,
    condition: Annotated[
        str | None, typer.Option(help="How files become images [as for the model's published weights].")
    ] = None,
    n_components: Annotated[int | None, typer.Option(help="Components per class [128].")] = None,
    candidates: Annotated[
        int | None, typer.Option(help="Components that are ranked, per class [128].")
    ] = None,
    shown: Annotated[int | None, typer.Option(help="Components that are kept, per class [10].")] = None,
    steps: Annotated[
        int | None, typer.Option(help="Of the feature visualisation; 0 leaves it out [200].")
    ] = None,
    fix: Annotated[
        int | None, typer.Option(help="Suspects switched off per class without a components file [3].")
    ] = None,
    features: Annotated[
        Path | None, typer.Option(help="Folder to keep features in for later audits.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images at a time [32].")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that load images [0].")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed.")] = None,
    out: OutOption = None,
    trust_checkpoint: Annotated[
        bool, typer.Option("--trust-checkpoint", help="Also read checkpoints that can run code.")
    ] = False,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave unreadable images out and count them.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted audit.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier result.")] = False,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda.")] = None,
) -> None:
    """Which spurious features does a classifier rely on, how much, and what if they are switched off?"""
    from pfungst.audit.classifier.config import ClassifierConfig
    from pfungst.audit.classifier.run import run

    settings = ClassifierConfig.build(
        config,
        model=model,
        checkpoint=checkpoint,
        train=train,
        val=val,
        spurious=spurious,
        components=components,
        classes=classes,
        class_names=class_names,
        masks=masks,
        layer=layer,
        size=size,
        condition=condition,
        n_components=n_components,
        candidates=candidates,
        shown=shown,
        steps=steps,
        fix=fix,
        features=features,
        batch_size=batch_size,
        workers=workers,
        seed=seed,
        out=out,
        trust_checkpoint=trust_checkpoint or None,
        skip_bad=skip_bad or None,
        resume=resume or None,
        overwrite=overwrite or None,
        device=device,
    )
    _finish(run(settings), settings.out)


@app.command()
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
    """Let people judge components or images, in the browser, each on their own."""
    _needs("label", "fastapi", "uvicorn")
    from pfungst.label import serve

    serve(folder, labeller, host, port, name or (), typer.echo)


@pool.command("index")
def pool_index(
    source: Annotated[Path, typer.Argument(help="Folder of images, of tar shards or of Parquet files.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the pool.")],
    column: Annotated[str, typer.Option(help="Image column of Parquet files.")] = "image",
    id_column: Annotated[str | None, typer.Option(help="Column with unique ids [file and row].")] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave unreadable files out.")] = False,
) -> None:
    """List the images of a pool; nothing is copied."""
    _needs("pool", "duckdb")
    from pfungst.pool import index

    found = index(source, out, column=column, id_column=id_column, skip_bad=skip_bad)
    typer.echo(f"{found.rows:,} images in {found.shards} shards: {out}")
    for file, reason in found.unreadable.items():
        typer.secho(f"  left out {file}: {reason}", err=True)


@pool.command("score")
def pool_score(
    folder: Annotated[Path, typer.Argument(help="Folder of the pool.")],
    model: Annotated[list[str], typer.Option(help="NAME=package.module:function; may be repeated.")],
    condition: Annotated[str, typer.Option(help="How files become images.")] = "pillow-bilinear",
    size: Annotated[int, typer.Option(help="Side of the images in pixels.")] = 224,
    workers: Annotated[int, typer.Option(help="Worker processes; 0 works in this one.")] = 0,
    batch_size: Annotated[int, typer.Option(help="Images per forward pass.")] = 64,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda.")] = "auto",
) -> None:
    """Run models over a pool once and keep their features; finished parts are skipped."""
    _needs("pool", "duckdb")
    from pfungst.pool import PoolModel, score

    models = []
    for text in model:
        name, sign, factory = text.partition("=")
        if not sign:
            raise ConfigError(f"--model {text!r} has no name", "write NAME=package.module:function")
        models.append(PoolModel(name, factory, condition, size))
    with _bar("scoring") as advance:
        done = score(folder, models, workers=workers, batch_size=batch_size, device=device, progress=advance)
    typer.echo(f"{done.rows:,} images, {done.shards} parts scored, {done.skipped} were finished before")
    for name, count in done.errors.items():
        if count:
            typer.secho(f"  {name}: {count} images could not be read", err=True)


@pool.command("search")
def pool_search(
    folder: Annotated[Path, typer.Argument(help="Folder of a scored pool.")],
    npca: Annotated[Path, typer.Option(help="Neural PCA, as NeuralPCA.save wrote it.")],
    class_: Annotated[int, typer.Option("--class", help="Class index.")],
    component: Annotated[int, typer.Option(help="Component, counted from 0.")],
    model: Annotated[str, typer.Option(help="Name of the model whose features are searched.")],
    agree: Annotated[int, typer.Option(help="How many models must predict the class.")] = 0,
    top: Annotated[int, typer.Option(help="How many images.")] = 625,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Task folder for `pfungst label` to make.")
    ] = None,
) -> None:
    """Find the images that show a component most, from the stored features."""
    _needs("pool", "duckdb")
    from pfungst.pool import direction, search, to_label_task
    from pfungst.spurious import NeuralPCA

    wanted = direction(NeuralPCA.load(npca), class_, component)
    hits = search(folder, wanted, model, agree=agree, top=top)
    for hit in hits[:10]:
        typer.echo(f"{hit.alpha:10.4g}  {hit.id}")
    typer.echo(f"{len(hits)} images found")
    if out is not None:
        to_label_task(folder, hits, out, class_, f"class {class_}", component, model)
        typer.echo(f"to judge them: pfungst label {out} --labeller NAME")


@pool.command("export")
def pool_export(
    folder: Annotated[Path, typer.Argument(help="Labelled task folder of images.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the data set.")],
) -> None:
    """Write the images that all labellers judged out as a data set in Spurious ImageNet's layout."""
    _needs("pool", "duckdb")
    from pfungst.pool import to_spurious_folder

    for name, count in to_spurious_folder(folder, out).items():
        typer.echo(f"{count:6,}  {name}")


@app.command()
def demo(
    out: OutOption = None,
    only: Annotated[
        str | None, typer.Option(help="anomaly, similarity, classifier or all [the first two].")
    ] = None,
) -> None:
    """A Clever Hans effect, found, measured and mended, on data that Pfungst makes itself."""
    from pfungst.audit.demo import run_demo

    folder = out or Path("pfungst-demo")
    for result, where in run_demo(folder, only):
        _finish(result, where)


@app.command()
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


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="Folder of an audit.")]) -> None:
    """Write the report of an audit anew from its result."""
    from pfungst.report import write

    typer.echo(write(folder))


def _needs(extra: str, *modules: str) -> None:
    from importlib.util import find_spec

    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise ConfigError(f"{', '.join(missing)} is not installed", f"pip install 'pfungst[{extra}]'")


@contextmanager
def _bar(title: str) -> Iterator[Callable[[int, int], None]]:
    from rich.progress import Progress

    with Progress(transient=True) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _finish(result: Result, folder: Path) -> None:
    from pfungst.audit.summary import print_summary
    from pfungst.report import write

    print_summary(result)
    typer.echo(f"\nreport: {write(folder, result)}")


def _keep_freed_memory() -> None:
    """Let glibc reuse the memory of large tensors instead of giving it back after each operation.

    By default every array above 32 MB is mapped and unmapped anew; the page faults cost as much as the
    arithmetic (measured: a third of the demo's CPU time). A decision for a whole process, so the command line
    makes it and the library does not. Other C libraries are left alone.
    """
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mmap_threshold, trim_threshold = -3, -1
        mallopt(mmap_threshold, 1 << 30)
        mallopt(trim_threshold, (1 << 31) - 1)


def main() -> None:
    """Entry point: our own errors become one message and exit code 2."""
    _keep_freed_memory()
    try:
        app()
    except PfungstError as error:
        typer.secho(f"pfungst: {error}", fg=typer.colors.RED, err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        typer.secho("\ninterrupted; run the same command with --resume to go on", err=True)
        sys.exit(130)
