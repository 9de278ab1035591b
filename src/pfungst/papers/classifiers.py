"""Classifiers and their spurious features: 003 tables 1 and 2, and its figures."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from pfungst.audit.classifier.config import ClassifierConfig
from pfungst.audit.classifier.result import ClassifierResult
from pfungst.audit.compare_models import ModelsResult, named_models, run_models
from pfungst.audit.config import listed
from pfungst.audit.result import Interval, Result
from pfungst.encoders.packages import PACKAGES
from pfungst.errors import ConfigError
from pfungst.papers import stand_ins
from pfungst.papers.encoders import blocks_of
from pfungst.papers.made import Made, Numbers, Wish, singles
from pfungst.papers.pooled import AMONG, FOUND, pooled
from pfungst.report import write
from pfungst.report.page import Block, Details

_COLUMNS = ("accuracy", "mAUC", "accuracy, SpuFix", "mAUC, SpuFix")
# More training data than ImageNet's, by what a tag of timm's holds; the first that fits.
_EXTRA = {
    "m30m": "MIM",
    "jft": "JFT-300M",
    "yfcc": "YFCC-100M",
    "laion400m": "LAION-400M",
    "laion2b": "LAION-2B",
}


def _options(wish: Wish) -> dict[str, Any]:
    """What is audited: images and models, the paper's or those that stand in."""
    if wish.stand_in and wish.data is None:
        models, root = stand_ins.classifiers(wish)
        options: dict[str, Any] = {
            "transfer": "first",
            "model": models,
            "train": root / "train",
            "val": root / "val",
            "spurious": root / "spurious",
            "size": 32,
            "witness": ["none"],
            "rule": "alpha",
            "shown": 2,
            "fix": 2,
        }
        return options | ({"shown": 1, "n_components": 4, "batch_size": 60} if wish.tiny else {"steps": 60})
    root = wish.given()
    if wish.models is None:
        raise ConfigError(
            f"{wish.piece.id} needs classifiers",
            "give --models, such as timm:NAME,checkpoint=FILE; the robust one of the paper first",
        )
    options = {"model": wish.models, "train": root, "val": wish.more.get("val", root), "reference": "mean"}
    options |= {"size": wish.size, "classes": list(wish.classes)}
    if len(listed(wish.models)) > 1:
        options["transfer"] = "first"
    given = {name: wish.more[name] for name in ("spurious", "components") if name in wish.more}
    if not wish.stand_in:
        return options | given | {"rule": "npfv"}
    if "spurious" not in given:
        _, first = named_models(ClassifierConfig.build(**options, out=wish.out), "model")[0]
        asked = ("model", "checkpoint", "train", "val", "size", "classes")
        given = pooled(wish, {name: getattr(first, name) for name in asked})
    return options | given | {"witness": ["none"], "shown": 1}


def audit(wish: Wish) -> tuple[Result, Path]:
    """The audit of all classifiers that the figures of the paper share."""
    return wish.audited(ClassifierConfig, partial(run_models, write=write), "classifiers", **_options(wish))


def trained_on(spec: str) -> str:
    """The training data of a model of timm by the tag of its weights, under the paper's names; "" where none
    says it."""
    if spec in PACKAGES:
        return "ImageNet1k"
    tag = spec.partition(":")[2].partition(".")[2] if spec.startswith("timm:") else ""
    if extra := next((name for part, name in _EXTRA.items() if part in tag), ""):
        return extra
    tuned, before = tag.endswith("in1k"), any(part in tag for part in ("in21k", "in22k", "in12k"))
    return ("ImageNet21kFT1k" if tuned else "ImageNet21k") if before else "ImageNet1k" if tuned else ""


def table(wish: Wish) -> Made:
    """Accuracy and spurious score by training data, as they are and with SpuFix; the scatter of one against
    the other."""
    result, folder = audit(wish)
    ours: dict[str, dict[str, Interval]] = {}
    if isinstance(result, ModelsResult):
        named = [(trained_on(row.spec), row) for row in result.rows]
        for data, row in sorted(named, key=lambda pair: pair[0]):
            ours[f"{data}: {row.name}" if data else row.name] = {
                c: row.values[c] for c in _COLUMNS if c in row.values
            }
        blocks = blocks_of(folder, result, ["models"])
    else:
        assert isinstance(result, ClassifierResult)
        blocks = []
        for mitigated in (False, True):
            scores = result.under("original", mitigated)
            after = ", SpuFix" if mitigated else ""
            own = ours.setdefault(result.model, {})
            own["accuracy" + after] = scores.accuracy
            if scores.mauc is not None:
                own["mAUC" + after] = scores.mauc
    ruled = wish.stand_in and wish.data is not None and "spurious" not in wish.more
    notes = [
        "SpuFix measures from the class mean, as published."
        if not wish.stand_in or wish.data is not None
        else "SpuFix measures from images without the feature (--reference absent); the published one from "
        "the mean.",
        "SpuFix is fitted to the first model and carried over to the others, images matched by identifier.",
        "mAUC is the ROC AUC of the text; the published code computes average precision.",
    ] + ruled * [
        f"No person looked. Component of a class: of the {AMONG} of largest variance the one whose α is "
        f"highest in the {FOUND} training images of other classes that show it most. Images with only the "
        f"feature: the {FOUND} validation images of other classes of highest α, found by the pool."
    ]
    return Made(
        [Numbers.of("Accuracy and spurious score", ours, wish.piece.numbers)], blocks, notes, [folder]
    )


def by_class(wish: Wish) -> Made:
    """The spurious score class by class."""
    result, folder = audit(wish)
    ours: dict[str, dict[str, Interval]] = {}
    for name, own, _ in singles(result, folder, ClassifierResult, "model"):
        for mitigated in (False, True):
            row = ours.setdefault(name + (", SpuFix" if mitigated else ""), {})
            for e in own.entries:
                spurious = e.under("original", mitigated).spurious
                if spurious is not None:
                    row[e.name] = spurious.auc
            mauc = own.under("original", mitigated).mauc
            if mauc is not None:
                row["mean"] = mauc
    blocks = blocks_of(folder, result, ["classes"])
    return Made([Numbers.of("Spurious AUC", ours, wish.piece.numbers)], blocks, audits=[folder])


def _section(*ids: str) -> Callable[[Wish], Made]:
    """Sections of the page of every classifier."""

    def make(wish: Wish) -> Made:
        result, folder = audit(wish)
        blocks: list[Block] = []
        for name, own, place in singles(result, folder, ClassifierResult, "model"):
            found = blocks_of(place, own, ids)
            if found:
                blocks.append(Details(title=name, blocks=found, open=not blocks))
        return Made(blocks=blocks, audits=[folder])

    make.__doc__ = f"The sections {', '.join(ids)} of the page of every classifier."
    return make


components = _section("components")


def neurons(wish: Wish) -> Made:
    """Neural PCA beside the neurons of Singla and Feizi: the same class, and how often their images are the
    same."""
    from pfungst.papers.lpips import LPIPS
    from pfungst.papers.neurons import beside

    given = [wish.more.get(name) for name in ("alexnet", "lpips")]
    if given.count(None) == 1:
        raise ConfigError("LPIPS needs two files", "give --alexnet and --lpips, or neither")
    lpips = LPIPS(*filter(None, given)) if None not in given else None
    result, folder = audit(wish)
    name, own, place = singles(result, folder, ClassifierResult, "model")[0]
    votes = wish.out / "data" / "neurons"
    numbers, blocks = beside(own, votes, wish.tiny, lpips)
    notes = [
        f"Of {name}; the neurons and the components are those of one model.",
        f"Five people judge the neurons with pfungst label {votes}; then this page has the majority's word.",
    ]
    return Made([numbers], blocks, notes, [place])
