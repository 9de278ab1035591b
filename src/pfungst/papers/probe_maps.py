"""Relevance of a probe's decision: of single images, and averaged over a subgroup (002, figures 2 and 5)."""

from __future__ import annotations

import numpy as np
import torch

from pfungst.audit.images import colour
from pfungst.audit.similarity.config import SimilarityConfig
from pfungst.audit.similarity.prepare import open_labelled
from pfungst.audit.similarity.result import SimilarityResult
from pfungst.data import ImageSet
from pfungst.probes import LogisticRegression
from pfungst.probes.heatmaps import explain_probe
from pfungst.relevance import Relevance
from pfungst.relevance.colours import overlay, ramp
from pfungst.report.images import data_uri
from pfungst.report.page import Exhibit, Gallery, Strip, Tile

_FIT, _SHOWN, _MEAN = 400, 3, 12  # images: fitted to, shown of a subgroup, averaged over


def group_mean(relevance: Relevance) -> np.ndarray:
    """Mean over images of relevance maps (N, H, W), each divided by its sum of magnitudes: (H, W)."""
    values = relevance.values.double().numpy()
    size = np.abs(values).sum((1, 2), keepdims=True)
    return np.divide(values, size, out=np.zeros_like(values), where=size > 0).mean(0)


def probe_maps(result: SimilarityResult, title: str, tiny: bool = False) -> Gallery:
    """Heatmaps of a probe fitted on an audit's training images, for the true class of test images of every
    subgroup.

    Args:
        result: of the audit, whose configuration says what is read.
        title: of the gallery.
        tiny: few images.
    """
    config = SimilarityConfig.model_validate(result.config)
    items = open_labelled(config).items
    rng = np.random.default_rng(config.seed)
    items = [items[i] for i in rng.permutation(len(items))]
    test = [i for i in items if i.split == "test"] or items[::2]
    chosen = {id(i) for i in test}
    train = [i for i in items if id(i) not in chosen][: 80 if tiny else _FIT]
    encoder = config.open_encoder()

    def prepared(some: list) -> torch.Tensor:
        return colour(ImageSet("images", some).prepare(encoder.preprocessing.condition, encoder.size).images)

    with torch.no_grad():
        features = encoder.encode(prepared(train)).double().numpy()
    probe = LogisticRegression().fit(features, np.array([i.label for i in train]))
    test = [i for i in test if i.label in set(probe.classes_.tolist())]
    column = result.columns[0] if result.columns else ""
    groups: dict[str, list] = {}
    for item in test:
        groups.setdefault(item.groups.get(column, "") if column else "all images", []).append(item)
    exhibits = []
    for name, members in list(groups.items())[:4]:
        some = members[: _SHOWN if tiny else _MEAN]
        x = prepared(some)
        relevance = explain_probe(probe, encoder, x, target=[i.label for i in some])
        pictures = (x.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
        values = relevance.values.numpy()
        tiles = [
            Tile(str(item.label), f"relevance of {item.id}", data_uri(overlay(v, p), side=224))
            for item, v, p in list(zip(some, values, pictures, strict=True))[:_SHOWN]
        ]
        mean, middle = group_mean(relevance), pictures.mean(0).round().astype(np.uint8)
        mean_tile = Tile("mean", f"mean relevance of {name}", data_uri(overlay(mean, middle), side=224))
        heading = f"{column} {name}".strip()
        exhibits.append(
            Exhibit(
                name=heading,
                reason=f"relevance for the true class, mean over {len(some)} images",
                strips=[Strip("Images", tiles), Strip("Subgroup", [mean_tile])],
            )
        )
    caption = "Red is evidence for the class, blue against it; each map has its own scale."
    return Gallery(title=title, caption=caption, exhibits=exhibits, ramp=data_uri(ramp()), outlines=False)
