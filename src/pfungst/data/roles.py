"""Which images are normal, and which are trained on: in the words of the data, or where they say nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import groupby

from pfungst.errors import ConfigError, DataError, few
from pfungst.files import mixed
from pfungst.suggest import suggest

from .item import NORMAL, Item
from .items import ImageSet

SPLITS = {
    **dict.fromkeys(("train", "training", "trainset", "tr"), "train"),
    **dict.fromkeys(("validation", "valid", "validate", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "testset", "te"), "test"),
}
"""What splits are called, in lower case, and what they are here."""

GOOD = (
    "good", "ok", "okay", "normal", "healthy", "nominal", "pass", "passed", "no defect", "no_defect",
    "defect-free", "defect_free", "nondefective", "non-defective", "io", "negative", "no finding",
)  # fmt: skip
"""What normal images are called, in lower case."""

UNITS = ("patient", "patientid", "patient_id", "subject", "subject_id")
"""Columns whose values are never split between training and test."""

_TEST_SHARE = 0.3  # of the normal images, where the data name no split
_NUMBERS = ({"0", "1"}, {"false", "true"}, {"no", "yes"})  # the first is normal, unless the column is of GOOD
_LEAST = 10  # images of a class, below which a verdict is not given


def canonical_split(text: str | None) -> str | None:
    """A split by its name here where it has a usual one, else as it is."""
    return None if not text or not text.strip() else SPLITS.get(text.strip().lower(), text.strip())


def normal_label(
    labels: Sequence[str | None], wanted: str | None = None, column: str = "label"
) -> tuple[str, str]:
    """The label of normal images, and how it was found: "" where it is "good".

    Args:
        labels: of the images, in the words of the data.
        wanted: what the user says they are called.
        column: the name of their column: 1 of a column ``ok`` is normal, 1 of ``defect`` is not.

    Raises:
        ConfigError: no image has the label that is wanted.
        DataError: none, or several labels may be meant; the message names those that there are.
    """
    counts = Counter(label for label in labels if label is not None)
    seen = few((f"{label!r} ({count})" for label, count in counts.most_common()), 12)
    if wanted is not None:
        if wanted in counts:
            return wanted, "" if wanted == NORMAL else f"normal images are those labelled {wanted!r}"
        raise ConfigError(
            f"no image has the label {wanted!r}: there are {seen}", suggest(wanted, list(counts))
        )
    if NORMAL in counts:
        return NORMAL, ""
    plain = {label: _plain(label) for label in counts}
    found = [label for label, text in plain.items() if text in GOOD]
    why = "by its name"
    if not found and len(plain) <= 2:
        said_good = column.lower().removeprefix("is_") in GOOD
        values = set(plain.values())
        for bad_after_good in _NUMBERS:
            if values <= bad_after_good:
                good = (min, max)[said_good](bad_after_good)
                found, why = (
                    [label for label, text in plain.items() if text == good],
                    f"by the column {column!r}",
                )
        if values == {"-1", "1"}:
            found, why = (
                [label for label, text in plain.items() if text == "1"],
                "as scikit-learn writes them",
            )
    if len(found) == 1:
        return found[0], f"normal images are those labelled {found[0]!r}, {why}; another: --normal LABEL"
    if not counts:
        raise DataError(
            "no image has a label",
            "sort them into folders good and bad, or give a table (--path-column, --label-column)",
        )
    what = (
        "several labels may be those of normal images"
        if found
        else "no label is known as that of normal images"
    )
    raise DataError(f"{what}; the labels are {seen}", "say which: --normal LABEL")


def _plain(label: str) -> str:
    with suppress(ValueError):
        return f"{float(label):g}"
    return label.strip().lower()


def for_detection(
    images: ImageSet,
    normal: str | None = None,
    keep_together: str = "auto",
    seed: int = 0,
    column: str = "label",
) -> ImageSet:
    """The images with normal ones labelled "good", and splits "train" and "test".

    Splits are read under their usual names. Where none is named, 70 % of the normal images are drawn for
    training, whole patients or the like where a column names them; all others are for testing. A set with
    "train" and "validation" only is tested on the latter.

    Args:
        normal: what normal images are called; found out by default, see :func:`normal_label`.
        keep_together: the column that is never split, ``auto`` for one of :data:`UNITS`, or ``none``.
        seed: of the choice, which does not depend on the order of the images.
        column: of the labels.

    Raises:
        ConfigError: no image has that label, or there is no such column.
        DataError: there are too few normal or defective images to train and to test on.
    """
    notes = list(images.notes)
    try:
        good, why = normal_label(images.classes, normal, column)
    except (ConfigError, DataError) as error:
        raise type(error)(f"{images.name}: {error.message}", error.remedy) from None
    notes += [why] if why else []
    items = [replace(i, label=NORMAL if i.label == good else i.label) for i in images.items]
    bare = [i for i in items if i.label is None]
    if bare and len(bare) < len(items):
        notes.append(f"{len(bare)} images have no label and were left out, the first: {bare[0].id}")
        items = [i for i in items if i.label is not None]
    splits = {i.split for i in items}
    if splits == {None}:
        items, note = _drawn(items, keep_together, seed)
        notes.append(note)
    elif "train" in splits and "test" not in splits and "validation" in splits:
        items = [replace(i, split="test") if i.split == "validation" else i for i in items]
        notes.append("there are no test images: those for validation are tested")
    other = Counter(i.split or "none" for i in items if i.split not in ("train", "test", "validation"))
    if other:
        said = few(f"{count} of {split}" for split, count in other.items())
        notes.append(f"images of other splits than train and test were left out: {said}")
    if odd := sum(i.split == "train" and i.label != NORMAL for i in items):
        notes.append(f"{odd} defective images are marked for training and were left out")
    found = images.of(items, notes)
    require_both(found)
    return found


def require_both(images: ImageSet) -> None:
    """Raise DataError, naming the splits and labels that there are, unless there are normal images to
    train on, and normal and defective ones to test."""
    test = images.select(split="test")
    counts = {
        "2 normal training images": len(images.select(split="train", label=NORMAL)) >= 2,
        "a normal test image": bool(test.select(label=NORMAL).items),
        "a defective test image": any(i.label != NORMAL for i in test.items),
    }
    if lacking := [what for what, there in counts.items() if not there]:
        pairs = Counter((i.split or "no split", i.label) for i in images.items)
        seen = few((f"{split} {label} ({count})" for (split, label), count in pairs.most_common()), 12)
        raise DataError(
            f"{images.name} lacks {' and '.join(lacking)}; there are {seen}",
            "name the column of the split (--split-column, values train and test; without one the good "
            "images are split), of the label (--label-column), and normal images (--normal); see --dry-run",
        )


def _drawn(items: list[Item], keep_together: str, seed: int) -> tuple[list[Item], str]:
    """Items whose split is drawn, and a note."""
    known = dict.fromkeys(name for item in items for name in item.groups)
    column = (
        next((n for n in known if n.lower() in UNITS), None) if keep_together == "auto" else keep_together
    )
    column = None if column == "none" else column
    if column is not None and column not in known:
        raise ConfigError(
            f"the data have no column {column!r} to keep together", suggest(column, known, "columns")
        )
    good = [i for i in items if i.label == NORMAL]

    def unit(item: Item) -> str:
        return (item.groups.get(column) if column else None) or item.id

    spoilt = {unit(i) for i in items if i.label != NORMAL} if column else set()  # their patients are tested
    sizes = Counter(unit(i) for i in good)
    tested = {u for u in sizes if u in spoilt}
    count = sum(sizes[u] for u in tested)
    for name in sorted(sizes.keys() - tested, key=lambda u: mixed(f"{seed}/{u}")):
        if count >= max(_TEST_SHARE * len(good), min(_LEAST, len(good) / 2)):
            break
        tested.add(name)
        count += sizes[name]
    chosen = [replace(i, split="test" if i.label != NORMAL or unit(i) in tested else "train") for i in items]
    by = f", by {column}" if column else ""
    return chosen, (
        f"the data name no split: {len(good) - count} of {len(good)} good images are for training and "
        f"{count} for testing, drawn{by} (seed {seed}); all {len(items) - len(good)} others are tested"
    )


def same_training(sets: Sequence[ImageSet]) -> list[list[ImageSet]]:
    """Categories that follow each other and are trained on the same images, together."""
    return [list(group) for _, group in groupby(sets, key=_trained)]


def _trained(images: ImageSet) -> list[int]:
    return [id(item) for item in images.select(split="train", label="good").items]
