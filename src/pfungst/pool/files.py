"""Writing and locking of pool files: a file is there whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from pfungst.errors import DataError


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary path that becomes ``path`` when the block ends well, and disappears otherwise.

    Raises:
        DataError: the disk is full or cannot be written.
    """
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        with open(part, "rb") as stream:
            os.fsync(stream.fileno())
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error):
            raise DataError(
                f"the disk is full: {path} could not be written",
                "free some space and run the same command again; finished parts are kept",
            ) from None
        raise DataError(f"{path} could not be written: {error}", "make the folder writable") from None
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def remove_leftovers(folder: Path) -> None:
    """Delete temporary files of processes that were killed; only while no other process writes there."""
    for part in folder.rglob("*.part"):
        part.unlink(missing_ok=True)
