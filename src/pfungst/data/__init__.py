"""Folder layouts and tables as sets of labelled images, and rendered ones."""

from .decode import MAX_PIXELS, read_image, read_mask
from .items import ImageSet, Item
from .layouts import open_images
from .prepared import Prepared, resize_mask

__all__ = [
    "MAX_PIXELS",
    "ImageSet",
    "Item",
    "Prepared",
    "open_images",
    "read_image",
    "read_mask",
    "resize_mask",
]
