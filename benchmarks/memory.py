"""Peak memory of a peer, in a process of its own: ``python -m benchmarks.memory JOB``.

It is measured apart from time, since a process that all peers share keeps what the greediest of
them took.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from .shapes import Job, Shape

ROOT = Path(__file__).resolve().parent.parent
POSITIONS = 8  # peers that take several at once take that many


def peak(job: Job, name: str) -> int | None:
    """Bytes that the sums take above what the process held before; None if it died."""
    what = {"shape": asdict(job.shape), "path": str(job.path), "threads": job.threads,
            "peer": name}  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", json.dumps(what)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return int(done.stdout.split()[-1]) if done.returncode == 0 else None


def main() -> None:
    from .peers import PEERS

    what = json.loads(sys.argv[1])
    job = Job(Shape(**what["shape"]), Path(what["path"]), what["threads"])
    peer = PEERS[what["peer"]](job)
    _forget_peak()
    before = _now()
    peer.seconds(max(POSITIONS // peer.multiple, 1) * peer.multiple)
    print(max(0, _peak() - before))


def _forget_peak() -> None:
    """Loading a framework and compiling may have taken more than what is measured."""
    with contextlib.suppress(OSError):  # then the peak of the whole process counts
        Path("/proc/self/clear_refs").write_text("5")


def _now() -> int:
    import psutil

    return psutil.Process().memory_info().rss


def _peak() -> int:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(x.split()[1]) for x in lines if x.startswith("VmHWM"))
    except (OSError, StopIteration):
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main()
