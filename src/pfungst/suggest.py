"""What to write instead of a name that is not known."""

from __future__ import annotations

import re
from collections.abc import Iterable

_SHORT = 40  # names that a message lists in full


def suggest(name: str, known: Iterable[str], what: str = "known") -> str:
    """The remedy for an unknown name: the nearest known ones, and all of them where they are few.

    Args:
        name: what was given.
        known: what is understood, in the order to show.
        what: introduces the list, for example "columns".

    Returns:
        For example "did you mean 'blur'? known: none, blur, lowpass".
    """
    import difflib

    names = list(dict.fromkeys(map(str, known)))
    plain = [n if re.fullmatch(r"\S+", n) and "," not in n else repr(n) for n in names]
    few = len(names) <= _SHORT
    near = difflib.get_close_matches(str(name), names, n=1 if few else 4, cutoff=0.4 if few else 0.6)
    parts = [f"did you mean {' or '.join(map(repr, near))}?"] if near else []
    if few:
        parts.append(f"{what}: {', '.join(plain) or 'none'}")
    elif not near:
        parts.append(f"{what} are for example {', '.join(plain[:5])} ({len(names)} in all)")
    return " ".join(parts)
