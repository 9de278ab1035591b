"""The folder an audit writes into: checked before computing, resumable, never half-written."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import TypeVar

import numpy as np
from pydantic import BaseModel, ValidationError

from pfungst.audit.config import AuditConfig
from pfungst.audit.result import FILE
from pfungst.errors import ConfigError
from pfungst.files import Lock, digest, whole, write

Part = TypeVar("Part", bound=BaseModel)


class Workspace:
    """Output folder of one audit.

    Finished parts lie in ``.parts/FINGERPRINT``, so that an interrupted audit goes on where it stopped and a
    changed configuration never mixes with old numbers. They are removed when the result is complete.

    Raises:
        ConfigError: the folder holds a result that nobody said to replace.
        DataError: it cannot be written, or another process is writing into it.
    """

    def __init__(self, config: AuditConfig) -> None:
        self.folder = config.out
        refuse_old_result(config)
        self._lock = Lock(self.folder / ".lock", str(self.folder))
        self._all_parts = self.folder / ".parts"
        self._parts = self._all_parts / config.fingerprint()
        if not config.resume:
            shutil.rmtree(self._all_parts, ignore_errors=True)
        self._parts.mkdir(parents=True, exist_ok=True)
        self.resumed = 0

    def load_part(self, name: str, kind: type[Part]) -> Part | None:
        """A finished part of the interrupted run, or None."""
        try:
            part = kind.model_validate_json((self._parts / f"{slug(name)}.json").read_bytes())
        except (FileNotFoundError, ValidationError):
            return None
        self.resumed += 1
        return part

    def save_part(self, name: str, part: BaseModel) -> None:
        """Keep a finished part; call it after the part's arrays are written."""
        write(self._parts / f"{slug(name)}.json", part.model_dump_json())

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


def slug(name: str) -> str:
    """A file name for any text; different texts stay different."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:80]
    return plain if plain == name else f"{plain}-{digest(name, length=8)}"
