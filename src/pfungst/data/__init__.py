"""Folder layouts and tables as sets of labelled images."""

from .columns import join_columns
from .covid import open_collection, open_covid, open_nih
from .decode import MAX_PIXELS, read_image, read_mask
from .imagenet import open_imagenet
from .item import Item
from .items import ImageSet
from .layouts import open_images
from .prepared import Prepared, resize_mask

__all__ = [
    "MAX_PIXELS",
    "ImageSet",
    "Item",
    "Prepared",
    "join_columns",
    "open_collection",
    "open_covid",
    "open_imagenet",
    "open_images",
    "open_nih",
    "read_image",
    "read_mask",
    "resize_mask",
]
