"""A task, its labellers and their answers so far: what to show next, who disagrees, what is decided."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from pfungst.errors import InputError
from pfungst.files import digest
from pfungst.label import store as stores
from pfungst.label.agreement import PairAgreement, pairwise
from pfungst.label.store import Event, Store
from pfungst.label.task import Item, Task, read_task

ADJUDICATOR = "adjudicator"
ANSWERS = {
    "components": ("spurious", "not", "unsure"),
    "clusters": ("artefact", "object", "unsure"),
    "images": ("in", "out", "trash"),
}


class OutOfDate(InputError):
    """A form was sent from a page that no longer shows the current state."""


@dataclass
class Progress:
    """One person's way through the items, folded from events.

    Args:
        order: ids of the items in this person's order.
    """

    order: list[str]
    counts: dict[str, int] = field(default_factory=dict)
    actions: dict[str, list[Event]] = field(default_factory=dict)
    answers: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)
    undone: dict[str, None] = field(default_factory=dict)
    history: dict[str, None] = field(default_factory=dict)
    _cursor: int = 0

    def apply(self, event: Event) -> None:
        """Take in the next event of this person."""
        item = event.item
        self.counts[item] = event.sequence + 1
        actions = self.actions.setdefault(item, [])
        self.undone.pop(item, None)
        if event.action == "undo":
            if actions:
                actions.pop()
            self.undone[item] = None
            self.history.pop(item, None)
        else:
            actions.append(event)
            self.history.pop(item, None)
            self.history[item] = None
        self.answers.pop(item, None)
        self.skipped.pop(item, None)
        if actions and actions[-1].action == "answer":
            self.answers[item] = actions[-1].answer or ""
        elif actions:
            self.skipped[item] = actions[-1].id

    def sequence(self, item: str) -> int:
        """How many events this person has had on an item."""
        return self.counts.get(item, 0)

    def last(self) -> Event | None:
        """The action that undo would take back."""
        item = next(reversed(self.history), None)
        return self.actions[item][-1] if item is not None and self.actions[item] else None

    def queue(self, allowed: set[str] | None = None) -> Iterator[str]:
        """Items to show, the next one first: what was just undone, what was never seen, what was skipped."""
        while self._cursor < len(self.order) and self.order[self._cursor] in self.counts:
            self._cursor += 1
        rest = range(self._cursor, len(self.order))
        fresh = (self.order[i] for i in rest if self.order[i] not in self.counts)
        skipped = sorted((i for i in self.skipped if i not in self.undone), key=self.skipped.__getitem__)
        for item in chain(reversed(self.undone), fresh, skipped):
            if item not in self.answers and (allowed is None or item in allowed):
                yield item


@dataclass(frozen=True)
class Verdict:
    """What is decided about one item.

    Args:
        final: the answer, or None while it is open.
        decided_by: "agreement", "adjudication", "disagreement" (not settled yet) or "open" (answers are
            missing).
    """

    final: str | None
    decided_by: str


class Study:
    """A task folder with its answers.

    Args:
        folder: the task folder; the answers are kept in its ``labels.sqlite``.
        labellers: names of the people who judge independently; None takes those who answered before.
        patience: seconds to wait while another program holds the answers file.

    Raises:
        DataError: the task or the answers file cannot be used.
        InputError: a labeller's name is empty, too long, reserved or given twice.
    """

    def __init__(
        self, folder: str | os.PathLike[str], labellers: Sequence[str] | None = None, patience: float = 5.0
    ) -> None:
        self.folder = Path(folder)
        self.task: Task = read_task(self.folder)
        names = None if labellers is None else check_names(labellers)
        self.store = Store(self.folder / stores.FILE_NAME, self.task.digest, patience)
        self.items: dict[str, Item] = {item.id: item for item in self.task.items}
        self.index = {item: i for i, item in enumerate(self.items)}
        self.choices = ANSWERS[self.task.kind]
        self._lock = threading.RLock()
        self._last = 0
        self._people: dict[str, Progress] = {}
        self.labellers: list[str] = []
        self._disputed: set[str] = set()
        self.refresh()
        before = [name for name in self._people if name != ADJUDICATOR]
        self.labellers = before if names is None else names
        self.left_out = [name for name in before if name not in self.labellers]
        for item in self.items:
            self._dispute(item)

    def refresh(self) -> None:
        """Take in what was stored since the last time, by this process or another."""
        with self._lock:
            for event in self.store.since(self._last):
                self._last = event.id
                if event.item in self.items:
                    self.progress(event.person).apply(event)
                    self._dispute(event.item)

    def _dispute(self, item: str) -> None:
        """Keep the list of disagreements: one item's answers changed."""
        given = {self.progress(name).answers.get(item) for name in self.labellers}
        (self._disputed.add if len(given) > 1 and None not in given else self._disputed.discard)(item)

    def progress(self, person: str) -> Progress:
        """Where a labeller or the adjudicator stands."""
        if person not in self._people:
            self._people[person] = Progress(shuffled(person, self.items))
        return self._people[person]

    def upcoming(self, person: str, count: int = 3) -> list[Item]:
        """The item to show to a person now and those to prefetch."""
        with self._lock:
            self.refresh()
            allowed = self.disagreements() if person == ADJUDICATOR else None
            queue = self.progress(person).queue(allowed)
            return [self.items[item] for item, _ in zip(queue, range(count), strict=False)]

    def act(
        self, person: str, item: str, sequence: int, action: str, answer: str | None = None, name: str = ""
    ) -> bool:
        """Store what a person did, durably.

        Args:
            person: labeller's name or the adjudicator.
            item: id of the item; sequence: as it was when the form was made.
            action: "answer", "skip" or "undo"; answer: one of ``choices`` for "answer".
            name: what the person calls what is shown, of clusters.

        Returns:
            False when this very step was stored before (a double click, a second tab): then nothing is added.

        Raises:
            InputError: no such item or answer.
            OutOfDate: the form is from a state that does not exist any more.
            NotStored: the answers file cannot be written.
        """
        if item not in self.items:
            raise InputError("there is no such item in this task", "reload the page")
        if action not in ("answer", "skip", "undo") or (action == "answer") != (answer in self.choices):
            raise InputError(f"{answer or action!r} is no answer here", f"answer {', '.join(self.choices)}")
        with self._lock:
            self.refresh()
            progress = self.progress(person)
            if sequence < progress.sequence(item):
                return False
            if sequence > progress.sequence(item):
                raise OutOfDate("this page is out of date", "reload the page")
            if action == "undo" and not progress.actions.get(item):
                raise OutOfDate("there is nothing to undo", "go on with the item that is shown")
            if action != "undo" and item in progress.answers:
                raise OutOfDate("this item has an answer already", "undo it first")
            if action == "answer" and person == ADJUDICATOR and item not in self.disagreements():
                raise OutOfDate("the labellers no longer disagree about this item", "go on with the next one")
            called = " ".join(name.split()) if action == "answer" and self.task.kind == "clusters" else ""
            added = self.store.append(person, item, sequence, action, answer, called)
            self.refresh()
            return added

    def left(self, person: str) -> int:
        """How many items a labeller has not answered."""
        return len(self.items) - len(self.progress(person).answers)

    def answers(self) -> dict[str, dict[str, str]]:
        """Item → answer of every labeller, in the order of the task."""
        with self._lock:
            result = {}
            for name in self.labellers:
                given = self.progress(name).answers
                result[name] = {item: given[item] for item in self.items if item in given}
            return result

    def names(self) -> dict[str, dict[str, str]]:
        """What each item is called, by person, beside the answers that hold."""
        with self._lock:
            given, result = self.store.names(), {}
            for item in self.items:
                found = {}
                for person in (*self.labellers, ADJUDICATOR):
                    progress = self.progress(person)
                    if item in progress.answers:
                        found[person] = given.get((person, item, progress.actions[item][-1].sequence), "")
                result[item] = {person: name for person, name in found.items() if name}
            return result

    def agreement(self) -> list[PairAgreement]:
        """Agreement and κ of every two labellers on what both have answered so far."""
        return pairwise(self.answers())

    def disagreements(self) -> set[str]:
        """Items that every labeller has answered and not all alike, settled or not."""
        return self._disputed

    def verdicts(self) -> dict[str, Verdict]:
        """What is decided, item by item, in the order of the task."""
        with self._lock:
            answers = list(self.answers().values())
            settled = self.progress(ADJUDICATOR).answers
            result = {}
            for item in self.items:
                given = {a.get(item) for a in answers}
                if None in given or not given:
                    result[item] = Verdict(None, "open")
                elif len(given) == 1:
                    result[item] = Verdict(given.pop(), "agreement")
                elif item in settled:
                    result[item] = Verdict(settled[item], "adjudication")
                else:
                    result[item] = Verdict(None, "disagreement")
            return result

    def close(self) -> None:
        """Close the answers file."""
        self.store.close()


def shuffled(person: str, items: Iterator[str] | dict[str, Item]) -> list[str]:
    """Items in a person's own order, fixed by the name; items added later do not move the others."""
    return sorted(items, key=lambda item: digest(person, "\0", item))


def check_names(labellers: Sequence[str]) -> list[str]:
    """Labellers' names without surrounding blanks.

    Raises:
        InputError: no name, or one that is empty, longer than 60, not printable, reserved or given twice.
    """
    names = [name.strip() for name in labellers]
    if not names:
        raise InputError("no labeller was named", "give --labeller NAME, once per person")
    for name in names:
        if not name or len(name) > 60 or not name.isprintable():
            raise InputError(f"{name!r} is no labeller's name", "use 1 to 60 printable characters")
        if name.casefold() == ADJUDICATOR:
            raise InputError(f"the name {name!r} is reserved", "use another name")
    folded = [name.casefold() for name in names]
    for name, fold in zip(names, folded, strict=True):
        if folded.count(fold) > 1:
            raise InputError(f"labeller {name!r} is named twice", "give every person a name of their own")
    return names
