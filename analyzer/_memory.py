"""How much memory there is, and the refusal of what needs more."""

from __future__ import annotations

from pathlib import Path

import psutil

from .errors import ResourceError

_CONTROL = Path("/sys/fs/cgroup")


def available() -> int:
    """Bytes that this process may still take: of the machine, or of its control group."""
    free = int(psutil.virtual_memory().available)
    try:
        limit = int((_CONTROL / "memory.max").read_text())
        used = int((_CONTROL / "memory.current").read_text())
        # The cache of files counts as used and is given up when memory runs short.
        stat = dict(line.split() for line in (_CONTROL / "memory.stat").read_text().splitlines())
        return max(0, min(free, limit - used + int(stat.get("inactive_file", 0))))
    except (OSError, ValueError):  # no control groups, or no limit ("max")
        return free


def allowed(memory: int | None = None) -> int:
    """Bytes that a run may take: `memory`, or 80 % of what is free."""
    return int(available() * 0.8) if memory is None else memory


def require(need: int, budget: int, what: str, advice: str) -> None:
    """Refuse what does not fit.

    Raises:
        ResourceError: `what` needs more than `budget`, with both numbers and the `advice`.
    """
    if need > budget:
        raise ResourceError(
            f"{what} would need about {shown(need)} of memory, and {shown(budget)} may be used. "
            f"{advice}"
        )


def shown(size: int) -> str:
    """Bytes in units that a reader grasps."""
    for unit, name in ((2**50, "PiB"), (2**40, "TiB"), (2**30, "GiB")):
        if size >= unit:
            return f"{size / unit:,.1f} {name}"
    return f"{size // 2**20} MiB" if size >= 2**20 else f"{-(-size // 2**10)} KiB"
