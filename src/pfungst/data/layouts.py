"""Recognise what lies at a path and open it: a registry of layouts, of which the first that fits is taken."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pfungst.errors import ConfigError, DataError
from pfungst.suggest import suggest

from . import boxes, covid, folders, imagenet, industrial, mvtec, tables, tars
from .deep import with_levels
from .items import ImageSet
from .options import Options
from .roles import canonical_split
from .window import Window

Wanted = Sequence[str] | None


@dataclass(frozen=True)
class Layout:
    """One way in which data lie on disk.

    Args:
        name: what it is called.
        looks: how it looks, for people.
        fits: whether a path looks so.
        open: its sets; may leave out categories that are not wanted.
        table: whether it has columns that can be named.
    """

    name: str
    looks: str
    fits: Callable[[Path], bool]
    open: Callable[[Path, Options, Wanted], list[ImageSet]]
    table: bool = False


def _is_file(*endings: str) -> Callable[[Path], bool]:
    return lambda path: path.is_file() and path.suffix.lower() in endings


def _collection(path: Path) -> Path:
    return path.parent if path.name == "metadata.csv" else path


LAYOUTS = (
    Layout(
        "COVID-19 collection",
        "metadata.csv beside images, or folders of it and of NIH CXR8",
        lambda p: (p.is_dir() or p.name == "metadata.csv") and covid.is_covid(_collection(p)),
        lambda p, o, _: [covid.recognise(_collection(p), None if o.label == "label" else o.label)],
        table=True,
    ),
    Layout(
        "CSV", "*.csv, *.tsv", _is_file(".csv", ".tsv"), lambda p, o, _: tables.open_csv(p, o), table=True
    ),
    Layout(
        "tar", "*.tar, NAME-{0000..0009}.tar of samples as WebDataset has them", tars.is_tar,
        lambda p, o, _: tars.open_tars(p, o), table=True,
    ),
    Layout("COCO", "annotations/*.json or a .json", boxes.is_coco, lambda p, o, _: boxes.open_coco(p)),
    Layout(
        "Parquet", "*.parquet", _is_file(".parquet", ".pq"),
        lambda p, o, _: tables.open_shards([p], p.parent, p.stem, o), table=True,
    ),
    Layout(
        "MVTec category", "train/good, test/DEFECT", mvtec.is_category,
        lambda p, o, _: [mvtec.open_category(p)],
    ),
    Layout(
        "MVTec", "CATEGORY/{train/good,test/DEFECT,ground_truth/DEFECT}", lambda p: bool(mvtec.categories(p)),
        lambda p, o, w: [mvtec.open_category(c) for c in mvtec.categories(p) if w is None or c.name in w],
    ),
    Layout("VisA", "split_csv/1cls.csv or image_anno.csv", industrial.is_visa, industrial.open_visa),
    Layout("Real-IAD", "realiad_jsons/CATEGORY.json", industrial.is_real_iad, industrial.open_real_iad),
    Layout(
        "ImageNet", "{train,val}/WNID", imagenet.is_imagenet,
        lambda p, o, w: [imagenet.open_imagenet(p, w[0] if w and len(w) == 1 else w)],
    ),
    Layout("YOLO", "images and labels", boxes.is_yolo, lambda p, o, _: boxes.open_yolo(p)),
    Layout(
        "Hugging Face data set", "dataset_dict.json or dataset_info.json", tables.is_hugging_face,
        lambda p, o, _: tables.open_hugging_face(p, o), table=True,
    ),
    Layout(
        "Parquet shards", "*.parquet", lambda p: p.is_dir() and bool(tables.shards(p)),
        lambda p, o, _: tables.open_shards(tables.shards(p), p, p.name, o), table=True,
    ),
    Layout(
        "folder with a CSV", "one CSV beside or above the images", tables.has_listing,
        lambda p, o, _: tables.open_csv(tables.listing(p), o, p.name), table=True,
    ),
    Layout(
        "tar shards", "*.tar and no images beside them", tars.is_folder,
        lambda p, o, _: tars.open_tars(p, o), table=True,
    ),
    Layout(
        "image folder", "CLASS/*.png, SPLIT/CLASS/*.png", Path.is_dir,
        lambda p, o, _: [folders.open_folder(p, o)],
    ),
)  # fmt: skip
"""All layouts, in the order in which they are tried."""


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
    window: str | Window = "header",
) -> list[ImageSet]:
    """Open a data set on disk in one of the :data:`LAYOUTS`; pictures are not decoded yet, but those of more
    than 8 bits, whose range is looked for.

    Args:
        path: a folder or file.
        category: one category or several; all by default. For tables the value of the column ``category``.
        label_column: column with the label; None where the table has none.
        path_column: column with the path of the image, relative to the table (or to ``root``).
        mask_column: column with the path of the mask; used if present.
        split_column: column with "train" or "test"; used if present. The usual other names of these columns
            are found too, which the notes of the set say.
        group_columns: columns kept as groups; by default all other columns.
        normal_label: what normal images are called in this data; they become "good".
        root: the folder that paths in a table are relative to, where it is not that of the table.
        window: which values become black and white in DICOM, in pictures of more than 8 bits and in floats:
            see :meth:`Window.parse`; a text that changes nothing is refused.

    Returns:
        One set per category. Splits have the names train, validation and test where they had a usual one.

    Raises:
        DataError: the path or category does not exist, is empty, or something it refers to is missing.
        ConfigError: the window cannot be read, or no picture has more than 8 bits.
    """
    where = Path(path)
    wanted = None if category is None else [category] if isinstance(category, str) else list(category)
    options = Options(
        path=path_column,
        label=label_column,
        mask=mask_column,
        split=split_column,
        groups=None if group_columns is None else tuple(group_columns),
        normal=normal_label,
        root=None if root is None else Path(root),
        window=Window.parse(window) if isinstance(window, str) else window,
    )
    require_there(where)
    layout = next((known for known in LAYOUTS if known.fits(where)), None)
    if layout is None:
        raise DataError(f"{where} is a file, but neither CSV nor Parquet", f"give {describe_layouts()}")
    _refuse_columns(layout, options)
    sets = layout.open(where, options, wanted)
    if layout.name == "ImageNet" or (layout.name == "MVTec category" and wanted == [where.name]):
        wanted = None
    available = (
        [c.name for c in mvtec.categories(where)] if layout.name == "MVTec" else [s.name for s in sets]
    )
    if missing := [c for c in wanted or [] if c not in available]:
        raise DataError(
            f"{where} has no category {', '.join(map(repr, missing))}",
            suggest(missing[0], sorted(available), "there are"),
        )
    sets = [s for s in sets if wanted is None or s.name in wanted]
    for s in sets:
        if not s.items:
            raise DataError(f"{where}: {s.name} holds no images", f"give {describe_layouts()}")
        s.layout = layout.name
        s.items = [
            i if (split := canonical_split(i.split)) == i.split else replace(i, split=split) for i in s.items
        ]
    some = with_levels(sets, options.window)
    if isinstance(window, str) and options.window.given and not some:
        raise ConfigError(
            "a window does nothing here: no picture is DICOM or has more than 8 bits", "leave --window out"
        )
    return sets


def require_there(path: Path) -> None:
    """Raise DataError where there is nothing at a path, which may be a range of archives."""
    if not path.exists() and not tars.is_tar(path):
        raise DataError(f"{path} does not exist", "check the path")


def _refuse_columns(layout: Layout, options: Options) -> None:
    """Raise ConfigError for columns that are named where the data have none."""
    if layout.table:
        return
    usual = Options()
    named = [
        m for m in ("path", "label", "mask", "split") if getattr(options, m) not in (getattr(usual, m), None)
    ]
    if named or options.root is not None:
        told = (
            f"the {named[0]} column {getattr(options, named[0])!r}" if named else f"the root {options.root}"
        )
        raise ConfigError(
            f"{told} does nothing here: the data are recognised as {layout.name}, which has no table",
            "leave it out, or give a CSV or Parquet file",
        )


def describe_layouts() -> str:
    """All layouts, for messages."""
    return "; ".join(f"{known.name} ({known.looks})" for known in LAYOUTS)
