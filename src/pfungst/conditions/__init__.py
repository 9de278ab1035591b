"""How images reach the model: resizing, compression, noise, sharpening; named, composable, recorded."""

from .condition import Condition, Step
from .logo import Logo
from .resize import RESIZERS
from .steps import STEPS

__all__ = ["RESIZERS", "STEPS", "Condition", "Logo", "Step"]
