"""Rendered industrial parts with exact masks, photographed by a simulated camera.

Whatever an audit finds on them comes from the physics of the pictures: grain, texture, light and pose are
drawn without regard to the label.
"""

from .brush_hairs import BrushHairs
from .camera import Camera
from .capsule import PrintedCapsule
from .part import Part
from .parts import CATEGORIES, make_parts, write
from .stamped_plate import StampedPlate
from .turned_ring import TurnedRing
from .wood_stripes import WoodStripes

__all__ = [
    "CATEGORIES",
    "BrushHairs",
    "Camera",
    "Part",
    "PrintedCapsule",
    "StampedPlate",
    "TurnedRing",
    "WoodStripes",
    "make_parts",
    "write",
]
