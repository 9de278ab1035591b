"""The neuron baseline beside neural PCA: top images, identical pairs and distances (003, figures 5, 8, 17
to 20)."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pfungst.audit.classifier.config import ClassifierConfig
from pfungst.audit.classifier.prepare import load_audited
from pfungst.audit.classifier.result import ClassifierResult
from pfungst.audit.images import colour
from pfungst.audit.result import Interval
from pfungst.data import ImageSet, Item, open_images
from pfungst.papers.lpips import LPIPS
from pfungst.papers.made import Numbers, picture
from pfungst.papers.neuron_votes import Neuron, ask, judged
from pfungst.report.page import Block, Exhibit, Gallery, Strip, Tile
from pfungst.spurious import FeatureHead, NeuralPCA
from pfungst.spurious.diversity import diversity
from pfungst.spurious.neurons import neuron_importance, rank_neurons

TOP = 5  # components or neurons of a class, and images of each
_CLASSES = 20


def nearest_distances(groups: Tensor, power: int = 1) -> np.ndarray:
    """Least distance of each image of a group to the images of each other group, averaged over the images.

    Args:
        groups: (C, n, D) the n top images of C components, as vectors. power: 2 of squared distances.

    Returns:
        One number per pair of groups, C (C − 1) / 2.
    """
    found = []
    for a, b in combinations(range(len(groups)), 2):
        d = (
            torch.cdist(groups[a].double(), groups[b].double(), compute_mode="donot_use_mm_for_euclid_dist")
            ** power
        )
        found.append(float((d.amin(1).mean() + d.amin(0).mean()) / 2))
    return np.array(found)


def beside(
    result: ClassifierResult, votes: Path, tiny: bool = False, lpips: LPIPS | None = None
) -> tuple[Numbers, list[Block]]:
    """Top images of both, for the classes of an audit.

    Args:
        result: its configuration names model and images.
        votes: folder where people are asked about the neurons; what five judged has the majority's word.
        tiny: two classes.
        lpips: measures its distances too.

    Returns:
        Identical pairs and mean least distances by class, and the images.
    """
    config = ClassifierConfig.model_validate(result.config)
    loaded = load_audited(config)
    size = loaded.preprocessing.size
    head = FeatureHead(loaded.model, config.layer, torch.rand(2, 3, size, size))
    names = {e.name: e.index for e in result.entries[: 2 if tiny else _CLASSES]}
    items: list[Item] = [i for s in open_images(config.train) for i in s.items if i.split in ("train", None)]
    by_class = {name: [i for i in items if i.label == name or i.groups.get("wnid") == name] for name in names}
    condition = loaded.preprocessing.condition
    pictures: dict[str, Tensor] = {}
    features: dict[str, Tensor] = {}
    for name, mine in by_class.items():
        pictures[name] = colour(ImageSet(name, mine).prepare(condition, size).images)
        with torch.no_grad():
            features[name] = torch.cat([head.features(x) for x in pictures[name].split(64)])
    stacked, labels = (
        torch.cat(list(features.values())),
        np.concatenate([np.full(len(f), names[n]) for n, f in features.items()]),
    )
    ranking = rank_neurons(neuron_importance(head, stacked, labels, by="label"), TOP)
    ours: dict[str, dict[str, Interval | float | None]] = {}
    exhibits = []
    asked, said = [], judged(votes, result.fingerprint)
    for name, k in names.items():
        phi, x, mine = features[name], pictures[name], by_class[name]
        n = min(TOP, len(mine))
        alpha = NeuralPCA(n_components=TOP).fit(head, phi, np.full(len(phi), k)).alpha_features(phi, k)
        weighted = phi[:, ranking[k]] * head.weight[k, ranking[k]].to(phi)
        for what, scores in (("neural PCA", alpha), ("neurons", weighted)):
            rows = torch.as_tensor(scores)[:, :TOP].topk(n, dim=0).indices.T
            ids = [[mine[i].id for i in group] for group in rows.tolist()]
            found = diversity(ids, x[rows], phi[rows])
            row = ours.setdefault(f"{name}, {what}", {})
            row["identical pairs"] = float(found.identical)
            row["least pixel distance"] = float(nearest_distances(x[rows].flatten(2)).mean())
            row["least feature distance"] = float(nearest_distances(phi[rows]).mean())
            if lpips is not None:
                vectors = lpips(x[rows].flatten(0, 1)).unflatten(0, rows.shape)
                row["least LPIPS distance"] = float(nearest_distances(vectors, power=2).mean())
            titles = [f"Component {j}" for j in range(len(rows))]
            if what == "neurons":
                p = head.linear.logits(phi).softmax(1)[:, k].double()
                asked += [
                    Neuron(k, name, j, [mine[i].id for i in g], x[g], scores[g, n_].tolist(), p[g].tolist())
                    for n_, (j, g) in enumerate(zip(ranking[k].tolist(), rows, strict=True))
                ]
                known = [said.get(neuron.key) for neuron in asked[-len(rows) :]]
                words = {True: ", spurious", False: ", not spurious", None: ""}
                titles = [f"Neuron {j}{words[v]}" for j, v in zip(ranking[k].tolist(), known, strict=True)]
                if None not in known:
                    row["spurious by majority"] = float(sum(map(bool, known)))
            strips = [
                Strip(
                    title,
                    [Tile(Path(mine[i].id).stem, mine[i].id, picture(x[i])) for i in group],
                )
                for title, group in zip(titles, rows.tolist(), strict=True)
            ]
            exhibits.append(
                Exhibit(name=f"{name}, {what}", reason=f"{found.identical} identical pairs", strips=strips)
            )
    ask(votes, result.model, result.fingerprint, asked)
    caption = "The five training images of highest α of five components, and of highest w·φ of five neurons."
    gallery = Gallery(title="Top images", caption=caption, exhibits=exhibits, outlines=False)
    note = (
        "Distances: of each image to the nearest of the other component's five, averaged; ℓ2 but for LPIPS."
    )
    counts = ("identical pairs", "spurious by majority")
    return Numbers.of("How different the top images are", ours, {}, caption=note, counts=counts), [gallery]
