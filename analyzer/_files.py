"""Writing a file so that it is either whole or not there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ._limits import announce


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary name in the folder of `path`, and move what is written there into place.

    If the body fails, or writes nothing, `path` stays as it was and no temporary file is left.
    Who watches this process removes the file when it is ended from outside.
    The name keeps the suffix of `path`, by which some writers choose their format. A symbolic
    link is followed: its target is replaced, not the link.
    """
    final = Path(os.path.realpath(path))
    temporary = final.with_name(f".{final.stem[:100]}.{os.getpid()}.tmp{final.suffix}")
    announce(unfinished=os.fspath(temporary))
    try:
        yield temporary
        os.replace(temporary, final)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()
        announce(finished=os.fspath(temporary))


def printable(path: str | os.PathLike[str]) -> str:
    """`path` for reports and result files: bytes that are no UTF-8 are written as escapes."""
    return os.fspath(path).encode("utf-8", "backslashreplace").decode("utf-8")
