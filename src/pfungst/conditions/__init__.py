"""How images reach the model: resizing, compression, noise, sharpening; named, composable, recorded."""

from .condition import Condition
from .pasted import Logo, Watermark
from .resize import RESIZERS, Size, sides
from .step import Step, choice, condition_page, number, register, string

__all__ = [
    "RESIZERS",
    "Condition",
    "Logo",
    "Size",
    "Step",
    "Watermark",
    "choice",
    "condition_page",
    "number",
    "register",
    "sides",
    "string",
]
