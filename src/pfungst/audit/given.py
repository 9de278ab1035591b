"""The options of every audit that reads images: how the data on disk are to be understood."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from pfungst.audit.config import AuditConfig

if TYPE_CHECKING:
    from pfungst.data import ImageSet


class ImageOptions(AuditConfig):
    """What every audit of images can be told about its data."""

    path_column: str = Field("path", description="Column of a table with the path of the image")
    mask_column: str = Field("mask", description="Column with the path of the mask")
    split_column: str = Field("split", description="Column with the split")
    root: Path | None = Field(None, description="Folder that paths in a table begin at [the table's]")
    window: str = Field(
        "header",
        description="Values shown of DICOM and of more than 8 bits: CENTRE,WIDTH; header: as the file says, "
        "else the range in use",
    )
    dry_run: bool = Field(False, description="Say what the data are recognised as and what the audit takes")

    _irrelevant: ClassVar[tuple[str, ...]] = (*AuditConfig._irrelevant, "dry_run")

    def open(self, path: Path, label: str | None, category: Any = None, **options: Any) -> list[ImageSet]:
        """The sets of images at a path; see :func:`pfungst.data.open_images`."""
        from pfungst.data import open_images

        return open_images(
            path,
            category,
            label_column=label,
            path_column=self.path_column,
            mask_column=self.mask_column,
            split_column=self.split_column,
            root=self.root,
            window=self.window,
            **options,
        )


class LabelledOptions(ImageOptions):
    """The same where a table has a label beside the columns that are audited."""

    label_column: str = Field("label", description="Column with the label")
