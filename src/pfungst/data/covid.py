"""Chest X-rays: the GitHub COVID-19 image data collection, NIH CXR8, and both together as in the main paper.

Kauffmann et al. 2025, methods, "Datasets": frontal X-rays of the collection split 80:20 by patient; NIH
images, all negative, bring the training set to ten negatives per positive and balance the test set.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from pfungst.errors import DataError
from pfungst.files import mixed

from .delimited import read_rows, require
from .item import Item
from .items import ImageSet

FRONTAL = ("PA", "AP", "AP Supine", "AP Erect")
"""Values of the collection's column `view` that are frontal."""

POSITIVE, NEGATIVE = "COVID-19", "other"
_COLLECTION = ("patientid", "finding", "view", "modality", "filename")
_NIH = ("Image Index", "Finding Labels", "Patient ID", "View Position")
_NIH_TABLES = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")


def is_collection(folder: Path) -> bool:
    """Whether a folder holds the GitHub collection or data in its form."""
    try:
        return set(_COLLECTION) <= set(read_rows(folder / "metadata.csv").fields)
    except DataError:
        return False


def open_collection(
    folder: str | Path,
    label: str | None = None,
    views: Sequence[str] = FRONTAL,
    test_share: float = 0.2,
    seed: int = 0,
) -> ImageSet:
    """The GitHub COVID-19 image data collection: `metadata.csv` and the images in the folders it names.

    Args:
        folder: where metadata.csv lies.
        label: a column to take the label from instead of the finding; 1 and 0 become "icu" and "not icu" for
            the column `icu`, images without a value are left out. By default "COVID-19" where the finding
            contains it, else "other".
        views: views that are kept; modalities other than X-ray never are.
        test_share: share of the patients whose images are test images. No patient is in both.
        seed: of the choice of patients, which does not depend on their order or on other patients' images.

    Returns:
        A set whose groups are all other columns and `source` ("GitHub").

    Raises:
        DataError: the table or its columns, or image files, are missing.
    """
    root = Path(folder)
    fields, rows = _table(root / "metadata.csv", _COLLECTION)
    require(root / "metadata.csv", fields, [label])
    frontal = [r for r in rows if r["modality"].lower() in ("x-ray", "xray") and r["view"] in views]
    kept = [r for r in frontal if label is None or r[label] != ""]
    notes = []
    once: dict[tuple[str, str], dict[str, str]] = {}
    for r in kept:
        once.setdefault((r.get("folder", "images"), r["filename"]), r)
    if len(once) < len(kept):
        notes.append(f"{len(kept) - len(once)} images are listed twice; the first row of each counts")
        kept = list(once.values())
    if len(frontal) < len(rows):
        notes.append(
            f"{len(rows) - len(frontal)} of {len(rows)} images are no frontal X-rays and were left out"
        )
    if len(kept) < len(frontal):
        notes.append(f"{len(frontal) - len(kept)} images have no value of {label} and were left out")
    if not kept:
        raise DataError(
            f"{root / 'metadata.csv'} lists no frontal X-ray among {len(rows)} images",
            f"modality must be X-ray and view one of {', '.join(views)}",
        )
    nameless = [r["filename"] for r in kept if r["patientid"] == ""]
    if nameless:
        raise DataError(
            f"{root / 'metadata.csv'}: {len(nameless)} images have no patientid, the first is {nameless[0]}",
            "patients cannot be kept apart without it: fill the column",
        )
    tested = _test_patients({r["patientid"] for r in kept}, test_share, seed)
    items, absent = [], []
    for row in kept:
        path = root / row.get("folder", "images") / row["filename"]
        if not path.is_file():
            absent.append(str(path))
        items.append(
            Item(
                path.relative_to(root).as_posix(),
                path,
                _label(row, label),
                split="test" if row["patientid"] in tested else "train",
                groups={
                    "source": "GitHub",
                    "patient": f"GitHub {row['patientid']}",
                    **{c: row[c] for c in fields if c not in ("patientid", "filename", "folder", label)},
                },
            )
        )
    if absent:
        raise DataError(
            f"{len(absent)} of {len(items)} images listed in {root / 'metadata.csv'} do not exist, the "
            f"first is {absent[0]}",
            "download the images folder completely",
        )
    return ImageSet(root.name, items, notes)


def open_nih(folder: str | Path, test_share: float = 0.2, seed: int = 0) -> ImageSet:
    """NIH CXR8: the images that are there, of those in `Data_Entry_2017_v2020.csv`; all are negative.

    Args:
        folder: where the table lies, beside `images/`, `images-224/` or the downloaded `images_001/images` to
            `_012`.
        test_share: share of the patients whose images are test images.
        seed: of the choice of patients.

    Raises:
        DataError: the table, its columns, or all images are missing.
    """
    root = Path(folder)
    table = next((root / name for name in _NIH_TABLES if (root / name).is_file()), root / _NIH_TABLES[0])
    _, rows = _table(table, _NIH)
    places = [
        p for p in (root / "images", root / "images-224", *sorted(root.glob("images_*/images"))) if p.is_dir()
    ]
    files = {entry.name: Path(entry.path) for place in places for entry in os.scandir(place)}
    there = [r for r in rows if r["Image Index"] in files]
    if not there:
        looked = ", ".join(str(p) for p in places) or f"{root / 'images'}, {root / 'images-224'}"
        raise DataError(
            f"none of the {len(rows)} images of {table} exist (looked in {looked})",
            "unpack the images beside the table",
        )
    tested = _test_patients({r["Patient ID"] for r in there}, test_share, seed)
    items = [
        Item(
            files[r["Image Index"]].relative_to(root).as_posix(),
            files[r["Image Index"]],
            NEGATIVE,
            split="test" if r["Patient ID"] in tested else "train",
            groups={
                "source": "NIH",
                "patient": f"NIH {r['Patient ID']}",
                "finding": r["Finding Labels"],
                "view": r["View Position"],
                "sex": r.get("Patient Gender", "") or r.get("Patient Sex", ""),
            },
        )
        for r in there
    ]
    notes = [f"{len(rows) - len(there)} of {len(rows)} images of {table.name} are not on disk"]
    return ImageSet(root.name, items, notes if len(there) < len(rows) else [])


def open_covid(
    collection: str | Path,
    nih: str | Path,
    views: Sequence[str] = FRONTAL,
    negatives_per_positive: int = 10,
    test_share: float = 0.2,
    seed: int = 0,
) -> ImageSet:
    """The paper's aggregate: the collection, and NIH images that fill up the negatives.

    Training gets 10 × positives − negatives NIH images, the test set positives − negatives, so that it is
    balanced. With the paper's 272 + 168 and 70 + 25 images these are 2,552 and 45.

    Args:
        collection: folder of the GitHub collection.
        nih: folder of NIH CXR8.
        views: views kept of the collection.
        negatives_per_positive: in training.
        test_share: share of the patients of each source whose images are test images; no patient is in both.
        seed: of the choice of patients and NIH images.

    Raises:
        DataError: as for :func:`open_collection` and :func:`open_nih`.
    """
    ours = open_collection(collection, None, views, test_share, seed)
    theirs = open_nih(nih, test_share, seed)
    items = [replace(i, id=f"GitHub/{i.id}") for i in ours.items]
    notes = [*ours.notes, *theirs.notes]
    for split, factor in (("train", negatives_per_positive), ("test", 1)):
        part = [i for i in ours.items if i.split == split]
        positives = sum(i.label == POSITIVE for i in part)
        needed = max(0, factor * positives - (len(part) - positives))
        pool = [i for i in theirs.items if i.split == split]
        pool.sort(key=lambda i: _rank(i.id, seed))
        if len(pool) < needed:
            notes.append(f"{split}: {needed} NIH images would be needed, only {len(pool)} are there")
        items += [replace(i, id=f"NIH/{i.id}") for i in pool[:needed]]
    return ImageSet("COVID-19", items, notes)


def _aggregate(folder: Path) -> tuple[Path, Path] | None:
    """The folders of the collection and of NIH CXR8, where a folder holds one of each and no more."""
    inside = sorted(p for p in folder.iterdir() if p.is_dir())
    nih = [p for p in inside if any((p / name).is_file() for name in _NIH_TABLES)]
    ours = [p for p in inside if is_collection(p)] if nih else []
    return (ours[0], nih[0]) if len(ours) == len(nih) == 1 else None


def is_covid(folder: Path) -> bool:
    """Whether a folder is the collection, or holds it and NIH CXR8 as folders."""
    return is_collection(folder) or _aggregate(folder) is not None


def recognise(folder: Path, label: str | None = None) -> ImageSet:
    """The collection where a folder holds it, the aggregate where it holds both as folders."""
    parts = None if is_collection(folder) else _aggregate(folder)
    return open_collection(folder, label) if parts is None else open_covid(*parts)


def _label(row: dict[str, str], column: str | None) -> str:
    if column is None:
        return POSITIVE if POSITIVE in row["finding"] else NEGATIVE
    value = row[column]
    return {"1": column, "0": f"not {column}"}.get(value, value)


def _test_patients(patients: Iterable[str], share: float, seed: int) -> set[str]:
    ordered = sorted(patients, key=lambda p: _rank(p, seed))
    return set(ordered[: round(share * len(ordered))])


def _rank(text: str, seed: int) -> bytes:
    return mixed(f"{seed}/{text}").to_bytes(8, "little")


def _table(file: Path, required: Sequence[str]) -> tuple[list[str], list[dict[str, str]]]:
    table = read_rows(file)
    require(file, table.fields, required)
    return table.fields, table.rows
