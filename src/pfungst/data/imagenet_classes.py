"""The classes of ImageNet-1k and of the five orders of ImageNet-21k in which published models answer.

Every order but that of `ms` is by WordNet id; the table beside this file says which synsets each holds, and
what they are
called: all lemmas of the 1,000, the first of the others. Derived from the lists of class ids and lemmas in
timm's ``timm/data/_info`` (Apache-2.0), whose names are WordNet 3.0's (© 2006 Princeton University, WordNet
licence).
"""

from __future__ import annotations

import lzma
import re
from functools import cache
from importlib.resources import files

_ORDERS = (1000, 11821, 10450, 11221, 21841, 21843)  # outputs of the orders, by bit of the flags in the table
_MS = 21842  # the 1,000, then the rest of 21841 by id
_WNID = re.compile(r"(n\d{8})(?!\d)")


@cache
def _table() -> dict[str, tuple[int, tuple[str, ...]]]:
    """{WordNet id: (flags, lemmas)}, by id."""
    packed = files("pfungst.data").joinpath("imagenet_classes.txt.xz").read_bytes()
    rows = (line.split("\t") for line in lzma.decompress(packed).decode().splitlines())
    return {f"n{number}": (int(flags), tuple(lemmas.split(", "))) for number, flags, lemmas in rows}


@cache
def order(outputs: int) -> tuple[str, ...] | None:
    """WordNet ids in the order of the outputs of a model that has so many; None where no order is known."""
    if outputs == _MS:
        first, rest = order(1000) or (), order(21841) or ()
        return first + tuple(w for w in rest if w not in set(first))
    if outputs not in _ORDERS:
        return None
    bit = 1 << _ORDERS.index(outputs)
    return tuple(wnid for wnid, (flags, _) in _table().items() if flags & bit)


def wnid_of(label: str) -> str | None:
    """The WordNet id that a label is, or begins with ("n01440764_tench"); None without a known one."""
    match = _WNID.match(label)
    return match[1] if match and match[1] in _table() else None


def title(label: str) -> str:
    """What to call a label for people: "n01440764 tench" for a WordNet id, any other label as it is."""
    wnid = wnid_of(label)
    return label if wnid is None else f"{wnid} {_table()[wnid][1][0]}"


def plain(name: str) -> str:
    """A name without what spellings differ in: case, underscores, hyphens, names after a comma."""
    return re.sub(r"[\s_-]+", " ", name.partition(",")[0].replace("'", "")).strip().lower()


@cache
def names(outputs: int) -> dict[str, tuple[str, ...]]:
    """{name without differences of spelling: WordNet ids} of an order; first names count before other lemmas.

    Raises:
        KeyError: no order is known for so many outputs.
    """
    wnids = order(outputs)
    if wnids is None:
        raise KeyError(outputs)
    found: tuple[dict[str, list[str]], ...] = ({}, {})
    for wnid in wnids:
        first, *others = _table()[wnid][1]
        found[0].setdefault(plain(first), []).append(wnid)
        for name in others:
            found[1].setdefault(plain(name), []).append(wnid)
    return {name: tuple(dict.fromkeys(w)) for name, w in (found[1] | found[0]).items()}
