"""Writing a file so that it is either whole or not there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ._limits import announce


@contextmanager
def replacing(path: str | os.PathLike[str], *, lasting: bool = False) -> Iterator[Path]:
    """Give a temporary name in the folder of `path`, and move what is written there into place.

    If the body fails, or writes nothing, `path` stays as it was and no temporary file is left.
    Who watches this process removes the file when it is ended from outside.
    The name keeps the suffix of `path`, by which some writers choose their format, unless the file
    is `lasting`. A symbolic link is followed: its target is replaced, not the link.

    Args:
        path: The file.
        lasting: Have it on the disk before it is moved, so that not even a machine that loses its
            power leaves neither the old file nor the new one; and take the same temporary name
            every time, so that processes that were killed leave one file at most. Whoever asks for
            this keeps others from writing to `path` meanwhile.
    """
    final = Path(os.path.realpath(path))
    temporary = (
        temporary_of(final)
        if lasting
        else final.with_name(f".{final.stem[:100]}.{os.getpid()}.tmp{final.suffix}")
    )
    announce(unfinished=os.fspath(temporary))
    try:
        yield temporary
        if lasting:
            _to_disk(temporary)
        os.replace(temporary, final)
        if lasting:
            _to_disk(final.parent)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()
        announce(finished=os.fspath(temporary))


def temporary_of(path: Path) -> Path:
    """The name under which a lasting file is written before it is moved to `path`."""
    return path.with_name(f".{path.name}.tmp")


def _to_disk(path: Path) -> None:
    if path.is_dir() and os.name == "nt":  # where a folder cannot be opened
        return
    number = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def printable(path: str | os.PathLike[str]) -> str:
    """`path` for reports and result files: bytes that are no UTF-8 are written as escapes."""
    return os.fspath(path).encode("utf-8", "backslashreplace").decode("utf-8")
