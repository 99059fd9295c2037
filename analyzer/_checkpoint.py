"""What a run has found so far, in a file, so that a run that was ended can go on.

Between two shards everything that a run has found is in its totals, so that a checkpoint is these,
how many shards they hold, and the states of the stream there. Whoever goes on from it adds the
same numbers in the same order: its result is that of a run that nothing ended, bit by bit.

The file is one of numpy's ``.npz`` files (a ZIP archive), since these are written piece by piece,
and every piece is read against a checksum: a damaged checkpoint never becomes a result.
"""

from __future__ import annotations

import io
import json
import math
import os
import shutil
import time
import zipfile
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager, closing, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from filelock import FileLock, Timeout

from ._files import printable, replacing, temporary_of
from ._limits import announce
from ._memory import shown
from .errors import CheckpointError

if TYPE_CHECKING:
    from ._shards import Carrier, Shard
    from ._states import States, Stepper
    from .sums import Accumulator

EVERY = 60.0  # seconds
SUFFIX = ".checkpoint"  # of the file beside an output
_CHOSEN = ("threads", "streams", "chunk", "calibrated")  # what of a key a run chooses by itself
_FORMAT, _VERSION = "mnemoscope checkpoint", 1
_PIECE = 2**24  # bytes that are read or written at once
_PATIENCE = 5.0  # seconds for a process that was just ended to let go of the lock
_KEY, _VALUES, _TOTALS = "key.npy", "values", "totals"
# What reading a damaged archive raises, or one that somebody else wrote.
_DAMAGE = (zipfile.BadZipFile, EOFError, OSError, NotImplementedError, RuntimeError,
           KeyError, ValueError, TypeError)  # fmt: skip


class Checkpoint:
    """The checkpoint of one run, and the lock that keeps a second one away from it.

    To be entered before the run begins and left when its result is saved::

        with Checkpoint("r.nc.checkpoint", resume=True) as checkpoint:
            save_result(analyze(model, corpus, checkpoint=checkpoint), "r.nc")
            checkpoint.remove()

    Args:
        path: The file. ``.lock`` is added to its name for the lock.
        every: Seconds between the end of one writing and the next; 0 means never.
        resume: Go on from the file if it is there.
        report: Called with one line when writing fails, and when it works again.
        stopping: Context in which the shards are followed; it gives what is asked after each of
            them. Once that says yes, the checkpoint is written and the run ends with a
            `KeyboardInterrupt`.

    Attributes:
        path: The file; symbolic links are followed.
        found_before: ``name → array`` of what the run found before the shards at hand, written
            along.
        seconds_before: How long the run took until the checkpoint that it goes on from.

    Raises:
        CheckpointError: On entering: another run holds the lock, the folder cannot be written, or
            the file is there and `resume` is False.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        every: float | None = None,
        resume: bool = False,
        report: Callable[[str], None] | None = None,
        stopping: Callable[[], AbstractContextManager[Callable[[], bool]]] | None = None,
    ) -> None:
        self.path = Path(os.path.realpath(path))
        self.found_before: dict[str, np.ndarray] = {}
        self._every = EVERY if every is None else every
        if not (math.isfinite(self._every) and self._every >= 0):
            raise CheckpointError(
                f"The seconds between checkpoints must be a number from 0 on, not {every}."
            )
        self._resume = resume
        self.stopping = stopping or (lambda: nullcontext(lambda: False))
        self._say = report or (lambda line: None)
        self._lock = FileLock(f"{self.path}.lock")
        self._name = printable(self.path)
        self._failing = False
        self._written = self._began = time.monotonic()
        self.seconds_before = 0.0

    def __enter__(self) -> Checkpoint:
        try:
            self.path.parent.stat()  # or the lock would make the folder
            self._lock.acquire(timeout=_PATIENCE)
            # Who ends this process from outside removes the file.
            announce(unfinished=os.path.abspath(self._lock.lock_file))
        except Timeout as error:
            raise CheckpointError(
                f"Another run writes to the same output: it holds {self._name}.lock. Wait until "
                "it ends, or choose another output."
            ) from error
        except OSError as error:
            raise CheckpointError(
                f"No checkpoint can be kept at {self._name}: {error.strerror or error}. Write the "
                "output to a folder that can be written, under a name that is not too long."
            ) from error
        try:
            if self.exists() and not self._resume:
                raise CheckpointError(
                    f"{self._name} is the checkpoint of a run to this output that was not "
                    "finished. Add --resume (from Python: resume=True) to go on with it, or "
                    "delete the file to start again."
                )
            with suppress(FileNotFoundError):  # of a run that was killed as it wrote
                temporary_of(self.path).unlink()
        except BaseException:
            self._release()
            raise
        self._written = self._began = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self._release()

    def _release(self) -> None:
        # While the lock is held: who waits for it sees that this file has no name any more.
        with suppress(OSError):
            os.unlink(self._lock.lock_file)
        announce(finished=os.path.abspath(self._lock.lock_file))
        self._lock.release()

    def exists(self) -> bool:
        """Whether there is something to go on from."""
        return os.path.lexists(self.path)

    @property
    def resumes(self) -> bool:
        """Whether the run is to go on from what is there."""
        return self._resume and self.exists()

    def choices(self) -> dict[str, int]:
        """What the run that is gone on with had chosen by itself; nothing where it begins.

        Threads, streams and positions a call, and whether they are ``calibrated``.

        Raises:
            CheckpointError: The file is damaged.
        """
        if not self.resumes:
            return {}
        with self._reading() as (_, of_file):
            given = {name: of_file.get(name) for name in _CHOSEN}
        return {n: v for n, v in given.items() if type(v) is int and v > 0}

    def remove(self) -> None:
        """Take the file away: what it was kept for is done."""
        with suppress(FileNotFoundError):
            self.path.unlink()

    @property
    def due(self) -> bool:
        """Whether it is time to write."""
        return self._every > 0 and time.monotonic() - self._written >= self._every

    def require_room(self, size: int) -> None:
        """Refuse to begin what could not be kept.

        Args:
            size: Bytes of the totals.

        Raises:
            CheckpointError: The folder lacks room for the file and, while that is replaced, for
                the one before it.
        """
        if not self._every:
            return
        there = self.path.stat().st_size if self.exists() else 0
        free = shutil.disk_usage(self.path.parent).free
        if 2 * size - there > free:
            raise CheckpointError(
                f"Checkpoints of this run take {shown(2 * size)} while they are replaced, and "
                f"{printable(self.path.parent)} has room for {shown(free + there)}. Write the "
                "output to a folder with more room, ask for fewer groups, --blocks, --delays or "
                "states, or go without checkpoints: --checkpoint-every 0."
            )

    def write(
        self,
        key: Mapping[str, Any],
        totals: Mapping[str, np.ndarray],
        values: Mapping[str, np.ndarray],
        release: Callable[[], None] = lambda: None,
    ) -> bool:
        """Replace the file; what is there stays, and the run may go on, if that fails.

        Args:
            key: What the run is, by which `restore` knows it; values as JSON has them.
            totals: Name → array, written without a copy of it all in memory.
            values: Name → small array.
            release: Called now and then, to let what has been read leave memory.

        Returns:
            Whether it is written.
        """
        try:
            with (
                replacing(self.path, lasting=True) as temporary,
                zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED, allowZip64=True) as file,
            ):
                seconds = self.seconds_before + time.monotonic() - self._began
                held = {**values, **self.found_before, "seconds": np.array(seconds)}
                _put(file, _KEY, np.array(json.dumps(_described(key))))
                for name, array in held.items():
                    _put(file, f"{_VALUES}/{name}.npy", array)
                for name, array in totals.items():
                    for piece, part in _pieces(f"{_TOTALS}/{name}", array):
                        _put(file, f"{piece}.npy", part)
                        release()
        except OSError as error:
            if not self._failing:
                last = "the last one stays" if self.exists() else "none is there yet"
                self._say(
                    f"Warning: no checkpoint can be written to {self._name}: "
                    f"{error.strerror or error}; {last}. The run goes on and tries again: make "
                    "room meanwhile."
                )
            self._failing = True
            return False
        finally:
            self._written = time.monotonic()
        if self._failing:
            self._say(f"Checkpoints are written to {self._name} again.")
        self._failing = False
        return True

    def values(self, key: Mapping[str, Any] | None = None) -> dict[str, np.ndarray]:
        """The small arrays of the file, with those of `found_before`.

        Raises:
            CheckpointError: The file is damaged, or of another run than `key` says.
        """
        with self._reading() as (file, of_file):
            if key is not None:
                self._compare(_described(key), of_file)
            return self._values(file)

    def restore(
        self,
        key: Mapping[str, Any],
        totals: Mapping[str, np.ndarray],
        release: Callable[[], None] = lambda: None,
    ) -> dict[str, np.ndarray]:
        """Fill `totals` with what the file holds; gives the small arrays.

        Arguments are those of `write`.

        Raises:
            CheckpointError: The file is damaged, or of another run.
        """
        with self._reading() as (file, of_file):
            self._compare(_described(key), of_file)
            for name, array in totals.items():
                for piece, part in _pieces(f"{_TOTALS}/{name}", array):
                    found = _get(file, f"{piece}.npy")
                    if found.shape != part.shape or found.dtype != part.dtype:
                        raise ValueError(piece)
                    part[...] = found
                    release()
            values = self._values(file)
            self.seconds_before = float(values["seconds"])
            return values

    def _reading(self) -> _Reading:
        return _Reading(self.path, self._name)

    def _values(self, file: zipfile.ZipFile) -> dict[str, np.ndarray]:
        # Whatever is not known to be something else, so that a damaged name is seen.
        names = [n for n in file.namelist() if n != _KEY and not n.startswith(f"{_TOTALS}/")]
        return {n.removeprefix(f"{_VALUES}/").removesuffix(".npy"): _get(file, n) for n in names}

    def _compare(self, key: dict[str, Any], of_file: dict[str, Any]) -> None:
        differing = [
            f"{name} (this run: {_brief(key.get(name))}, the checkpoint: "
            f"{_brief(of_file.get(name))})"
            for name in {**key, **of_file}
            if key.get(name) != of_file.get(name)
        ]
        if differing:
            raise CheckpointError(
                f"The checkpoint {self._name} is of another run; they differ in "
                f"{', '.join(differing)}. Run with what the checkpoint has, choose another "
                "output, or delete the file to start again."
            )


class _Reading:
    """An open checkpoint and its key; what is wrong with the file becomes a message."""

    def __init__(self, path: Path, name: str) -> None:
        self._path, self._name = path, name

    def __enter__(self) -> tuple[zipfile.ZipFile, dict[str, Any]]:
        try:
            self._file = zipfile.ZipFile(self._path)
        except _DAMAGE as error:
            raise self._damaged(error) from error
        try:
            key = json.loads(str(_get(self._file, _KEY)))
            if key["format"] != f"{_FORMAT} {_VERSION}":
                raise CheckpointError(
                    f"The checkpoint {self._name} has the format {_brief(key['format'])}; this "
                    f"version of mnemoscope reads {_FORMAT} {_VERSION}. Go on with the version "
                    "that wrote it, or delete the file to start again."
                )
        except BaseException as error:
            self._file.close()
            if isinstance(error, _DAMAGE):
                raise self._damaged(error) from error
            raise
        return self._file, key

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._file.close()
        if isinstance(error, _DAMAGE):
            raise self._damaged(error) from error

    def _damaged(self, error: BaseException) -> CheckpointError:
        if isinstance(error, OSError) and error.errno:
            return CheckpointError(
                f"The checkpoint {self._name} cannot be read: {error.strerror}. Make it readable, "
                "or delete it to start again."
            )
        return CheckpointError(
            f"The checkpoint {self._name} is damaged, or no checkpoint, and nothing can go on "
            "from it. Delete the file to start again."
        )


def opened(
    checkpoint: Checkpoint | str | os.PathLike[str] | None,
    every: float | None,
    resume: bool,
    report: Callable[[str], None] | None,
) -> AbstractContextManager[Checkpoint | None]:
    """What `analyze` was given: a checkpoint that the caller has entered, or the path of one."""
    if checkpoint is None or isinstance(checkpoint, Checkpoint):
        return nullcontext(checkpoint)
    return Checkpoint(checkpoint, every=every, resume=resume, report=report)


class Work(Protocol):
    """What can be done a few shards at a time.

    Attributes:
        shards: All, in the order of the corpus.
        sums: Where their Jacobians are added, in that order.
        stepper: Carries the states from shard to shard.
    """

    @property
    def shards(self) -> list[Shard]: ...
    @property
    def sums(self) -> Accumulator: ...
    @property
    def stepper(self) -> Stepper: ...

    def carrier(self, position: int = 0, states: States | None = None) -> Carrier:
        """The states along the corpus, known before `position`; default at its beginning."""

    def advance(
        self, done: int, carrier: Carrier, progress: Callable[[int, int], None] | None
    ) -> Generator[tuple[int, int, States]]:
        """Follow all shards but the first `done`.

        Yields:
            After some shards: how many are done in all, a position, and the states before it.
        """


def follow(
    job: Work,
    checkpoint: Checkpoint,
    key: Mapping[str, Any],
    progress: Callable[[int, int], None] | None = None,
    report: Callable[[str], None] | None = None,
    *,
    restore: bool = True,
) -> None:
    """Follow all shards of a job, from where a checkpoint stands, and keep it up to date.

    Args:
        job: The work; its sums are empty.
        checkpoint: Where it is kept.
        key: What the run is.
        progress: Called with steps done and in all.
        report: Called with one line about where the run begins.
        restore: Whether the checkpoint, if there, is of these shards.

    Raises:
        CheckpointError: The checkpoint is of another run, damaged, or there is no room for it.
        KeyboardInterrupt: The run was asked to end.
    """
    sums, carrier, done = job.sums, job.carrier(), 0
    names = list(job.stepper.initial())
    if restore and checkpoint.resumes:
        values = checkpoint.restore(key, sums.totals, sums.release)
        done = int(values["shards"])
        states = {name: values[f"state{i}"] for i, name in enumerate(names)}
        carrier = job.carrier(int(values["position"]), states)
    checkpoint.require_room(sum(array.nbytes for array in sums.totals.values()))
    total = sum(shard.steps for shard in job.shards)
    before = sum(shard.steps for shard in job.shards[:done])
    if done and report:
        report(f"Going on from the checkpoint: {before:,} of {total:,} steps are done.")
    with checkpoint.stopping() as stopped, closing(job.advance(done, carrier, progress)) as steps:
        for number, position, now in steps:
            if stopped() or checkpoint.due:
                values = {f"state{i}": now[name] for i, name in enumerate(names)}
                values |= {"shards": np.array(number), "position": np.array(position)}
                checkpoint.write(key, sums.totals, values, sums.release)
            if stopped():
                raise KeyboardInterrupt


def later(
    progress: Callable[[int, int], None] | None, before: int, total: int
) -> Callable[[int, int], None] | None:
    """Progress of a part of the work as that of all."""
    if progress is None:
        return None
    tell = progress
    return lambda done, _: tell(before + done, total)


def _described(key: Mapping[str, Any]) -> dict[str, Any]:
    return {"format": f"{_FORMAT} {_VERSION}", **json.loads(json.dumps(key))}


def _brief(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return f"{text[:12]}…" if len(text) > 40 else text


def _pieces(name: str, array: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Views of an array along its leading axes, none of them large."""
    if array.nbytes <= _PIECE or array.ndim == 1:
        yield name, array
    else:
        for i, part in enumerate(array):
            yield from _pieces(f"{name}/{i}", part)


def _put(file: zipfile.ZipFile, name: str, array: np.ndarray) -> None:
    with file.open(name, "w", force_zip64=True) as member:
        np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)


def _get(file: zipfile.ZipFile, name: str) -> np.ndarray:
    info = file.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError(name)
    # All of it before any of it is believed: the checksum is compared at the end.
    return np.lib.format.read_array(io.BytesIO(file.read(info)), allow_pickle=False)
