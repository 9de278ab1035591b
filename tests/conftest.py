import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real data and goldens that lies beside the project; tests that need it skip without it."""
    root = Path(os.environ.get("PFUNGST_SHARED", Path(__file__).parents[2] / "shared"))
    if not root.is_dir():
        pytest.skip(f"needs the shared data folder, not found at {root} (set PFUNGST_SHARED)")
    return root


@pytest.fixture(scope="session")
def golden(shared: Path) -> Path:
    return shared / "golden"
