"""What Pfungst claims, and what stands behind it: the table ``claims.toml``, printed by ``pfungst claims``.

*Verified* means compared with something that we did not write (a library, published outputs, finite
differences, a formula computed by hand in the test). *Measured* means that the effect was measured on the
data named, by the test or by the benchmark named, without such a comparison. What is neither is *not
verified*, and said to be. `missing` says what a reader might take for granted and should not. Nothing here is
computed; a test holds that every named test exists.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Literal, get_args

Status = Literal["verified", "measured", "not-verified"]
STATUSES: tuple[Status, ...] = get_args(Status)


@dataclass(frozen=True)
class Claim:
    """One method or finding.

    Attributes:
        area: explanation, detector, measure, finding, mitigation, model, data or tool.
        name: the method or finding; names that users type stand in it as they are typed.
        verified: against what that we did not write; empty for nothing.
        measured: on what; empty for nothing.
        missing: what has not been shown.
        tests: ``path::name`` below the project that show it, or a benchmark's path.
    """

    area: str
    name: str
    verified: str = ""
    measured: str = ""
    missing: str = ""
    tests: tuple[str, ...] = ()

    @property
    def status(self) -> Status:
        """The strongest of what stands behind it."""
        return "verified" if self.verified else "measured" if self.measured else "not-verified"


@cache
def claims() -> tuple[Claim, ...]:
    """All of them, in the order of ``claims.toml``."""
    table = tomllib.loads(resources.files("pfungst").joinpath("claims.toml").read_text(encoding="utf-8"))
    return tuple(Claim(**{**entry, "tests": tuple(entry.get("tests", ()))}) for entry in table["claim"])


def choose(status: str | None = None) -> list[Claim]:
    """Claims of a status, or all, in their order.

    Raises:
        ConfigError: there is no such status.
    """
    from pfungst.errors import ConfigError
    from pfungst.suggest import suggest

    if status not in (None, *STATUSES):
        raise ConfigError(f"no claim has the status {status!r}", suggest(str(status), STATUSES, "statuses"))
    return [c for c in claims() if status in (None, c.status)]
