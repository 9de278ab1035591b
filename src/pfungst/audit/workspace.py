"""The folder an audit writes into: checked before computing, resumable, never half-written."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pydantic import BaseModel

from pfungst.audit.config import AuditConfig, joined
from pfungst.audit.result import FILE, load
from pfungst.data import Item
from pfungst.errors import ConfigError
from pfungst.files import Lock, digest, stamp, whole, write

Part = TypeVar("Part", bound=BaseModel)


class Workspace:
    """Output folder of one audit.

    Finished parts lie in ``.parts/FINGERPRINT``, so that an interrupted audit goes on where it stopped and a
    changed configuration or version never mixes with old numbers. They are removed when the result is
    complete. A result that is replaced goes before the first new number comes.

    Args:
        config: what was asked for.
        state: names the data as they are now, see :func:`data_state`.

    Raises:
        ConfigError: the folder holds a result that nobody said to replace.
        DataError: it cannot be written, or another process is writing into it.
    """

    def __init__(self, config: AuditConfig, state: str = "") -> None:
        self.folder = config.out
        refuse_old_result(config.model_copy(update={"resume": False}))  # resumed_result was asked before
        own = config.fingerprint()
        self.fingerprint = joined(own, state) if state else own
        self._lock = Lock(self.folder / ".lock", str(self.folder))
        self._all_parts = self.folder / ".parts"
        self._parts = self._all_parts / own
        for old in (FILE, "report.html") if config.overwrite else ():
            (self.folder / old).unlink(missing_ok=True)
        if not config.resume:
            shutil.rmtree(self._all_parts, ignore_errors=True)
        self._parts.mkdir(parents=True, exist_ok=True)
        self.resumed = 0

    def __getstate__(self) -> dict[str, Any]:
        """For a process that works for this one, which holds the lock."""
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def load_part(self, name: str, kind: type[Part]) -> Part | None:
        """A finished part of the interrupted run; None unless it and the files it names are as written."""
        try:
            head, _, text = (self._parts / f"{slug(name)}.json").read_text(encoding="utf-8").partition("\n")
            known = json.loads(head)
            if known["part"] != digest(text) or known["files"] != self._files(json.loads(text)):
                return None
            part = kind.model_validate_json(text)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        self.resumed += 1
        return part

    def save_part(self, name: str, part: BaseModel) -> None:
        """Keep a finished part, with digests; call it after the part's arrays and pictures are written."""
        text = part.model_dump_json()
        head = json.dumps({"part": digest(text), "files": self._files(json.loads(text))})
        write(self._parts / f"{slug(name)}.json", f"{head}\n{text}")

    def _files(self, content: Any) -> dict[str, str]:
        """The digests of the files in this folder that a part names."""
        if isinstance(content, str):
            named = content.startswith(("arrays/", "images/")) and (self.folder / content).is_file()
            return {content: digest((self.folder / content).read_bytes())} if named else {}
        values = content.values() if isinstance(content, dict) else content
        found = map(self._files, values) if isinstance(content, dict | list) else ()
        return {file: known for files in found for file, known in files.items()}

    def working(self, name: str) -> Path:
        """A place for unfinished work of one part that has its own way to go on."""
        return self._parts / slug(name)

    def save_arrays(self, name: str, arrays: dict[str, np.ndarray]) -> str:
        """Write arrays to ``arrays/NAME.npz``; returns the path relative to the folder."""
        target = self.folder / "arrays" / f"{slug(name)}.npz"
        with whole(target) as part, part.open("wb") as stream:
            np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
        return target.relative_to(self.folder).as_posix()

    def finish(self, keep_arrays: set[str]) -> None:
        """Remove the parts, and arrays of an earlier result in this folder."""
        shutil.rmtree(self._all_parts, ignore_errors=True)
        for file in (self.folder / "arrays").glob("*.npz"):
            if file.relative_to(self.folder).as_posix() not in keep_arrays:
                file.unlink()
        self._lock.release()


def refuse_old_result(config: AuditConfig) -> None:
    """Raise ConfigError where the output folder holds a result that nobody said to replace."""
    if (config.out / FILE).exists() and not (config.overwrite or config.resume):
        raise ConfigError(
            f"{config.out} already holds a result", "choose another --out, or pass --overwrite to replace it"
        )


def resumed_result(config: AuditConfig, state: str) -> Any:
    """The result that is to be resumed, where it is finished: there is nothing to do then; else None.

    Raises:
        ConfigError: it was computed with other options, from other data or by another version.
    """
    if not config.resume or config.overwrite or not (config.out / FILE).exists():
        return None
    result = load(config.out)
    if result.inputs != config.fingerprint(state):
        raise ConfigError(
            f"{config.out} holds a finished result, of other options, other data or another version of "
            "Pfungst",
            "choose another --out, or pass --overwrite to replace it",
        )
    with Lock(config.out / ".lock", str(config.out)):  # what a run leaves that was killed at its very end
        shutil.rmtree(config.out / ".parts", ignore_errors=True)
    return result


def data_state(items: Iterable[Item], *folders: Path | None) -> str:
    """Names items, and the files they lie in, as they are now; made images follow from the configuration.

    Args:
        items: of all sets.
        folders: further files that the numbers depend on, with all below them.
    """
    found: list[Any] = []
    for item in items:
        sources = [getattr(source, "file", source) for source in (item.image, item.mask)]  # cells of Parquet
        stamps = [digest(s) if isinstance(s, bytes) else _stamp(s) for s in sources if s is not None]
        found.append([item.id, item.split, item.label, item.groups, stamps])
    for folder in filter(None, folders):
        found += [[str(file), _stamp(file)] for file in sorted(folder.rglob("*"))]
    return digest(json.dumps(found, sort_keys=True), length=24)


def _stamp(source: Any) -> str:
    try:
        return f"{os.path.abspath(source)}:{stamp(source)}" if isinstance(source, Path) else ""
    except (OSError, ValueError):
        return ""  # what cannot be read is found later


def slug(name: str) -> str:
    """A file name for any text; different texts stay different."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:80]
    return plain if plain == name else f"{plain}-{digest(name, length=8)}"
