"""How finely an engine works, found out by trying on the machine at hand, and kept.

Formulas say what suits most machines (`_stream_count.py`, `linearize/_step.py`). Where a run is
long enough to be worth it, a few other numbers of threads, chunks and streams are tried for a
fraction of a second each. What is clearly faster is taken, and kept in a file, so that the next run
of such a model is not only spared the trials: it gives the same bits.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import platformdirs

from ._files import printable, replacing
from ._identity import hashed, versions
from ._job import Job
from ._pipeline import processors

FOLDER = "MNEMOSCOPE_CACHE"
"""Environment variable: the folder of the file, where that of the system is not wanted."""

_SECONDS = 0.25  # that a trial measures, once every delay has its input
_FIXED = 0.5  # seconds that it takes besides
_SHARE = 0.05  # of a run that trials may take
_CLEARLY = 0.9  # of the time that the usual choice takes
_RATE, _CALL = 3e10, 1e-4  # of a modest machine: operations a second, seconds of a step besides
_MOST = 2**20  # bytes of the file


@dataclass(frozen=True)
class Choice:
    """How the positions of a plan are followed.

    Attributes:
        rows: By rows of the states instead of columns of the embedding.
        streams: Shards side by side; 0 where it is one, by the engines for one.
        threads: On the CPU.
        chunk: Positions linearised in one call, by the engines for one.
    """

    rows: bool
    streams: int
    threads: int
    chunk: int


@dataclass(frozen=True)
class Trial:
    """What may be tried.

    Attributes:
        job: Makes ready to follow so many positions in each stream.
        threads: Numbers of threads, the usual one first.
        chunks: Positions of a chunk, the usual number first.
        streams: Numbers of streams, the usual one first.
    """

    job: Callable[[Choice, int], Job]
    threads: list[int]
    chunks: list[int]
    streams: list[int]

    @property
    def number(self) -> int:
        """How many are tried at most."""
        return len(self.threads) + len(self.chunks) + len(self.streams) - 2

    def seconds(self, choice: Choice, delays: int) -> float | None:
        """Of one position; None where the corpus is too short to tell."""
        job = self.job(choice, 20 * delays)
        began, first, now, done = 0.0, 0, 0.0, 0
        steps = job.side_by_side(job.shards, job.carrier())
        try:
            for done in steps:
                now = time.perf_counter()
                if not first:
                    if done >= delays * len(job.shards):
                        began, first = now, done
                elif now - began >= _SECONDS:
                    break
        finally:
            steps.close()
        return (now - began) / (done - first) if first and done > first else None


class Calibration:
    """The choices that were found on this machine.

    Args:
        say: Takes a line about what was found.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say

    def best(
        self,
        trial: Trial,
        usual: Choice,
        *,
        work: float,
        positions: int,
        delays: int,
        key: dict[str, Any],
    ) -> Choice | None:
        """The fastest choice; None where there is none to make, or no time to find out.

        Args:
            trial: What may be tried.
            usual: The choice of the formulas.
            work: Multiplications and additions of one position.
            positions: That the run follows.
            delays: How many, 0 included.
            key: What the speed of the model depends on.
        """
        position = work / _RATE + _CALL
        # Until every delay has its input a position costs half of what it does afterwards.
        cost = trial.number * (_FIXED + _SECONDS + position * delays / 2)
        if trial.number < 2 or cost > _SHARE * positions * position:
            return None
        tried = {"threads": trial.threads, "chunks": trial.chunks, "streams": trial.streams}
        whole = {**key, **tried, "machine": _machine(), "versions": versions()}
        name, kept = hashed(json.dumps(whole, sort_keys=True)), _read(_path())
        if (found := _choice(kept.get(name), trial, usual)) is not None:
            self._tell("as found before", found, usual)
            return found
        found = self._found(trial, usual, delays)
        # Another run may find something else, and round otherwise: what is not kept is not used.
        return found if found is not None and self._keep(name, found) else None

    def _found(self, trial: Trial, usual: Choice, delays: int) -> Choice | None:
        """Try one thing after another, each with the best of those before it."""
        best, least = usual, trial.seconds(usual, delays)
        if least is None:
            return None
        before = least
        for name in ("threads", "chunk", "streams"):
            values = getattr(trial, name if name != "chunk" else "chunks")
            for value in values[1:]:
                other = replace(best, **{name: value})
                # A stream of a few threads may be beaten by many streams of all of them.
                if name == "streams" and value:
                    other = replace(other, threads=usual.threads)
                seconds = trial.seconds(other, delays)
                if seconds is not None and seconds < _CLEARLY * least:
                    best, least = other, seconds
        times = f"{least * 1e3:.2g} ms a position"
        if best != usual:
            times += f" instead of {before * 1e3:.2g}"
        self._tell(f"tried on this machine, {times}", best, usual)
        return best

    def _tell(self, how: str, found: Choice, usual: Choice) -> None:
        shown = f"{found.threads} thread{'s' * (found.threads > 1)}"
        if found.streams:
            shown += f", {found.streams} streams"
        else:
            shown += f", {found.chunk} position{'s' * (found.chunk > 1)} a call"
        same = ", as usual" if found == usual else ""
        self._say(f"Calibration ({how}): {shown}{same}.")

    def _keep(self, name: str, found: Choice) -> bool:
        path = _path()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            kept = {**_read(path), name: asdict(found)}
            with replacing(path) as temporary:
                temporary.write_text(json.dumps(kept, indent=1), encoding="utf-8")
        except OSError as error:
            self._say(
                f"The calibration cannot be kept in {printable(path)}, so it is not used: "
                f"{error.strerror or error}. Set {FOLDER} to a folder that can be written, or give "
                "--threads, --chunk and --streams, or --no-calibrate."
            )
            return False
        return True


def _path() -> Path:
    folder = os.environ.get(FOLDER)
    return (
        Path(folder) if folder else platformdirs.user_cache_path("mnemoscope")
    ) / "calibration.json"


def _read(path: Path) -> dict[str, Any]:
    """What is kept; nothing where it cannot be read, since it can be found again."""
    try:
        with path.open("rb") as file:
            data = file.read(_MOST + 1)
        found = json.loads(data) if len(data) <= _MOST else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _choice(entry: Any, trial: Trial, usual: Choice) -> Choice | None:
    """An entry of the file, if it is one of the choices that there are."""
    if not isinstance(entry, dict):
        return None
    known: Iterable[tuple[str, list[int]]] = (
        ("threads", trial.threads), ("chunk", trial.chunks), ("streams", trial.streams),
    )  # fmt: skip
    if any(type(entry.get(n)) is not int or entry[n] not in values for n, values in known):
        return None
    return replace(usual, **{n: entry[n] for n, _ in known})


def _machine() -> str:
    """The processor's name, and how many a process may use."""
    name = platform.processor() or platform.machine()
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as file:
            lines = (line.partition(":") for line in file)
            name = next((v.strip() for k, _, v in lines if k.strip() == "model name"), name)
    except OSError:  # no Linux
        pass
    return f"{name}, {processors()}"
