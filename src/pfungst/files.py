"""Files: written whole or not at all, read with damage named, locked, known by their content."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from pfungst.errors import DataError, PfungstError

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

try:
    import fcntl
except ImportError:  # Windows, where nothing is locked
    fcntl = None  # type: ignore[assignment]

Pathlike = str | os.PathLike[str]

MAX_BYTES = 2**31
"""Largest file that is read into memory at once; a sparse one may claim any size."""

PICTURES = frozenset(
    (".png", ".jpg", ".jpeg", ".jpe", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
)
DICOM = frozenset((".dcm", ".dicom", ".ima"))
HEIF = frozenset((".heic", ".heif", ".avif"))
"""File name endings, in lower case."""

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
"""What an image may hold, whatever its name says: Pillow would also hand PostScript to an interpreter."""


# --- writing ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def whole(path: Pathlike) -> Iterator[Path]:
    """A temporary path in the same folder; becomes `path` when the block ends well, else disappears.

    The block writes a file there, or makes a folder. Whoever reads `path` finds the old one or the new one,
    also after a kill or a power cut (of folders, between two renames, neither: the old one then ends in
    ``.part``). Missing parents are made.

    Raises:
        DataError: the disk is full or cannot be written.
    """
    path = Path(path)
    if path.exists() and not (path.is_file() or path.is_dir()):  # a rename would replace it
        raise DataError(f"{path} is a device or a pipe", "name a file")
    part, old = (path.with_name(f"{path.name}.{secrets.token_hex(4)}.part") for _ in range(2))
    with writing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield part
            if part.is_dir():
                if path.exists():
                    path.replace(old)
                part.replace(path)
                shutil.rmtree(old, ignore_errors=True)
                return
            with open(part, "rb+") as stream:
                os.fsync(stream.fileno())
            part.replace(path)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def writing(path: Pathlike) -> Iterator[None]:
    """Turn what the operating system says of writing `path` into DataErrors."""
    try:
        yield
    except BaseException as error:
        if disk_is_full(error):
            raise DataError(
                f"the disk is full: {path} could not be written",
                "free some space and run the same command again; finished parts are kept",
            ) from None
        if isinstance(error, OSError) or type(error).__name__ == "SafetensorError":
            reason = getattr(error, "strerror", None) or str(error)
            raise DataError(
                f"{path} cannot be written: {reason}", "make the folder writable or choose another"
            ) from None
        raise


def disk_is_full(error: BaseException) -> bool:
    """Whether an error says that there is no room, also in the words of a library."""
    text = str(error)
    return (
        getattr(error, "errno", None) in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
        or "No space left" in text
    )


def write(path: Pathlike, content: str | bytes) -> None:
    """Write a text (UTF-8) or bytes, whole or not at all."""
    with whole(path) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(
    path: Pathlike, content: Any, indent: int | None = 1, default: Callable[[Any], Any] | None = None
) -> None:
    """Write JSON, whole or not at all; arguments as for ``json.dumps``."""
    write(path, json.dumps(content, ensure_ascii=False, indent=indent, default=default) + "\n")


def write_tensors(path: Pathlike, tensors: Mapping[str, Tensor], **metadata: str) -> None:
    """Write tensors as safetensors, whole or not at all; those that share memory are written separately."""
    from safetensors.torch import save_file

    seen: set[int] = set()
    own = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        place = tensor.untyped_storage().data_ptr()
        own[name] = tensor.clone() if place in seen else tensor
        seen.add(place)
    with whole(path) as part:
        save_file(own, str(part), metadata=metadata or None)


def remove_leftovers(folder: Pathlike) -> None:
    """Delete temporary files of processes that were killed; only under a :class:`Lock`."""
    for part in Path(folder).rglob("*.part"):
        shutil.rmtree(part) if part.is_dir() else part.unlink(missing_ok=True)


# --- reading ---------------------------------------------------------------------------------------------


def content(path: Pathlike) -> bytes:
    """All bytes of a file.

    Raises:
        OSError: there is none, or it is a pipe or a device, or larger than ``MAX_BYTES``.
    """
    with open(path, "rb", opener=lambda p, flags: os.open(p, flags | getattr(os, "O_NONBLOCK", 0))) as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", str(path))
        if found.st_size > MAX_BYTES:
            large = f"{found.st_size:,} bytes are more than the limit of {MAX_BYTES:,}"
            raise OSError(errno.EFBIG, large, str(path))
        return file.read()


_COMPRESSED = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ": "unxz", b"\x28\xb5\x2f\xfd": "unzstd"}


def tar_members(path: Pathlike) -> Iterator[tuple[str, int, int]]:
    """(name, first byte, bytes) of each file in an uncompressed tar archive, in its order, unread.

    Raises:
        DataError: it is missing, compressed, damaged or cut off, or a member is a link or sparse, so that its
            bytes do not lie there.
    """
    import tarfile

    with reading(path, "make or download the archive again"):
        with open(path, "rb") as file:
            head = file.read(6)
        if tool := next((tool for magic, tool in _COMPRESSED.items() if head.startswith(magic)), None):
            raise DataError(
                f"{path} is compressed, so that nothing in it can be read by its place",
                f"decompress it: {tool} {path}",
            )
        with tarfile.open(path, "r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # of a million members a gigabyte
                if member.issparse() or member.islnk() or member.issym():
                    kind = "sparse" if member.issparse() else "a link"
                    raise DataError(f"{path}: {member.name} is {kind}", "write the archive with whole files")
                if member.isfile():
                    yield member.name, member.offset_data, member.size
            # tarfile takes any end for the end: an archive that was cut between two members lacks its mark.
            tar.fileobj.seek(tar.offset)
            if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise DataError(
                    f"{path} is cut off or damaged: the mark of its end is missing",
                    "make or download the archive again",
                )


def open_picture(source: Pathlike | IO[bytes]) -> Image.Image:
    """An image whose header is read, of one of ``FORMATS``: the one call of Pillow's ``Image.open``."""
    from PIL import Image

    return Image.open(source, formats=FORMATS)


@contextlib.contextmanager
def reading(path: Pathlike, remedy: str, error: type[PfungstError] = DataError) -> Iterator[None]:
    """Raise `error`, naming file and remedy, for whatever a missing or damaged file makes a reader raise."""
    try:
        yield
    except (PfungstError, ImportError):
        raise
    except Exception as cause:  # parsers of damaged files raise almost anything, also MemoryError
        reason = getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
        reason = f"it holds no {reason}" if isinstance(cause, KeyError) else reason
        raise error(f"{path} cannot be read: {reason}", remedy) from None


def read(
    path: Pathlike, remedy: str, error: type[PfungstError] = DataError, format: str | None = None
) -> Any:
    """The content of a file, by its suffix; never a pickle.

    Args:
        path: ``.npz``: arrays by name; ``.npy``: one array, memory-mapped; ``.safetensors``: tensors by name;
            ``.parquet``: an Arrow table; any other: JSON.
        remedy: what to do when it is missing or damaged.
        error: what to raise then.
        format: what a JSON object must say under "format".

    Raises:
        error: the file is missing, damaged or of another format; it is named.
    """
    path = Path(path)
    with reading(path, remedy, error):
        if path.suffix == ".parquet":
            import pyarrow.parquet as pq

            return pq.read_table(path)
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        if path.suffix in (".npy", ".npz"):
            import numpy as np

            if path.suffix == ".npy":
                return np.load(path, mmap_mode="r", allow_pickle=False)
            with np.load(path, allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        value = json.loads(content(path))
    found = value.get("format") if isinstance(value, dict) else None
    if format is not None and found != format:
        raise error(f"{path} has format {found!r}, not {format!r}", remedy)
    return value


# --- one process at a time -------------------------------------------------------------------------------


class Lock:
    """Keeps other processes out, from construction to :meth:`release`, the block's or the process's end.

    The system holds it (POSIX record lock), so that of a killed process is free at once. Threads and later
    calls of the same process are let in.

    Args:
        path: a file made for this purpose, removed on release.
        what: what is locked, for the message.

    Raises:
        DataError: another process holds it, or the file cannot be made.
    """

    def __init__(self, path: Pathlike, what: str) -> None:
        self.path = Path(path)
        while True:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = open(self.path, "a+b")  # noqa: SIM115
            except OSError as error:
                raise DataError(
                    f"{self.path} cannot be written: {error.strerror}", "make the folder writable"
                ) from None
            if not _take(self._file):
                self._file.seek(0)
                holder = self._file.read(20).decode(errors="replace") or "unknown"
                self._file.close()
                raise DataError(
                    f"{what} is in use by another process (number {holder})", "wait for it, or end it"
                )
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(self._file.fileno()), self.path.stat()):
                    break
            self._file.close()  # its former holder removed the file just before it was locked here
        self._file.truncate(0)
        self._file.write(str(os.getpid()).encode())
        self._file.flush()

    def release(self) -> None:
        """Let others in."""
        if not self._file.closed:
            self.path.unlink(missing_ok=True)
            self._file.close()

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()


def _take(file: IO[bytes]) -> bool:
    try:
        if fcntl is not None:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            raise
    return True  # also on file systems that know no locks


# --- digests ---------------------------------------------------------------------------------------------


def digest(*parts: Any, length: int = 64) -> str:
    """SHA-256 of texts, bytes and tensors one after another, as `length` hexadecimal digits.

    Tensors count by their values only: add shape and dtype as a text where they matter.
    """
    state = hashlib.sha256()
    for part in parts:
        if hasattr(part, "detach"):
            import torch

            part = part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        state.update(part.encode() if isinstance(part, str) else part)
    return state.hexdigest()[:length]


def stamp(path: Pathlike) -> str:
    """What a file that stayed the same keeps: its size, and when it was last written and last put in place.

    The second time also tells of a file that another one replaced with its old first time, as archives do.

    Raises:
        OSError: there is no such file.
    """
    found = os.stat(path)
    return f"{found.st_size}:{found.st_mtime_ns}:{found.st_ctime_ns}"


def seal(path: Pathlike) -> str:
    """Size and SHA-256 of a file's content.

    Raises:
        OSError: there is no such file.
    """
    with open(path, "rb") as file:
        return f"{os.fstat(file.fileno()).st_size}:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def mixed(text: str) -> int:
    """A number below 2⁶⁴ that looks random and depends on the text alone: for seeds and unbiased orders."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
