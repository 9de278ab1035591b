"""What a page is made of: a verdict, a few figures, and sections of blocks. No audit is known here.

A page is data; :func:`render` makes it one HTML file. A new kind of block is a dataclass here and a
template of the same name in ``templates/blocks``.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial, wraps
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pfungst.audit.result import Level, Result, Verdict
from pfungst.audit.whatnext import commands
from pfungst.errors import DataError

Tone = Literal["", "good", "bad", "original", "deployed", "mitigated"]

# How each level of a verdict is named; the icon of the same name is in templates/icons.html.
WORDS: dict[Level, str] = {
    "too-few": "Too few images to judge",
    "unfit": "Unfit for use",
    "provenance": "Follows where the data came from",
    "clever-hans": "Clever Hans effect",
    "fragile": "Fragile",
    "not-established": "Not established",
    "sound": "Sound",
}


@dataclass(frozen=True, kw_only=True)
class Block:
    """Something shown in a section, drawn by ``templates/blocks/<template>.html``, the kind's own name."""

    template: ClassVar[str]

    def __init_subclass__(cls) -> None:
        cls.template = vars(cls).get("template", cls.__name__.lower())


@dataclass(frozen=True)
class Prose(Block):
    """Paragraphs; as a list where `bullets`."""

    paragraphs: Sequence[str]
    bullets: bool = False


@dataclass(frozen=True)
class Cell:
    """One cell of a table: value, smaller addition (an interval), mark (↓) and its meaning, link of a row."""

    text: str
    note: str = ""
    mark: str = ""
    meaning: str = ""
    tone: Tone = ""
    title: str = ""
    href: str = ""


@dataclass(frozen=True)
class Column:
    """Heading of a column and what stands below it, by the item of the row; numbers stand to the right."""

    label: str
    hint: str = ""
    of: Callable[..., Cell | str | tuple[str, str]] = str
    numeric: bool = True

    def cell(self, item: Any) -> Cell:
        """Of one item, a tuple being several arguments; of two texts the second is the smaller addition."""
        found = self.of(*item) if isinstance(item, tuple) else self.of(item)
        return found if isinstance(found, Cell) else Cell(*([found] if isinstance(found, str) else found))


words = partial(Column, numeric=False)
"""A column of words."""


@dataclass(frozen=True)
class Rows:
    """Rows of a table that belong together, below a heading of their own (or none)."""

    rows: Sequence[Sequence[Cell]]
    label: str = ""
    note: str = ""
    href: str = ""
    strong: bool = False

    @classmethod
    def of(cls, columns: Sequence[Column], items: Iterable[Any], label: str = "", **more: Any) -> Self:
        """A row an item, as the columns say."""
        return cls([[column.cell(item) for column in columns] for item in items], label, **more)


@dataclass(frozen=True, kw_only=True)
class Table(Block):
    """The first cell of a row is its heading. Scrolls inside itself where it is too wide."""

    columns: Sequence[Column]
    groups: Sequence[Rows]
    caption: str
    name: str

    @classmethod
    def of(cls, columns: Sequence[Column], items: Iterable[Any], name: str, caption: str) -> Self:
        """A row an item, as the columns say."""
        return cls.grouped(columns, {"": items}, name, caption)

    @classmethod
    def grouped(
        cls, columns: Sequence[Column], groups: Mapping[str, Iterable[Any]], name: str, caption: str
    ) -> Self:
        """The same below headings."""
        rows = [Rows.of(columns, items, label) for label, items in groups.items()]
        return cls(columns=columns, groups=rows, name=name, caption=caption)


@dataclass(frozen=True)
class Key:
    """One entry of a legend: a colour and a shape (circle, diamond, square, bar, line, dashed, band)."""

    label: str
    colour: str
    shape: str


@dataclass(frozen=True, kw_only=True)
class Figure(Block):
    """A chart as inline SVG (from :mod:`pfungst.report.plots`); `narrow` replaces it on small screens."""

    title: str
    picture: Markup
    caption: str
    narrow: Markup = field(default_factory=Markup)
    legend: Sequence[Key] = ()


@dataclass(frozen=True)
class Tile:
    """One picture; `outline` is an SVG path in a box of `size` (width, height) drawn over it."""

    label: str
    alt: str
    src: str = ""
    outline: str = ""
    size: tuple[int, int] = (1, 1)
    empty: str = ""


@dataclass(frozen=True)
class Words:
    """A text, word by word: (word, its colour, whether it is outlined)."""

    label: str
    words: Sequence[tuple[str, str, bool]]


@dataclass(frozen=True)
class Strip:
    """Pictures with a heading, and what full colour means; as pairs, the second below the first. Or texts."""

    title: str
    tiles: Sequence[Tile]
    scale: str = ""
    pairs: bool = False
    texts: Sequence[Words] = ()


@dataclass(frozen=True)
class Outcome:
    """What one variant said about an exhibit, and whether it was right."""

    variant: str
    word: str
    right: bool
    detail: str


@dataclass(frozen=True, kw_only=True)
class Exhibit:
    """One example: what it is, why it is shown, what was said of it, its pictures."""

    name: str
    reason: str
    tags: Sequence[str] = ()
    outcomes: Sequence[Outcome] = ()
    strips: Sequence[Strip] = ()


@dataclass(frozen=True, kw_only=True)
class Gallery(Block):
    """Examples below each other; `ramp` is a picture of the colours of the heatmaps."""

    title: str
    caption: str
    exhibits: Sequence[Exhibit]
    ramp: str = ""
    outlines: bool = True


@dataclass(frozen=True)
class Step:
    """One value in a sequence such as original → deployed → mitigated."""

    label: str
    text: str
    tone: Tone = ""
    mark: str = ""
    meaning: str = ""


@dataclass(frozen=True)
class Stat:
    """A key figure: its name, the values in order, what it means."""

    label: str
    steps: Sequence[Step]
    note: str = ""


@dataclass(frozen=True)
class Stats(Block):
    """Key figures beside each other."""

    stats: Sequence[Stat]


@dataclass(frozen=True, kw_only=True)
class Facts(Block):
    """Names and values, in two columns."""

    facts: Sequence[tuple[str, str]]
    title: str = ""


@dataclass(frozen=True)
class Columns(Block):
    """Blocks beside each other where there is room."""

    blocks: Sequence[Block]


@dataclass(frozen=True)
class Details(Block):
    """Blocks that open on a click; `stats` stay visible in the line that is clicked."""

    title: str
    blocks: Sequence[Block]
    id: str = ""
    note: str = ""
    stats: Sequence[Stat] = ()
    open: bool = False
    level: int = 3


@dataclass(frozen=True)
class Lazy(Block):
    """Blocks that the browser builds only when the details around them are opened."""

    blocks: Sequence[Block]


@dataclass(frozen=True, kw_only=True)
class Finder(Block):
    """A search box over `count` elements of the CSS selector `target`; `flag` keeps those with a tag."""

    label: str
    target: str
    count: int
    noun: str
    flag: str = ""


@dataclass(frozen=True)
class Section:
    """A part of the page with an entry in its table of contents."""

    id: str
    title: str
    blocks: Sequence[Block]
    lead: str = ""
    links: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True, kw_only=True)
class Page:
    """A report: what was found, first; then how. One without a verdict has a headline of its own."""

    kicker: str
    title: str
    verdict: Verdict | None
    sections: Sequence[Section]
    headline: str = ""
    stats: Sequence[Stat] = ()
    stats_note: str = ""
    facts: Sequence[tuple[str, str]] = field(default_factory=tuple)
    version: str = ""
    commands: Sequence[str] = ()

    @classmethod
    def of(
        cls,
        result: Result,
        *,
        facts: Sequence[tuple[str, str]],
        sections: Sequence[Section | None],
        stats: Sequence[Stat],
        stats_note: str = "",
    ) -> Page:
        """The page of an audit; sections that are None are left out."""
        plain = result.kind in ("comparison", "watch")
        return cls(
            kicker=result.kind.capitalize() + ("" if plain else " audit"),
            title=result.title,
            verdict=result.verdict,
            stats=stats,
            stats_note=stats_note,
            sections=[s for s in sections if s is not None],
            facts=[*facts, ("Audited", result.created[:10])],
            version=result.version,
            commands=commands(result),
        )

    @property
    def word(self) -> str:
        return self.kicker if self.verdict is None else WORDS[self.verdict.level]


R = TypeVar("R", bound=Result)


def page_of(kind: type[R]) -> Callable[[Callable[[R, Path], Page]], Callable[[Result, Path], Page]]:
    """Make ``page(result, folder)`` of a function of one kind of result and of the folder of its files; it
    raises DataError for another kind, and where arrays or images are missing or damaged."""

    def decorate(function: Callable[[R, Path], Page]) -> Callable[[Result, Path], Page]:
        @wraps(function)
        def page(result: Result, folder: Path) -> Page:
            if isinstance(result, kind):
                return function(result, folder)
            said = f"a result of kind {result.kind!r} is no {kind.model_fields['kind'].default} audit"
            raise DataError(said, "use the page of its kind")

        return page

    return decorate


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("pfungst.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(page: Page) -> str:
    """The page as one HTML file: style, script and pictures inside, and a policy that nothing is loaded."""
    environment = _environment()
    loader = environment.loader
    assert loader is not None
    script, style = (
        "\n".join(loader.get_source(environment, f"{name}.{kind}")[0].strip() for name in ("page", "pairs"))
        for kind in ("js", "css")
    )
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    return environment.get_template("page.html").render(
        page=page, script=Markup(script), style=Markup(style), policy=policy
    )
