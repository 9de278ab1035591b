"""Which output of a classifier each label means: by names, ImageNet's classes, index or order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from pfungst.data import imagenet_classes as imagenet
from pfungst.errors import InputError, few
from pfungst.suggest import suggest

SORTED = "the labels in sorted order"


@dataclass(frozen=True)
class Outputs:
    """Labels matched to the outputs of a model.

    Attributes:
        index: {label: output}.
        names: {output: what to call it}, of the outputs that are known.
        order: how the outputs were named, for people.
    """

    index: dict[str, int]
    names: dict[int, str]
    order: str

    def name(self, output: int) -> str:
        """What to call an output that may have no label in the data."""
        return self.names.get(output, f"output {output}")

    def describe(self, order: Mapping[int, int]) -> str:
        """Another order of classes, {class: output}, in words: what it sorts by, or what moved."""
        labels = {k: label for label, k in self.index.items() if k in order}
        called = {
            k: self.name(k).partition(" ")[2] if imagenet.wnid_of(self.name(k)) else self.name(k)
            for k in labels
        }
        kinds: dict[str, Callable[[int], object]] = {
            "the labels sorted as text": lambda k: labels[k],
            "the class names in alphabetical order": lambda k: imagenet.plain(called[k]),
        }
        if all(label.isdecimal() for label in labels.values()):
            kinds["the labels sorted as numbers"] = lambda k: int(labels[k])
        for kind, key in kinds.items():
            if [order[k] for k in sorted(labels, key=key)] == list(range(len(labels))):  # type: ignore[arg-type]
                return kind
        moved = [f"{self.name(k)} at output {output}" for k, output in order.items() if k != output]
        return few(moved, 4)


def match_outputs(labels: Iterable[str], n_outputs: int, names: Sequence[str] | None = None) -> Outputs:
    """The output of each label.

    With names, labels are these names. Without: numbers are indices; WordNet ids and names of ImageNet's
    classes (in any case, with underscores, any lemma) are found in the order that a model with so many
    outputs has; as many labels as outputs are in sorted order.

    Args:
        labels: of the data set.
        n_outputs: of the model.
        names: what the outputs are called, in order.

    Raises:
        InputError: labels match no output, or several; the message has the nearest names, or both sides.
    """
    found = sorted(set(labels))
    if names is not None:
        return _by_names(found, n_outputs, names)
    known = imagenet.order(n_outputs)
    numbers = all(label.isdecimal() for label in found)
    if numbers and all(int(label) < n_outputs for label in found):
        titles = found if known is None else [imagenet.title(known[int(label)]) for label in found]
        order = "labels are indices of outputs" + (
            "" if known is None else f", in ImageNet's order of {n_outputs:,}"
        )
        return _matched(found, [int(label) for label in found], titles, order)
    if known is not None and not numbers:
        where = {wnid: i for i, wnid in enumerate(known)}
        rows, wrong = [], []
        for label in found:
            wnids = [w for w in _wnids(label, n_outputs) if w in where]
            if len(wnids) > 1:
                raise InputError(
                    f"the label {label!r} names {len(wnids)} classes of ImageNet: "
                    f"{few(map(imagenet.title, wnids))}",
                    "use their WordNet ids",
                )
            rows += [where[w] for w in wnids]
            wrong += [] if wnids else [label]
        if not wrong:
            titles = [imagenet.title(w) for w in known]
            order = f"ImageNet's order of {n_outputs:,} classes"
            return Outputs(dict(zip(found, rows, strict=True)), dict(enumerate(titles)), order)
        if len(found) != n_outputs:
            near = suggest(wrong[0], (t.partition(" ")[2] for t in map(imagenet.title, known)), "its classes")
            raise InputError(
                f"{len(wrong)} labels are none of the {n_outputs:,} classes of ImageNet: "
                f"{few(map(repr, wrong))}",
                f"{near}; name the labels by WordNet id, class name or index, or give --class-names",
            )
    if len(found) != n_outputs:
        raise InputError(
            f"the model has {n_outputs} classes, the image set {len(found)}: {few(map(repr, found))}",
            "give the model's class names in order (--class-names), or name the folders by class index",
        )
    if numbers:
        found.sort(key=int)
    return _matched(found, range(n_outputs), [imagenet.title(n) for n in found], SORTED)


def _by_names(labels: list[str], n_outputs: int, names: Sequence[str]) -> Outputs:
    if len(names) != n_outputs:
        raise InputError(
            f"{len(names)} class names are given, the model has {n_outputs} classes",
            "give one name for each output of the model",
        )
    places: list[dict[str, set[int]]] = [
        {},
        {},
        {},
    ]  # by the name itself, by its plain spelling, by WordNet ids
    for i, name in enumerate(names):
        for place, spellings in zip(places, _spellings(name), strict=True):
            for spelling in spellings:
                place.setdefault(spelling, set()).add(i)
    index, wrong = {}, []
    for label in labels:
        tried = (
            {i for s in spellings for i in place.get(s, ())}
            for place, spellings in zip(places, _spellings(label), strict=True)
        )
        found = next((outputs for outputs in tried if len(outputs) == 1), None)
        if found is None:
            wrong.append(label)
        else:
            index[label] = found.pop()
    if wrong:
        raise InputError(
            f"{len(wrong)} labels of the image set are no class of the model: {few(map(repr, wrong))}; "
            f"the model's {len(names)} classes: {few(map(repr, names))}",
            f"{suggest(wrong[0], names, 'classes')}; rename the folders, or give the class names in the "
            "order of the model's outputs",
        )
    return Outputs(index, {i: imagenet.title(n) for i, n in enumerate(names)}, "the class names given")


def _spellings(name: str) -> tuple[Sequence[str], ...]:
    return [name], [imagenet.plain(name)], _wnids(name, 1000)


def _wnids(label: str, n_outputs: int) -> tuple[str, ...]:
    """WordNet ids that a label means: its own, or those of its name in an order of ImageNet."""
    own = imagenet.wnid_of(label)
    return imagenet.names(n_outputs).get(imagenet.plain(label), ()) if own is None else (own,)


def _matched(labels: Sequence[str], rows: Iterable[int], titles: Sequence[str], order: str) -> Outputs:
    index = dict(zip(labels, rows, strict=True))
    return Outputs(index, dict(zip(index.values(), titles, strict=True)), order)
