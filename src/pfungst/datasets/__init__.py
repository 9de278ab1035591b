"""Data sets that come with the package, or are made from what others publish."""

from .digits import digits_c
from .mnist import emnist_letters, mnist, mnist_c
from .tagged import parting_digits, tag_image, tagged_digits

__all__ = ["digits_c", "emnist_letters", "mnist", "mnist_c", "parting_digits", "tag_image", "tagged_digits"]
