"""Work that a damaged file can make endless, announced to whoever watches this process.

Native libraries cannot be interrupted from Python, so that a limit has to be kept from outside:
the commands run in a watched process. Where nobody watches, as in a program of one's own, an
announcement does nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

SECONDS = 60.0  # of processor time for one piece of work; a usual model takes below one
_BYTES_PER_SECOND = 2**24  # and what a large file may take longer: a tenth of a slow disk

_watcher: Callable[[float, str], None] | None = None
_inside = False


def watch_with(watcher: Callable[[float, str], None] | None) -> None:
    """Tell `watcher` from now on: seconds and what for as work begins, 0 and nothing at its end."""
    global _watcher
    _watcher = watcher


@contextmanager
def limited(what: str, size: int = 0) -> Iterator[None]:
    """Announce work that must end; inside other such work nothing is announced.

    Args:
        what: As a sentence goes on: "opening the model".
        size: Bytes of the file that is worked on.
    """
    global _inside
    if _watcher is None or _inside:
        yield
        return
    _inside = True
    _watcher(SECONDS + size / _BYTES_PER_SECOND, what)
    try:
        yield
    finally:
        _inside = False
        _watcher(0.0, "")
