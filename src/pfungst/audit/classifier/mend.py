"""What SpuFix switches off: components that people judged spurious, else those that interventions prove so.

Of a class with images of only its feature also those that lack witnesses only: these images then prove it or
not.
"""

from __future__ import annotations

from collections.abc import Sequence

from pfungst.audit.classifier.prepare import Study
from pfungst.audit.classifier.result import Explained
from pfungst.spurious import NeuralPCA, SpuFix


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
