"""``pfungst audit``: one command per kind of model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pfungst.cli.common import (
    Config,
    Device,
    Out,
    Overwrite,
    Resume,
    Seed,
    Seeds,
    SkipBad,
    TrustCheckpoint,
    finish,
    given,
    group,
)
from pfungst.registry import DETECTORS

audit = group("Audit a model: explain, measure, mitigate, report.")


@audit.command("anomaly")
def audit_anomaly(
    data: Annotated[
        str | None, typer.Argument(help="MVTec folder, CSV, Parquet, image folder, or 'synthetic'.")
    ] = None,
    config: Config = None,
    model: Annotated[
        str | None,
        typer.Option(
            help=f"Detectors, comma-separated, such as kde or bag:A+B: {', '.join(DETECTORS.names())}."
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
    seeds: Seeds = None,
    seed: Seed = None,
    out: Out = None,
    skip_bad: SkipBad = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
    device: Device = None,
) -> None:
    """Does an anomaly detector look at the defects, and does it survive deployment?"""
    options = given(locals())
    from pfungst.audit.anomaly.config import AnomalyConfig
    from pfungst.audit.anomaly.run import run

    settings = AnomalyConfig.build(**options)
    finish(run(settings), settings.out)


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
    config: Config = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Weights of the encoder.")] = None,
    trust_checkpoint: TrustCheckpoint = False,
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
    seeds: Seeds = None,
    seed: Seed = None,
    out: Out = None,
    skip_bad: SkipBad = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
    device: Device = None,
) -> None:
    """What makes two inputs alike to an encoder, and does a probe on it survive?"""
    options = given(locals())
    from pfungst.audit.similarity.config import SimilarityConfig
    from pfungst.audit.similarity.run import run

    settings = SimilarityConfig.build(**options)
    finish(run(settings), settings.out)


@audit.command("classifier")
def audit_classifier(
    config: Config = None,
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
    reference: Annotated[
        str | None,
        typer.Option(
            help="SpuFix measures from images without the feature (absent), or all (mean) [absent]."
        ),
    ] = None,
    features: Annotated[
        Path | None, typer.Option(help="Folder to keep features in for later audits.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images at a time [32].")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that load images [0].")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed.")] = None,
    out: Out = None,
    trust_checkpoint: TrustCheckpoint = False,
    skip_bad: SkipBad = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
    device: Device = None,
) -> None:
    """Which spurious features does a classifier rely on, how much, and what if they are switched off?"""
    options = given(locals())
    from pfungst.audit.classifier.config import ClassifierConfig
    from pfungst.audit.classifier.run import run

    settings = ClassifierConfig.build(**options)
    finish(run(settings), settings.out)
