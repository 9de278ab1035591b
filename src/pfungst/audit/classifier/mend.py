"""What SpuFix switches off: components that people judged spurious, else those that interventions prove so.

Of a class with images of only its feature also those that lack witnesses only: these images then prove it or
not.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pfungst.audit.classifier.prepare import Study
from pfungst.audit.classifier.result import Explained
from pfungst.audit.mended import COMPARED, About, preparation, raw, resolved, write_mended
from pfungst.errors import few
from pfungst.files import write_tensors
from pfungst.spurious import FeatureStore, NeuralPCA, SpuFix
from pfungst.spurious.answers import Answers


def chosen(study: Study, classes: Sequence[Explained]) -> dict[int, list[int]]:
    """{class index: components to switch off}, of the classes with any."""
    if study.judged is not None:
        found = {e.index: sorted(study.judged.get(e.index, [])) for e in classes}
    else:
        most = study.config.fix
        shown = set() if study.spurious is None else set(study.spurious.labels)
        found = {
            e.index: sorted(
                [c.component for c in e.components if c.spurious or (c.suspect and e.index in shown)][:most]
            )
            for e in classes
        }
    return {k: components for k, components in found.items() if components}


def mend(study: Study, npca: NeuralPCA, components: dict[int, list[int]]) -> SpuFix | None:
    """The model with these components switched off; None where there are none."""
    return SpuFix(study.head, npca, components, reference=study.config.reference) if components else None


def write_classifier(study: Study, fixed: SpuFix, store: FeatureStore, folder: Path) -> str:
    """Write the mended classifier, its weights under the names of the original network; returns a note.

    Args:
        store: features of the validation images under the original condition. folder: where to.
    """
    config, prepared = study.config, study.classifier.preprocessing
    network = raw(study.classifier.model)

    def save(place: Path) -> None:
        write_tensors(place / "model.safetensors", network.state_dict())
        fixed.save(place / "spufix")

    row = {id_: i for i, id_ in enumerate(study.val.ids)}
    chosen = np.unique(np.linspace(0, len(store) - 1, COMPARED).round().astype(int)).tolist()
    ids = store.ids
    logits = torch.cat(list(Answers(study.head, store, fixed).logits()))[chosen].cpu()
    off = [f"{study.outputs.names[k]}: {few(c)}" for k, c in fixed.components.items()]
    about = About(
        kind="classifier",
        name=study.fingerprint["name"],
        spec=resolved(config.model),
        layer=study.head.layer,
        condition=preparation(study.val.condition),
        audited=str(study.val.condition),
        size=prepared.size,
        mean=list(prepared.mean) if network is not study.classifier.model else [],
        std=list(prepared.std) if network is not study.classifier.model else [],
        outputs=["logits"],
        classes=study.outputs.names,
        mended=f"SpuFix of components of {few(off)}",
    )
    images = torch.stack([study.val[row[ids[i]]][1] for i in chosen])
    items = [study.val.items[row[ids[i]]] for i in chosen]
    where: dict[str, Any] = {"device": str(study.head.device), "network": network, "mended": fixed}
    return write_mended(folder, about, save, images, [logits], items, **where)
