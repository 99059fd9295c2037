"""Work that a damaged file can make endless, and unfinished files, announced to who watches.

Native libraries cannot be interrupted from Python, so that a limit has to be kept from outside:
the commands run in a watched process. What that process was writing when it was ended has to be
removed from outside as well. Where nobody watches, as in a program of one's own, an announcement
does nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

SECONDS = 60.0  # of processor time for one piece of work; a usual model takes below one
_BYTES_PER_SECOND = 2**24  # and what a large file may take longer: a tenth of a slow disk

Watcher = Callable[[dict[str, Any]], None]

_watcher: Watcher | None = None
_inside = False


def watch_with(watcher: Watcher | None) -> None:
    """Tell `watcher` from now on what is done.

    Announced are ``{"limit": seconds, "what": work}`` as work begins, with 0 seconds at its end,
    ``{"unfinished": path}`` before a file is written under a temporary name, with
    ``{"finished": path}`` when that name is gone, and ``{"interrupted": True}`` when a SIGINT has
    come after which the work goes on to its next checkpoint.
    """
    global _watcher
    _watcher = watcher


def announce(**news: Any) -> None:
    """Tell the watcher, if there is one."""
    if _watcher is not None:
        _watcher(news)


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
    announce(limit=SECONDS + size / _BYTES_PER_SECOND, what=what)
    try:
        yield
    finally:
        _inside = False
        announce(limit=0.0, what="")
