"""Which values of a picture become black and white: of DICOM, of more than 8 bits, of floats."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from pfungst.errors import ConfigError


@dataclass(frozen=True)
class Window:
    """Values from `low` to `high` become levels 0 to 255, those beyond are cut.

    Args:
        low, high: None for what the file says: the window in the header of DICOM, else the range in use.
    """

    low: float | None = None
    high: float | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """``header``, or ``CENTRE,WIDTH`` as radiology writes a window: ``40,400`` shows −160 to 240.

        Raises:
            ConfigError: neither.
        """
        if text.strip().lower() == "header":
            return cls()
        try:
            centre, width = (float(part) for part in text.split(","))
        except ValueError:
            centre = width = float("nan")
        if not width > 0 or not np.isfinite([centre, width]).all():
            raise ConfigError(
                f"the window {text!r} cannot be read", "write CENTRE,WIDTH such as 40,400, or header"
            )
        return cls(centre - width / 2, centre + width / 2)

    @property
    def given(self) -> bool:
        """Whether the user named one."""
        return self.low is not None

    def levels(self, values: np.ndarray) -> np.ndarray:
        """(H, W) numbers as uint8."""
        assert self.low is not None
        assert self.high is not None
        scaled = (values.astype(np.float64) - self.low) * (255 / (self.high - self.low))
        return np.rint(scaled).clip(0, 255).astype(np.uint8)
