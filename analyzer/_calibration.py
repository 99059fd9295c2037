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
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import platformdirs
from filelock import FileLock

from ._files import printable, replacing
from ._identity import hashed, versions
from ._pipeline import processors

FOLDER = "MNEMOSCOPE_CACHE"
"""Environment variable: the folder of the file, where that of the system is not wanted."""

SECONDS = 0.25
"""That a trial measures, once every delay has its input."""

_FIXED = 0.5  # seconds that it takes besides
_SHARE = 0.05  # of a run that trials may take
_CLEARLY = 0.9  # of the time that the usual choice takes
_RATE, _CALL = 5e11, 5e-5  # of a fast machine: operations a second, seconds of a step besides
_PATIENCE = 60  # seconds that a run waits for another that is trying
_MOST, _ENTRIES = 2**20, 1000  # bytes of the file, and what is kept in it


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
class Candidates:
    """What may be tried for each part of a choice, the usual value first."""

    streams: list[int]
    threads: list[int]
    chunk: list[int]

    @property
    def number(self) -> int:
        """How many there are besides the usual choice."""
        return sum(len(v) - 1 for v in self.parts.values())

    @property
    def parts(self) -> dict[str, list[int]]:
        """Name of the part → values."""
        return {"streams": self.streams, "threads": self.threads, "chunk": self.chunk}


class Calibration:
    """The search for what is fastest on this machine.

    Args:
        trial: Seconds that a choice takes for a position of the run; None where it cannot be told.
        fits: Whether a choice stays within the memory that the run may take.
        say: Takes a line about what was found.
    """

    def __init__(
        self,
        trial: Callable[[Choice], float | None],
        fits: Callable[[Choice], bool],
        say: Callable[[str], None],
    ) -> None:
        self._trial, self._fits, self._say = trial, fits, say
        self._seconds: dict[Choice, float] = {}

    def best(self, usual: Choice, candidates: Candidates, key: dict[str, Any]) -> Choice | None:
        """The fastest choice; None where it cannot be found out, or not be kept.

        Args:
            usual: The choice of the formulas.
            candidates: What else there is.
            key: What the speed of the model depends on.
        """
        machine = {"machine": _machine(), "scipy": version("scipy"), **versions()}
        name = hashed(json.dumps({**key, **candidates.parts, **machine}, sort_keys=True))
        path = _path()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Runs that try at the same time would time each other, and keep different things.
            with FileLock(f"{path}.lock", timeout=_PATIENCE):
                kept = _read(path)
                found = _choice(kept.get(name), candidates, usual)
                if found is not None and self._fits(found):
                    self._tell("as found before", found, usual)
                    return found
                if (found := self._found(usual, candidates)) is None:
                    return None
                kept[name] = asdict(found)
                with replacing(path) as temporary:
                    text = json.dumps(dict(list(kept.items())[-_ENTRIES:]), indent=1)
                    temporary.write_text(text, encoding="utf-8")
                return found
        except OSError as error:  # a lock that is not free is one of them
            # Another run may find something else, and round otherwise: what is not kept is not
            # used.
            self._say(
                f"No calibration: it cannot be kept in {printable(path)} "
                f"({error.strerror or error}). Set {FOLDER} to a folder that can be written, or "
                "give --threads, --chunk and --streams, or --no-calibrate."
            )
            return None

    def _found(self, usual: Choice, candidates: Candidates) -> Choice | None:
        """Try one thing after another, each with the best of those before it."""
        number = candidates.number + 1
        self._say(f"Calibration: trying up to {number} ways to follow this model on this machine.")
        if self._time(usual) is None:
            self._say("Calibration: the corpus is too short to tell them apart.")
            return None
        best = usual
        for name, values in candidates.parts.items():
            if name == "chunk" and best.streams:
                continue  # which then means nothing
            for value in values[1:]:
                part: dict[str, Any] = {name: value}
                other = replace(best, **part)
                if self._fits(other) and self._time(other) is not None:
                    best = self._faster(other, best)
        if best != usual:  # once more, since what came first ran on a cold machine
            self._time(usual)
            self._time(best)
            best = self._faster(best, usual)
        times = f"{self._seconds[best] * 1e3:.2g} ms a position"
        if best != usual:
            times += f" instead of {self._seconds[usual] * 1e3:.2g}"
        self._tell(f"tried on this machine, {times}", best, usual)
        return best

    def _time(self, choice: Choice) -> float | None:
        seconds = self._trial(choice)
        if seconds is not None:
            self._seconds[choice] = min(seconds, self._seconds.get(choice, seconds))
        return seconds

    def _faster(self, other: Choice, best: Choice) -> Choice:
        return other if self._seconds[other] < _CLEARLY * self._seconds[best] else best

    def _tell(self, how: str, found: Choice, usual: Choice) -> None:
        shown = f"{found.threads} thread{'s' * (found.threads > 1)}"
        if found.streams:
            shown += f", {found.streams} streams"
        else:
            shown += f", {found.chunk} position{'s' * (found.chunk > 1)} a call"
        same = ", as usual" if found == usual else ""
        self._say(f"Calibration ({how}): {shown}{same}.")


def worth_it(work: float, positions: int, delays: int, trials: int) -> bool:
    """Whether trials take a small part of a run, even of one on a fast machine.

    Args:
        work: Multiplications and additions of one position.
        positions: That are followed.
        delays: How many, 0 included.
        trials: How many.
    """
    position = work / _RATE + _CALL
    # Until every delay has its input a position costs half of what it does afterwards.
    return trials * (_FIXED + SECONDS + position * delays / 2) <= _SHARE * positions * position


def _path() -> Path:
    folder = os.environ.get(FOLDER)
    return (
        Path(folder) if folder else platformdirs.user_cache_path("mnemoscope")
    ) / "calibration.json"


def _read(path: Path) -> dict[str, Any]:
    """What is kept; nothing where there is no file, or a damaged one.

    Raises:
        OSError: It is there and cannot be read.
    """
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise OSError("it is no ordinary file")
    try:
        with path.open("rb") as file:
            data = file.read(_MOST + 1)
        found = json.loads(data) if len(data) <= _MOST else {}
    except (FileNotFoundError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _choice(entry: Any, candidates: Candidates, usual: Choice) -> Choice | None:
    """An entry of the file, if it is one of the choices that there are."""
    if not isinstance(entry, dict):
        return None
    parts = candidates.parts
    if any(type(entry.get(n)) is not int or entry[n] not in parts[n] for n in parts):
        return None
    return replace(usual, **{n: entry[n] for n in parts})


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
