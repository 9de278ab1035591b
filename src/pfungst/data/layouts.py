"""Recognise what lies at a path and open it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pfungst.errors import DataError
from pfungst.suggest import suggest

from . import covid, folders, imagenet, mvtec, tables
from .items import ImageSet

LAYOUTS = (
    "an MVTec folder (CATEGORY/train/good, CATEGORY/test/DEFECT, CATEGORY/ground_truth/DEFECT), one "
    "category of it, an image folder (CLASS/*.png), the COVID-19 collection (metadata.csv), a folder of it "
    "and NIH CXR8, ImageNet "
    "({train,val}/WNID), a flat folder with a CSV, a CSV, or Parquet"
)


def open_images(
    path: str | Path,
    category: str | Sequence[str] | None = None,
    *,
    label_column: str | None = "label",
    path_column: str = "path",
    mask_column: str = "mask",
    split_column: str = "split",
    group_columns: Sequence[str] | None = None,
    normal_label: str = "good",
    root: str | Path | None = None,
) -> list[ImageSet]:
    """Open a data set on disk; nothing is decoded yet.

    Args:
        path: an MVTec root or category, an image folder ``CLASS/*.png`` or ``SPLIT/CLASS/*.png``, a flat
            folder with or without a CSV, a CSV file, a Parquet file or a folder of Parquet shards.
        category: one category or several; all by default. For tables the value of the column ``category``.
        label_column: column with the label; None where the table has none.
        path_column: column with the path of the image, relative to the CSV (or to ``root``).
        mask_column: column with the path of the mask; used if present.
        split_column: column with "train" or "test"; used if present.
        group_columns: columns kept as groups; by default all other columns.
        normal_label: what normal images are called in this data; they become "good".
        root: the folder that paths in a CSV are relative to, where it is not the folder of the CSV.

    Returns:
        One set per category.

    Raises:
        DataError: the path or category does not exist, is empty, or something it refers to is missing.
    """
    where = Path(path)
    wanted = None if category is None else [category] if isinstance(category, str) else list(category)
    options = tables.Columns(
        path=path_column,
        label=label_column,
        mask=mask_column,
        split=split_column,
        groups=None if group_columns is None else tuple(group_columns),
        normal=normal_label,
    )
    if not where.exists():
        raise DataError(f"{where} does not exist", "check the path")
    if where.is_file():
        if where.suffix.lower() in (".csv", ".tsv"):
            sets = tables.open_csv(where, options, None if root is None else Path(root))
        elif where.suffix.lower() in (".parquet", ".pq"):
            sets = tables.open_parquet([where], where.parent, where.stem, options)
        else:
            raise DataError(f"{where} is a file, but neither CSV nor Parquet", f"give {LAYOUTS}")
    elif mvtec.is_category(where):
        sets = [mvtec.open_category(where)]
        wanted = None if wanted == [where.name] else wanted
    elif found := mvtec.categories(where):
        _require(where, wanted, [c.name for c in found])
        sets = [mvtec.open_category(c) for c in found if wanted is None or c.name in wanted]
    elif found_covid := covid.recognise(where, None if label_column == "label" else label_column):
        sets = [found_covid]
    elif imagenet.is_imagenet(where):
        sets, wanted = (
            [imagenet.open_imagenet(where, wanted[0] if wanted and len(wanted) == 1 else wanted)],
            None,
        )
    elif shards := sorted(p for p in where.rglob("*.parquet") if folders.visible(p, where)):
        sets = tables.open_parquet(shards, where, where.name, options)
    else:
        sets = _open_folder(where, options, root)
    _require(where, wanted, [s.name for s in sets])
    sets = [s for s in sets if wanted is None or s.name in wanted]
    for s in sets:
        if not s.items:
            raise DataError(f"{where}: {s.name} holds no images", f"give {LAYOUTS}")
    return sets


def _open_folder(where: Path, options: tables.Columns, root: str | Path | None) -> list[ImageSet]:
    listings = sorted(p for p in where.glob("*.csv") if folders.visible(p, where))
    if len(listings) == 1:
        return tables.open_csv(listings[0], options, None if root is None else Path(root), name=where.name)
    if len(listings) > 1:
        names = ", ".join(p.name for p in listings)
        raise DataError(f"{where} holds {len(listings)} CSV files: {names}", "give the path of one of them")
    return [folders.open_folder(where, options.normal)]


def _require(where: Path, wanted: list[str] | None, available: list[str]) -> None:
    missing = [c for c in wanted or [] if c not in available]
    if missing:
        raise DataError(
            f"{where} has no category {', '.join(map(repr, missing))}",
            suggest(missing[0], sorted(available), "there are"),
        )
