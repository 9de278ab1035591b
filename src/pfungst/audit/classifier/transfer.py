"""SpuFix carried over from the audit of another model (Neuhaus et al. 2023, section 5, equations 9 to 11)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pfungst.audit.classifier.config import ClassifierConfig
from pfungst.audit.classifier.prepare import Study, conditions_of, head_of, load_audited, read_names, stored
from pfungst.audit.classifier.result import ClassifierResult
from pfungst.audit.conditions import ORIGINAL
from pfungst.audit.images import Labelled
from pfungst.audit.result import load as load_result
from pfungst.audit.workspace import Workspace
from pfungst.data.outputs import match_outputs
from pfungst.errors import ConfigError, PfungstError
from pfungst.features import combined
from pfungst.files import seal
from pfungst.spurious import FeatureStore, NeuralPCA, SpuFix


@dataclass(frozen=True)
class Transfer:
    """What another audit switches off.

    Attributes:
        result: of that audit. config: its configuration. folder: where it lies.
        components: {class index of its model: components}.
    """

    result: ClassifierResult
    config: ClassifierConfig
    folder: Path
    components: dict[int, list[int]]

    @classmethod
    def read(cls, config: ClassifierConfig) -> Transfer | None:
        """What ``--transfer`` names, before any model is loaded; None without it.

        Raises:
            ConfigError: it is no audit of a classifier that switches something off.
            DataError: there is none.
        """
        if config.transfer is None:
            return None
        folder = Path(config.transfer)
        if config.transfer == "first":
            raise ConfigError("--transfer first with one model", "name several models, or an audit's folder")
        if config.components is not None:
            raise ConfigError(
                "--transfer and --components both say what is switched off", "leave one of them out"
            )
        result = load_result(folder)
        if not isinstance(result, ClassifierResult):
            raise ConfigError(f"{folder} is an audit of kind {result.kind}", "give that of a classifier")
        components = {e.index: e.fixed for e in result.entries if e.fixed}
        if not components:
            raise ConfigError(
                f"the audit in {folder} switches off no component of its own model",
                "give the audit of a model with components that are proven or judged spurious",
            )
        return cls(result, ClassifierConfig.model_validate(result.config), folder, components)

    def state(self) -> str:
        """Names what is carried over, and not the report and the other files beside it."""
        parts = [seal(file) for file in sorted(self.folder.glob("npca.*"))]
        return combined(self.components, self.config.fingerprint(), parts)

    def to(
        self, study: Study, workspace: Workspace, target: FeatureStore
    ) -> tuple[SpuFix, dict[int, list[int]]]:
        """The audited model without these components, and they by its own class indices.

        Both models see the training images of the audited classes, each prepared as its own; images are
        matched by identifier.

        Args:
            study: of the audited model. workspace: where features are kept.
            target: its features of the training images.

        Raises:
            ConfigError: the other model does not know the classes, or none of them is audited here.
            InputError: see :meth:`pfungst.spurious.SpuFix.transfer`.
        """
        own = self.config
        device = study.head.device
        other = load_audited(own)
        head = head_of(own, other, device)
        there = self._classes(study)
        where = {k2: k for k, k2 in there.items() if k in self.components}
        chosen = [
            (i, where[k2]) for i, k2 in zip(study.train.items, study.train.labels, strict=True) if k2 in where
        ]
        if not chosen:
            names = [e.name for e in self.result.entries if e.index in self.components]
            raise ConfigError(
                f"--transfer {self.folder} switches off components of {names}, none of which is audited here",
                "name one of them in --classes",
            )
        size = other.preprocessing.size
        condition = conditions_of(own, other.preprocessing.condition, size)[ORIGINAL]
        images = Labelled([i for i, _ in chosen], [k for _, k in chosen], condition, size)
        source = stored(study.config, head, images, workspace, "transfer", "float16")
        seen = {k for _, k in chosen}
        components = {k: c for k, c in self.components.items() if k in seen}
        npca = NeuralPCA.load(self.folder / "npca", head)
        fix = SpuFix(head, npca, components, reference=study.config.reference)
        fixed = fix.transfer(study.head, source=source, target=target, classes=there)
        return fixed, {there[k]: c for k, c in components.items()}

    def _classes(self, study: Study) -> dict[int, int]:
        """{class of the other model: class of the audited one}, by their labels."""
        names = read_names(self.config.class_names)
        labels = study.outputs.index
        try:
            found = match_outputs(labels, self.result.n_classes, names)
        except PfungstError as error:
            raise ConfigError(
                f"the model of --transfer {self.folder} does not know the classes: {error}", error.remedy
            ) from None
        known: dict[int, Any] = {e.index: e.name for e in self.result.entries}
        wrong = [
            f"{known[k]} there, {found.names[k]} here"
            for k in found.index.values()
            if k in known and not known[k].startswith(found.names[k])
        ]
        if wrong:
            raise ConfigError(
                f"the classes of --transfer {self.folder} are others: {'; '.join(wrong[:5])}",
                "audit both models on images with the same labels",
            )
        return {found.index[label]: k for label, k in labels.items()}
