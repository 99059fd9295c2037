"""Steps as data, and running them: what is done is skipped, what a stop cut short goes on.

A step is done when its stamp, ``steps/NAME.json``, holds the hash of its present settings and all
that it makes is there, of the size that the stamp says. The hash covers the settings of the steps
it needs as well, so a change anywhere redoes what follows from it, and nothing else. What a step's
program is, its settings must say: `study.steps` puts mnemoscope's version into all of them.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import IO, Any

from mnemoscope.analyzer._files import replacing

Launch = Callable[[Sequence[str], Path, IO[Any], IO[Any]], tuple[int, int | None]]

DONE, STALE, TODO, UNAVAILABLE = "done", "settings changed", "to do", "not available"

SHORT = 30.0
"""Seconds of a step that a time limit does not keep from being started."""


@dataclass(frozen=True)
class Step:
    """One thing to do.

    Attributes:
        name: Unique; letters, digits, ``-`` and ``.``.
        title: What it does, for a reader.
        makes: Files and folders, relative to the run's folder.
        needs: Names of steps that come before it in the list.
        command: Arguments of Python, run in the run's folder; a part that starts with ``@name/``
            is a path below one of the `Engine`'s places.
        stdout: File, relative to the run's folder, for what the command prints; None: the log.
        function: Called with the run's folder; in place of a command.
        settings: All that the outcome depends on besides `command` and what it needs.
        seconds: How long it may take.
        figures: The paper's figures and tables that it serves.
        resume: Added to the command where the step was begun before with the same settings; None
            means that what was begun is thrown away.
        resumable: What must be there, relative to the run's folder, for `resume`.
        scratch: A folder of its own, thrown away with what it makes when it begins anew.
        unavailable: Why it cannot be run here; None if it can.
        optional: Needed steps that may fail or be missing: it runs with what there is.
    """

    name: str
    title: str
    makes: tuple[str, ...]
    needs: tuple[str, ...] = ()
    command: tuple[str, ...] | None = None
    stdout: str | None = None
    function: Callable[[Path], None] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 1.0
    figures: tuple[str, ...] = ()
    resume: tuple[str, ...] | None = None
    resumable: str = ""
    scratch: str = ""
    unavailable: str | None = None
    optional: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What became of the steps of one run.

    Attributes:
        done: Ran and finished.
        skipped: Were done before.
        failed: Step → the last lines that it said.
        blocked: Step → why it could not start.
        left: Not started, since the time was up.
    """

    done: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    blocked: dict[str, str] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)


class Busy(Exception):
    """Another run works in the same folder."""


class Engine:
    """The steps of a study in one folder.

    Args:
        folder: Of the run; made when something is run.
        steps: In an order in which each comes after what it needs.
        places: Name → folder, for ``@name/…`` in commands.
        say: Called with one line at a time.
        launch: Runs the arguments of a process in a folder, with what it prints and what it says
            of errors going to two files; gives its exit status and peak memory in bytes.
    """

    def __init__(
        self,
        folder: Path,
        steps: Sequence[Step],
        places: Mapping[str, Path],
        say: Callable[[str], None] = print,
        launch: Launch | None = None,
    ) -> None:
        self.folder = folder.resolve()
        self.steps = {step.name: step for step in steps}
        self.places = {name: path.resolve() for name, path in places.items()}
        self.say = say
        self.launch = launch or _launch
        if len(self.steps) != len(steps):
            raise ValueError("two steps have one name")
        known: set[str] = set()
        for step in steps:
            missing = {*step.needs, *step.optional} - known
            if missing:
                raise ValueError(f"{step.name} needs {missing}, which do not come before it")
            if (step.command is None) == (step.function is None) and not step.unavailable:
                raise ValueError(f"{step.name} must have either a command or a function")
            known.add(step.name)

    # What is done ----------------------------------------------------------------------------

    @cached_property
    def keys(self) -> dict[str, str]:
        """Step → hash of its settings and of those of all that it rests on."""
        found: dict[str, str] = {}
        for step in self.steps.values():
            said = {
                "command": step.command,
                "settings": dict(step.settings),
                "makes": step.makes,
                "needs": {n: found[n] for n in (*step.needs, *step.optional)},
            }
            text = json.dumps(said, sort_keys=True, default=str)
            found[step.name] = hashlib.sha256(text.encode()).hexdigest()
        return found

    def stamp(self, name: str) -> dict[str, Any] | None:
        """What was noted when the step was last finished; None if it never was."""
        with suppress(OSError, ValueError):
            found = json.loads(self._stamp_path(name).read_text(encoding="utf-8"))
            if isinstance(found, dict):
                return found
        return None

    def state(self, name: str) -> str:
        """Tell whether a step is done, to do, or was done with other settings."""
        step, stamp = self.steps[name], self.stamp(name)
        if (
            stamp
            and stamp.get("key") == self.keys[name]
            and self._sizes(step) == stamp.get("made")
            # A page that was written without a result is written again once the result is there.
            and stamp.get("without") == self._without(step)
        ):
            return DONE
        if self.lacking(name):
            return UNAVAILABLE
        return STALE if stamp and stamp.get("key") != self.keys[name] else TODO

    def lacking(self, name: str) -> str | None:
        """Why a step, or what it needs, cannot be run here; None if it can."""
        step = self.steps[name]
        if step.unavailable:
            return step.unavailable
        return next((why for need in step.needs if (why := self.lacking(need))), None)

    def estimate(self, name: str) -> float:
        """Seconds that the step took last time, or those that its settings make likely."""
        stamp = self.stamp(name)
        return float(stamp["seconds"]) if stamp and "seconds" in stamp else self.steps[name].seconds

    def select(self, only: Sequence[str]) -> list[str]:
        """Names of the steps asked for, by step or figure, and of all that they need.

        Raises:
            KeyError: With a name that is neither.
        """
        if not only:
            return list(self.steps)
        wanted: set[str] = set()
        for name in only:
            found = {s.name for s in self.steps.values() if name in (s.name, *s.figures)}
            if not found:
                raise KeyError(name)
            wanted |= found
        for step in reversed(self.steps.values()):
            if step.name in wanted:
                wanted |= set(step.needs)
        return [name for name in self.steps if name in wanted]

    # Running ---------------------------------------------------------------------------------

    def run(self, only: Sequence[str] = (), minutes: float | None = None) -> Outcome:
        """Do what is not done.

        A step that fails stops what needs it, and nothing else.

        Args:
            only: Steps or figures; none means all.
            minutes: Start no step of more than `SHORT` that is likely to end later than this; None
                for no limit.

        Hold `alone` meanwhile.
        """
        names = self.select(only)
        deadline = None if minutes is None else time.monotonic() + 60 * minutes
        outcome = Outcome()
        for i, name in enumerate(names, 1):
            step = self.steps[name]
            if self.state(name) == DONE:
                outcome.skipped.append(name)
                continue
            why = self._obstacle(step, outcome)
            if why is not None:
                outcome.blocked[name] = why
                continue
            guess = self.estimate(name)
            # Figures and the page are written in any case: they show what there is.
            late = deadline is not None and time.monotonic() + guess > deadline
            if late and guess > SHORT:
                outcome.left.append(name)
                continue
            self.say(f"[{i}/{len(names)}] {name}: {step.title} (about {duration(guess)})")
            start = time.monotonic()
            try:
                memory = self._do(step)
                self._require_made(step)
            except Failure as failure:
                outcome.failed[name] = str(failure)
                self.say(f"    FAILED after {duration(time.monotonic() - start)}: {failure}")
                continue
            seconds = time.monotonic() - start
            self._finish(step, seconds, memory)
            outcome.done.append(name)
            peak = f", {memory / 2**30:.2f} GiB" if memory else ""
            self.say(f"    done in {duration(seconds)}{peak}")
        return outcome

    def _obstacle(self, step: Step, outcome: Outcome) -> str | None:
        if why := self.lacking(step.name):
            return f"not available: {why}"
        for need in step.needs:
            if self.state(need) != DONE:
                if need in outcome.blocked:
                    return f"needs {need}, which could not run"
                what = "failed" if need in outcome.failed else "is not done"
                return f"needs {need}, which {what}"
        return None

    def _do(self, step: Step) -> int | None:
        """Run one step; its peak memory in bytes where that is known."""
        for part in ("steps", "logs"):
            (self.folder / part).mkdir(parents=True, exist_ok=True)
        begun = self._stamp_path(step.name).with_suffix(".begun")
        same = begun.exists() and begun.read_text(encoding="utf-8") == self.keys[step.name]
        self._stamp_path(step.name).unlink(missing_ok=True)
        if same and step.resume and (self.folder / step.resumable).exists():
            self.say("    goes on where it was stopped")
            try:
                return self._command(step, step.resume)
            except Failure as failure:
                self.say(f"    cannot go on ({failure}); begins anew")
        self._remove(step, kept=same)
        _write(begun, self.keys[step.name])
        for made in step.makes:
            (self.folder / made).parent.mkdir(parents=True, exist_ok=True)
        if step.command is not None:
            return self._command(step)
        assert step.function is not None
        try:
            step.function(self.folder)
        except Exception as error:
            log = self.folder / "logs" / f"{step.name}.log"
            log.write_text(traceback.format_exc(), encoding="utf-8")
            raise Failure(f"{type(error).__name__}: {error}") from error
        return None

    def _command(self, step: Step, more: tuple[str, ...] = ()) -> int | None:
        assert step.command is not None
        argv = [sys.executable, *(self._place(part) for part in (*step.command, *more))]
        log = self.folder / "logs" / f"{step.name}.log"
        with log.open("w", encoding="utf-8") as file:
            file.write(f"$ {' '.join(argv)}\n")
            file.flush()
            printed = self.folder / f"{step.stdout}.part" if step.stdout else None
            out = printed.open("wb") if printed else None
            try:
                status, memory = self.launch(argv, self.folder, out or file, file)
            finally:
                if out:
                    out.close()
        if status:
            lines = log.read_text(encoding="utf-8", errors="replace").strip().split("\n")[1:]
            how = f"signal {-status}" if status < 0 else f"exit status {status}"
            raise Failure(f"{how}; logs/{log.name} ends: " + " / ".join(lines[-4:]))
        if printed and step.stdout:
            printed.replace(self.folder / step.stdout)
        return memory

    def _require_made(self, step: Step) -> None:
        lost = [made for made in step.makes if not (self.folder / made).exists()]
        if lost:
            raise Failure(f"it ended well but did not make {', '.join(lost)}")

    def _finish(self, step: Step, seconds: float, memory: int | None) -> None:
        made = self._sizes(step)
        stamp = {
            "key": self.keys[step.name],
            "seconds": round(seconds, 2),
            "memory": memory,
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": step.command,
            "settings": dict(step.settings),
            "without": self._without(step),
            "made": made,
        }
        _write(self._stamp_path(step.name), json.dumps(stamp, indent=1, default=str) + "\n")
        self._stamp_path(step.name).with_suffix(".begun").unlink(missing_ok=True)

    def _without(self, step: Step) -> list[str]:
        """The steps it can do without that are not done."""
        return [name for name in step.optional if self.state(name) != DONE]

    def _sizes(self, step: Step) -> dict[str, int] | None:
        """Size of all that the step makes; None if any of it is missing."""
        sizes = {}
        for made in step.makes:
            path = self.folder / made
            if not path.exists():
                return None
            sizes[made] = path.stat().st_size if path.is_file() else -1
        return sizes

    def _remove(self, step: Step, *, kept: bool) -> None:
        """Take away what a step made; not the checkpoints of mnemoscope if they are `kept`."""
        checkpoints = [] if kept else [f"{made}.checkpoint" for made in step.makes]
        for made in (*step.makes, *checkpoints, *([step.scratch] if step.scratch else [])):
            path = self.folder / made
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def _place(self, part: str) -> str:
        if part.startswith("@"):
            name, _, rest = part[1:].partition("/")
            return str(self.places[name] / rest)
        return part

    def _stamp_path(self, name: str) -> Path:
        return self.folder / "steps" / f"{name}.json"

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the folder's lock, which the system lets go of however this process ends.

        Raises:
            Busy: Another run holds it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            import fcntl
        except ImportError:  # Windows: two runs at once are the user's to avoid
            yield
            return
        with (self.folder / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise Busy(f"Another run works in {self.folder}; wait for it.") from None
            yield


class Failure(Exception):
    """A step did not end well; the message is what it said last."""


def _launch(
    argv: Sequence[str], folder: Path, out: IO[Any], err: IO[Any]
) -> tuple[int, int | None]:
    """Run a process, and end it if this one is told to stop."""
    process = subprocess.Popen(
        argv, cwd=folder, stdout=out, stderr=err, stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    try:
        if not hasattr(os, "wait4"):  # Windows
            return process.wait(), None
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        unit = 1 if sys.platform == "darwin" else 1024
        return process.returncode, usage.ru_maxrss * unit
    except BaseException:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        raise


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end a run as Ctrl-C does: the step's process is ended too."""

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    names = [n for n in ("SIGTERM", "SIGHUP") if hasattr(signal, n)]
    before = {n: signal.signal(getattr(signal, n), stop) for n in names}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)


def duration(seconds: float) -> str:
    """Minutes and seconds, or hours and minutes, for people."""
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 1 else f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min"


def _write(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
