"""Which parts of the demo run."""

import pytest

from pfungst.audit import demo
from pfungst.errors import ConfigError


@pytest.fixture
def parts(monkeypatch):
    monkeypatch.setattr(
        demo, "PARTS", {name: lambda folder, n=name: n for name in ("anomaly", "similarity", "classifier")}
    )


@pytest.mark.parametrize(
    ("only", "expected"),
    [
        (None, ["anomaly", "similarity", "classifier"]),
        ("classifier", ["classifier"]),
    ],
)
def test_parts(parts, tmp_path, only, expected):
    ran = list(demo.run_demo(tmp_path, only))
    assert ran == [(name, tmp_path / name) for name in expected]


def test_an_unknown_part_is_named(parts, tmp_path):
    with pytest.raises(ConfigError, match="'faces'"):
        list(demo.run_demo(tmp_path, "faces"))
