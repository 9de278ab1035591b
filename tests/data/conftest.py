from pathlib import Path

import pytest

from factories import mini_mvtec


@pytest.fixture
def mvtec(tmp_path: Path) -> Path:
    """A miniature MVTec root of two categories."""
    return mini_mvtec(tmp_path / "mvtec")
