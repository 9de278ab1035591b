"""What Pfungst claims is shown by tests that exist, and nothing that users can name is left out."""

import ast
import json
from collections import Counter
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pfungst.claims import STATUSES, Claim, choose, claims
from pfungst.cli import app
from pfungst.errors import ConfigError
from pfungst.registry import COMPOSITES, CONDITIONS, DETECTORS

CLAIMS = claims()
ROOT = Path(__file__).parents[1]


def collected(path: str) -> set[str]:
    """What pytest collects of a file, by its syntax: test functions, and those of Test classes as Class::name."""
    found = set()
    for node in ast.parse((ROOT / path).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ClassDef) and node.name.startswith("Test"):
            found |= {f"{node.name}::{f.name}" for f in node.body if isinstance(f, ast.FunctionDef)}
    return {name for name in found if name.rpartition("::")[2].startswith("test_")}


@pytest.mark.parametrize("where", sorted({t for c in CLAIMS for t in c.tests}))
def test_every_named_test_exists(where):
    path, _, name = where.partition("::")
    assert (ROOT / path).is_file()
    if path.startswith("benchmarks/"):
        assert not name
    else:
        assert name in collected(path)
        assert Path(path).name.startswith("test_")


def test_a_claim_with_a_status_names_what_shows_it():
    for claim in CLAIMS:
        assert bool(claim.tests) == (claim.status != "not-verified"), claim.name
        assert claim.tests or claim.missing, claim.name
        if claim.verified:  # benchmarks measure; they compare with nothing
            assert any(t.startswith("tests/") for t in claim.tests), claim.name
    assert max(Counter(c.name for c in CLAIMS).values()) == 1


@pytest.mark.parametrize(
    ("area", "names"),
    [
        ("explanation", COMPOSITES.names()),
        ("detector", DETECTORS.names()),
        ("data", CONDITIONS.names()),
        (
            "finding",
            [
                "anomaly",
                "similarity",
                "classifier",
                "clever-hans",
                "provenance",
                "fragile",
                "unfit",
                "sound",
                "too-few",
                "not-established",
            ],
        ),
        ("mitigation", ["blur", "lowpass", "prune", "SpuFix"]),
    ],
)
def test_what_users_can_name_has_a_claim(area, names):
    words = {w.strip(",:()") for c in CLAIMS if c.area == area for w in c.name.split()}
    assert set(names) <= words


def test_the_command_prints_them_all():
    result = CliRunner().invoke(app, ["claims"])
    assert result.exit_code == 0
    assert all(c.name in result.output for c in CLAIMS)
    assert f"{len(CLAIMS)} claims" in result.output
    for status in STATUSES:
        shown = json.loads(CliRunner().invoke(app, ["claims", "--json", "--status", status]).output)
        assert [s["name"] for s in shown] == [c.name for c in CLAIMS if c.status == status]
        assert shown


def test_an_unknown_status_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match="verified"):
        choose("verifed")
    assert Claim("tool", "x").status == "not-verified"
