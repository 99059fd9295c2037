"""How much memory there is, and the refusal of what needs more."""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Callable
from pathlib import Path

import psutil

from .errors import ResourceError

VARIABLE = "MNEMOSCOPE_MEMORY"
"""Environment variable: gigabytes that a command may take, where that is less than is free."""

_CONTROL = Path("/sys/fs/cgroup")


def available() -> int:
    """Bytes that this process may take: of the machine, its control group, or as `VARIABLE` says.

    Raises:
        ResourceError: `VARIABLE` holds no number above 0.
    """
    return int(min(_free(), _set_from_outside()))


def _set_from_outside() -> int | float:
    given = os.environ.get(VARIABLE)
    if not given:
        return math.inf
    try:
        size = int(float(given) * 1e9)
    except (ValueError, OverflowError):
        size = 0
    if size < 1:
        raise ResourceError(
            f"The environment variable {VARIABLE} must be a number of gigabytes above 0, such as "
            f"4; it is {given!r:.40}."
        )
    return size


def _free() -> int:
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


def holds(folder: str | os.PathLike[str]) -> bool:
    """Whether files of a folder lie in memory, as those of Linux's tmpfs do."""
    path = Path(folder).resolve()
    try:
        kinds = {m.mountpoint: m.fstype for m in psutil.disk_partitions(all=True)}
    except (OSError, RuntimeError, psutil.Error):  # what is mounted cannot be told
        return False
    here = next((kinds[str(p)] for p in (path, *path.parents) if str(p) in kinds), "")
    return here in ("tmpfs", "ramfs")


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


def of_card(load: Callable[[str], ctypes.CDLL] = ctypes.CDLL) -> int:
    """Bytes that are free on the first CUDA device.

    NVIDIA's driver says it, which is there wherever a device is; ONNX Runtime does not.

    Args:
        load: Opens a library.

    Raises:
        ResourceError: It cannot be found out.
    """
    device, context = ctypes.c_int(), ctypes.c_void_p()
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    try:
        driver = load("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
        calls: list[tuple[str, tuple]] = [
            ("cuInit", (0,)),
            ("cuDeviceGet", (ctypes.byref(device), 0)),
            ("cuDevicePrimaryCtxRetain", (ctypes.byref(context), device)),
            ("cuCtxPushCurrent_v2", (context,)),
            ("cuMemGetInfo_v2", (ctypes.byref(free), ctypes.byref(total))),
            ("cuCtxPopCurrent_v2", (ctypes.byref(context),)),
            ("cuDevicePrimaryCtxRelease_v2", (device,)),
        ]
        for name, arguments in calls:
            status = getattr(driver, name)(*arguments)
            if status:
                raise OSError(f"{name} gives status {status}")
    except (OSError, AttributeError) as error:
        raise ResourceError(
            f"How much memory the GPU has free cannot be found out: {error}. Say how many streams "
            "to run side by side with --streams."
        ) from error
    return free.value
