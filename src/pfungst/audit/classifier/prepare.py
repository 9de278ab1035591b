"""What a classifier audit is about: checked before the model is loaded, then matched to it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import torch

from pfungst.audit.classifier.config import ClassifierConfig
from pfungst.audit.classifier.witnesses import Other, check_witnesses, load_witnesses
from pfungst.audit.conditions import ORIGINAL, conditions_for
from pfungst.audit.config import check_file
from pfungst.audit.given import LabelledOptions
from pfungst.audit.images import Labelled
from pfungst.audit.workspace import Workspace, refuse_old_result
from pfungst.conditions import Condition
from pfungst.data import ImageSet, Item
from pfungst.data import imagenet_classes as imagenet
from pfungst.data.deep import require_one_range
from pfungst.data.imagenet import is_imagenet
from pfungst.data.outputs import SORTED, Outputs, match_outputs
from pfungst.device import choose_device
from pfungst.encoders import Classifier, load
from pfungst.encoders.specification import short_name
from pfungst.errors import ConfigError, DataError, InputError, PfungstError, few
from pfungst.features import combined
from pfungst.files import content, reading
from pfungst.spurious import FeatureHead, FeatureStore, SpuriousFolder, extract_features, read_components
from pfungst.suggest import suggest

_TRAIN, _HELD_OUT = ("train",), ("validation", "test")


@dataclass(frozen=True)
class Study:
    """All that an audit works on, complete and checked.

    Attributes:
        config, classifier: as given and as loaded; head: its final linear layer.
        fingerprint: of the model, with its name.
        outputs: labels, names and order of the model's outputs.
        names: {class index: name} of the classes with training images.
        train: the training images of the audited classes; val: the validation images of all classes.
        conditions: by name, the original first.
        witnesses: other models that know the classes.
        spurious: images with only a feature, of the audited classes; None without any.
        judged: {class index: components that people judged spurious}; None where nobody looked.
    """

    config: ClassifierConfig
    classifier: Classifier
    head: FeatureHead
    fingerprint: dict[str, Any]
    outputs: Outputs
    names: dict[int, str]
    train: Labelled
    val: Labelled
    conditions: dict[str, Condition]
    witnesses: list[Other]
    spurious: SpuriousFolder | None
    judged: dict[int, list[int]] | None


@dataclass(frozen=True)
class Given:
    """What the configuration names, listed but not decoded; `names` are those of ``--class-names``."""

    config: ClassifierConfig
    train: ImageSet
    val: ImageSet
    names: list[str] | None
    spurious: SpuriousFolder | None

    @classmethod
    def check(
        cls,
        config: ClassifierConfig,
        train: ImageSet | None = None,
        val: ImageSet | None = None,
        names: list[str] | None = None,
    ) -> Given:
        """Find all that can be wrong with the arguments without the model.

        Args:
            train, val, names: in memory, instead of what ``config`` names.

        Raises:
            ConfigError, DataError, InputError: see :mod:`pfungst.errors`.
        """
        refuse_old_result(config)
        choose_device(config.device, float64=True)
        check_file(config.checkpoint, "--checkpoint")
        check_witnesses(config)
        conditions_of(config, config.original or "pillow-bilinear", config.size)
        if config.masks is not None and not config.masks.is_dir():
            raise ConfigError(f"{config.masks} is no folder", "check --masks")
        train = open_labelled(config.train, config, training=True) if train is None else train
        val = open_labelled(config.val, config, training=False) if val is None else val
        require_one_range([train, val])
        if not val.items:
            raise DataError(f"{config.val} holds no validation images", "give labelled images")
        both = [*train.items, *val.items]
        known = {item.image for item in train.items if isinstance(item.image, Path)}
        if seen := sum(isinstance(i.image, Path) and i.image in known for i in val.items):
            val.notes.append(f"{seen} of the {len(val.items)} validation images are training images too")
        folder = None
        if config.spurious is not None:
            folder = SpuriousFolder(config.spurious, index=dict.fromkeys(map(_label, both), 0))
        given = cls(config, train, val, names or read_names(config.class_names), folder)
        labels = set(map(_label, train.items))
        likely = len(
            labels if given.names is None else given.names
        )  # outputs of the model, which is not known yet
        possible = []
        if given.names is None and all(label.isdecimal() for label in labels):
            likely = max(map(int, labels), default=0) + 1
            possible.append(len(labels))
        elif given.names is None:
            possible += [1000, 21841]
        for n_outputs in (likely, *possible):
            with suppress(PfungstError):
                given.match(n_outputs)
                break
        else:
            given.match(likely)
        _judged(config, None)
        return given

    def study(self, classifier: Classifier) -> Study:
        """What is audited of a loaded classifier.

        Raises:
            ConfigError, DataError, InputError: labels, components or conditions do not fit it; see
                :meth:`match`.
        """
        config, preprocessing = self.config, classifier.preprocessing
        size = preprocessing.size
        head = head_of(config, classifier, choose_device(config.device, float64=True))
        fingerprint = {**head.fingerprint(), "name": short_name(config.model)}
        outputs, classes, spurious = self.match(head.linear.n_classes)
        conditions = conditions_of(config, preprocessing.condition, size)
        if spurious is not None:
            spurious.transform = partial(conditions[ORIGINAL], size=size, key="spurious")
        train, val = ([(i, outputs.index[_label(i)]) for i in s.items] for s in (self.train, self.val))
        return Study(
            config,
            classifier,
            head,
            fingerprint,
            outputs,
            {k: outputs.names[k] for k in sorted({k for _, k in train})},
            _labelled([(item, k) for item, k in train if k in classes], conditions[ORIGINAL], size),
            _labelled(val, conditions[ORIGINAL], size),
            conditions,
            load_witnesses(config, outputs, head.linear.n_classes, size, head.device),
            spurious,
            _judged(config, fingerprint),
        )

    def match(self, n_outputs: int) -> tuple[Outputs, set[int], SpuriousFolder | None]:
        """The outputs of a model that has so many, the classes to audit, their images with only a feature.

        Raises:
            InputError: labels do not fit the model or each other.
            ConfigError: a class to audit does not exist.
            DataError: a class has too few training images, or no validation images where it has spurious
                ones.
        """
        outputs = _outputs(self.train, self.val, self.names, n_outputs)
        counts = Counter(outputs.index[_label(item)] for item in self.train.items)
        names = outputs.names
        classes = choose_classes(self.config.classes, outputs, set(counts))
        if poor := [names[k] for k in sorted(classes) if counts[k] < 2]:
            raise DataError(
                f"{len(poor)} classes have fewer than 2 training images: {few(poor)}",
                "add images, or name other --classes",
            )
        if self.spurious is None:
            return outputs, classes, None
        spurious = SpuriousFolder(self.spurious.root, index=outputs.index).of(classes)
        if not len(spurious):
            raise DataError(
                f"{self.config.spurious} has images of the classes {few(sorted(self.spurious.components))}, "
                "none of which is audited",
                "name one of them in --classes",
            )
        held_out = {outputs.index[_label(item)] for item in self.val.items}
        if absent := sorted(set(spurious.labels) - held_out):
            raise DataError(
                f"{len(absent)} classes with spurious images have no validation images: "
                + few(names[k] for k in absent),
                "add their validation images, or leave them out with --classes",
            )
        return outputs, classes, spurious


def load_audited(config: ClassifierConfig) -> Classifier:
    """The classifier that a configuration names."""
    return load(
        config.model,
        "classifier",
        checkpoint=config.checkpoint,
        trust_checkpoint=config.trust_checkpoint,
        size=config.size,
        condition=config.original,
    )


def head_of(config: ClassifierConfig, classifier: Classifier, device: torch.device) -> FeatureHead:
    """The final linear layer of a loaded classifier, on a device."""
    size = classifier.preprocessing.size
    classifier.model.to(device)
    example = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)
    return FeatureHead(classifier.model, config.layer, example).fold(example)


def stored(
    config: ClassifierConfig,
    head: FeatureHead,
    images: Labelled | SpuriousFolder,
    workspace: Workspace,
    name: str,
    dtype: Literal["float16", "float32"],
) -> FeatureStore:
    """Features of images, kept where ``--features`` says, else as long as the audit runs."""
    key = combined(head.fingerprint(), head.layer, dtype)
    folder = workspace.working(f"{name} {key}")
    if config.features is not None:
        folder = config.features / f"{images.key()}-{key}"
    return extract_features(
        head,
        cast(Iterable[tuple[Any, torch.Tensor, int]], images),
        folder,
        batch_size=config.batch_size,
        dtype=dtype,
        device=config.device,
        workers=config.workers,
        ray=config.ray,
        skip_bad=config.skip_bad,
    )


def extract(study: Study, workspace: Workspace) -> dict[str, FeatureStore]:
    """Features of the training, validation (under each condition) and spurious images."""
    config, head = study.config, study.head
    sets: dict[str, Labelled | SpuriousFolder] = {"train": study.train}
    sets |= {name: study.val.under(condition) for name, condition in study.conditions.items()}
    sets |= {} if study.spurious is None else {"spurious": study.spurious}
    stores = {}
    data: Any
    for name, data in sets.items():
        dtype: Literal["float16", "float32"] = "float16" if name == "train" else "float32"
        stores[name] = stored(config, head, data, workspace, name, dtype)
    if missing := sorted(set(study.train.labels) - set(stores["train"].classes)):
        names = [study.names[k] for k in missing[:10]]
        raise DataError(f"classes {names} have no readable training images", "repair them")
    return stores


def conditions_of(config: ClassifierConfig, own: str, size: int | None) -> dict[str, Condition]:
    """The conditions that are measured, by name; `own` is the model's preparation."""
    found = conditions_for(own, config.condition, size)
    if config.deployed is None:
        return found
    deployed = list(conditions_for(own, [config.deployed], size).values())[1]
    return {ORIGINAL: found.pop(ORIGINAL), "deployed": deployed, **found}


def open_labelled(path: Path, options: LabelledOptions, training: bool) -> ImageSet:
    """A labelled image set; of one with splits, only the training or the held-out images.

    Raises:
        DataError: several sets, or images without a label.
    """
    sets = options.open(path, options.label_column, normal_label="\0none")
    if len(sets) > 1:
        names = few(s.name for s in sets)
        raise DataError(
            f"{path} holds {len(sets)} image sets: {names}", "give a folder with one folder per class"
        )
    images = sets[0]
    if is_imagenet(path):  # which calls some classes by name: outputs are in the order of WordNet ids
        named = [replace(item, label=item.groups["wnid"]) for item in images.items]
        images = images.of(named, images.notes)
    known = {item.split for item in images.items} - {None}
    wanted = _TRAIN if training else _HELD_OUT
    if known & set(wanted):
        images = images.select(where=lambda item: item.split in wanted)
    bare = [item.id for item in images.items if item.label is None]
    if bare:
        raise DataError(
            f"{len(bare)} images in {path} have no label, for example {bare[0]}",
            "sort them into one folder per class, or give a table with a column of labels (--label-column)",
        )
    return images


def read_names(path: Path | None) -> list[str] | None:
    """Class names in the order of the model's outputs, from a JSON list or a text file."""
    if path is None:
        return None
    remedy = "a JSON list of names, or one name a line"
    with reading(path, remedy, ConfigError):
        text = content(path).decode()
        names = json.loads(text) if path.suffix == ".json" else [line.strip() for line in text.split("\n")]
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        raise ConfigError(f"{path} holds no list of names", remedy)
    return [name for name in names if name]


def choose_classes(wanted: Sequence[str], outputs: Outputs, known: set[int]) -> set[int]:
    """Class indices to audit, all that are known if none are named.

    Raises:
        ConfigError: one does not exist.
    """
    by_name: dict[str, int] = {}
    for text, k in [*((n, k) for k, n in outputs.names.items()), *outputs.index.items()]:
        own = imagenet.wnid_of(text)
        for name in [text, *([own, imagenet.title(own).partition(" ")[2]] if own else [])]:
            by_name.setdefault(imagenet.plain(name), k)
    chosen = {w: by_name.get(imagenet.plain(w), int(w) if w.isdecimal() else -1) for w in wanted}
    if unknown := [w for w, k in chosen.items() if k not in known]:
        names = [outputs.names[k] for k in sorted(known)]
        raise ConfigError(
            f"no training images have the class {few(w if w.isdecimal() else repr(w) for w in unknown)}",
            f"{suggest(unknown[0], names, 'classes')} ({len(names)} in all, also by index)",
        )
    return set(chosen.values()) or known


def _label(item: Item) -> str:
    return str(item.label)


def _labelled(items: list[tuple[Item, int]], condition: Condition, size: int) -> Labelled:
    return Labelled([item for item, _ in items], [k for _, k in items], condition, size)


def _outputs(train: ImageSet, val: ImageSet, given: list[str] | None, n_outputs: int) -> Outputs:
    outputs = match_outputs(map(_label, train.items), n_outputs, given)
    if unknown := sorted(set(map(_label, val.items)) - set(outputs.index)):
        if outputs.order == SORTED:
            raise InputError(
                f"{len(unknown)} labels of the validation set are no training labels: "
                f"{few(map(repr, unknown))}; the training set has {len(outputs.index)}: "
                f"{few(map(repr, sorted(outputs.index)))}",
                "name the folders of both sets alike, or give --class-names",
            )
        more = match_outputs(unknown, n_outputs, given)
        outputs = Outputs(outputs.index | more.index, more.names | outputs.names, outputs.order)
    twice = {name for name, count in Counter(outputs.names.values()).items() if count > 1}
    names = {k: f"{name} ({k})" if name in twice else name for k, name in outputs.names.items()}
    return Outputs(outputs.index, names, outputs.order)


def _judged(config: ClassifierConfig, fingerprint: dict[str, Any] | None) -> dict[int, list[int]] | None:
    if config.components is None:
        return None
    judged = read_components(config.components, fingerprint)
    beyond = {k: [c for c in found if c >= config.n_components] for k, found in judged.items()}
    if beyond := {k: found for k, found in beyond.items() if found}:
        raise InputError(
            f"{config.components} names components beyond the {config.n_components} that are computed: "
            f"{beyond}",
            "raise --n-components",
        )
    return judged
