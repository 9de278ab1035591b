"""What Pfungst raises and warns with.

Every message says what was wrong, with the value and the file, and what to do about it.
The command line prints the message of a :class:`PfungstError` without a stack trace and exits with 2.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def few(names: Iterable[object], most: int = 8, between: str = ", ") -> str:
    """The first of many names, and how many more there are."""
    texts = list(map(str, names))
    more = [f"… and {len(texts) - most} more"] if len(texts) > most else []
    return between.join(texts[:most] + more)


def lines(texts: Iterable[object], most: int = 20) -> str:
    """The first of many, each on an indented line of its own."""
    return "\n    " + few(texts, most, "\n    ")


class PfungstError(Exception):
    """Base of all errors that are about the user's input or environment, not about our code."""

    def __init__(self, message: str, remedy: str = "") -> None:
        self.message = message
        self.remedy = remedy
        super().__init__(f"{message}\n  → {remedy}" if remedy else message)

    def __reduce__(self) -> tuple[object, ...]:
        """With what it holds, whatever the arguments of its class."""
        return _again, (type(self), self.args), vars(self)


def _again(kind: type[PfungstError], args: tuple[object, ...]) -> PfungstError:
    return kind.__new__(kind, *args)


class InputError(PfungstError, ValueError):
    """An argument or a tensor cannot be used: wrong shape, type, range or not finite."""


class NotFinite(InputError):
    """A score or relevance is NaN or infinite although the input is finite."""


class ConfigError(PfungstError, ValueError):
    """A configuration file or option is wrong."""


class DataError(PfungstError):
    """A data set on disk is missing something or is laid out differently than expected."""


class UnreadableImages(DataError):
    """Some image files cannot be decoded; all of them are named."""

    def __init__(self, problems: Sequence[tuple[str, str]]) -> None:
        self.problems = list(problems)
        count = len(self.problems)
        super().__init__(
            f"{count} image{'s' if count > 1 else ''} cannot be "
            f"read:{lines(f'{p}: {w}' for p, w in self.problems)}",
            "repair or remove them, or pass --skip-bad to leave them out and count them",
        )


class CheckpointError(PfungstError):
    """A checkpoint does not fit the model or cannot be loaded safely."""


class UncoveredOperation(PfungstError):
    """The network uses an operation for which no relevance rule is known."""


class PfungstWarning(UserWarning):
    """Base of our warnings."""


class ConditionMismatch(PfungstWarning):
    """A model is given data prepared differently from the data it was fitted on."""
