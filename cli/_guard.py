"""A command in a process of its own, watched from outside.

The libraries that read models are native code. A file that is damaged, or made to do harm, can
let them crash, compute for ever or fill the memory, and no ``except`` helps against that. So the
command runs in a child process, and this one waits: a crash becomes a message and exit status 2,
and what takes too much memory or time is ended.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, NoReturn

from mnemoscope.analyzer.errors import MnemoscopeError

_EVERY = 0.02  # seconds between looks at the child's memory
_PATIENCE = 0.5  # seconds that a child has to end by an interruption that reached it as well
_LAST_PATIENCE = 5.0  # seconds that a child has to end when the system asks it to
_FORWARDED = ("SIGINT", "SIGTERM", "SIGHUP")
_CRASHES = ("SIGSEGV", "SIGABRT", "SIGBUS", "SIGFPE", "SIGILL", "SIGSYS", "SIGTRAP")
_STATUS = 2
_FINISHING = b"Finishing the step at hand; press Ctrl-C again to stop at once.\n"
_ADVICE = (
    "The file is damaged, or made for another purpose; check it with onnx.checker, or export "
    "the model again."
)


def guarded(work: Callable[[], Any]) -> Any:
    """Do `work`, which ends by leaving the program, in a watched child process.

    To be called before anything starts threads, as ONNX Runtime does when it is imported: a fork
    does not take them along.

    Where processes cannot be forked (Windows), `work` is done here and nothing is watched.
    """
    if not hasattr(os, "fork") or threading.active_count() > 1:
        return work()
    told, tell = os.pipe()
    living, live = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        os.close(tell)
        os.close(living)
        _watch(child, told)  # `live` stays open for as long as this process is there
    os.close(told)
    os.close(live)
    signal.signal(signal.SIGINT, _interrupt)
    for name in ("SIGTERM", "SIGHUP"):
        signal.signal(getattr(signal, name), _leave)
    unfinished: set[str] = set()
    threading.Thread(target=_end_with_parent, args=(living, unfinished), daemon=True).start()
    from mnemoscope.analyzer import _limits

    def tell_parent(news: dict[str, Any]) -> None:
        unfinished.update(filter(None, [news.get("unfinished")]))
        unfinished.discard(news.get("finished", ""))
        os.write(tell, json.dumps(news).encode() + b"\n")

    _limits.watch_with(tell_parent)
    return work()


def _interrupt(number: int, frame: Any) -> NoReturn:
    """Once: it may come from the terminal and through the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt


@contextmanager
def finishing() -> Iterator[Callable[[], bool]]:
    """Let the first SIGINT ask the body to end by itself; the second interrupts it.

    Gives what tells the body whether it is asked to.
    """
    if threading.current_thread() is not threading.main_thread():  # which has no signal handlers
        yield lambda: False
        return
    from mnemoscope.analyzer import _limits

    asked = False

    def ask(number: int, frame: Any) -> None:
        nonlocal asked
        if asked:
            _interrupt(number, frame)
        asked = True
        _limits.announce(interrupted=True)  # the parent need not hand it on
        os.write(2, _FINISHING)  # at once: what writes to sys.stderr may be in the midst of it

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield lambda: asked
    finally:
        # Whoever has pressed Ctrl-C waits for the end already.
        signal.signal(signal.SIGINT, signal.SIG_IGN if asked else before)
    if asked:  # too late for the body to see it
        raise KeyboardInterrupt


def _leave(number: int, frame: Any) -> NoReturn:
    """Once: what is being written is taken away on the way out."""
    signal.signal(number, signal.SIG_IGN)
    sys.exit(128 + number)


def _end_with_parent(living: int, unfinished: set[str]) -> None:
    """Wait in a thread of the child for the other end to be closed: nobody watches any more."""
    os.read(living, 1)
    _remove(unfinished)
    os._exit(128 + signal.SIGHUP)


@dataclass
class _Child:
    """The process that does the work.

    Attributes:
        process: Its number.
        told: Where it announces what it does.
        pending: Signals that came and are not handed on yet.
        asked: The last signal handed on that ends a process, and when.
        unfinished: Files that it is writing under temporary names.
        interrupted: Whether a SIGINT was handed on.
        heard: When it said that a SIGINT had reached it, which may yet have to reach this process.
    """

    process: int
    told: int
    pending: list[int] = field(default_factory=list)
    asked: tuple[int, float] | None = None
    unfinished: set[str] = field(default_factory=set)
    interrupted: bool = False
    heard: float | None = None

    def take(self, number: int) -> None:
        """Of the signals of a terminal, the child may have told of its own before."""
        heard, self.heard = self.heard, None if number == signal.SIGINT else self.heard
        if number != signal.SIGINT or heard is None or time.monotonic() - heard > _PATIENCE:
            self.pending.append(number)

    def hand_on(self) -> None:
        number = self.pending.pop()
        os.kill(self.process, number)
        if number == signal.SIGINT:
            self.interrupted = True
        else:
            self.asked = self.asked or (number, time.monotonic())

    def end_if_deaf(self) -> None:
        """Native code hears no signal until it returns to Python, and some never does."""
        if self.asked and time.monotonic() - self.asked[1] > _LAST_PATIENCE:
            os.kill(self.process, signal.SIGKILL)

    def hear(self, news: dict[str, Any]) -> None:
        if "unfinished" in news:
            self.unfinished.add(news["unfinished"])
        self.unfinished.discard(news.get("finished", ""))
        # Once at most: a child that goes on after a SIGINT must not take the same for a second.
        if "interrupted" in news and not self.interrupted:
            if signal.SIGINT in self.pending:
                self.pending.remove(signal.SIGINT)
            else:
                self.heard = time.monotonic()


def _watch(process: int, told: int) -> NoReturn:
    """Wait for the child, and leave as it left."""
    child = _Child(process, told)
    for name in _FORWARDED:
        signal.signal(getattr(signal, name), lambda number, frame: child.take(number))
    try:
        problem = _supervise(child)
    except MnemoscopeError as error:
        problem = str(error)
    since = time.monotonic()
    if problem:
        os.kill(process, signal.SIGKILL)
    while True:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            break
        if child.pending and time.monotonic() - since > _PATIENCE:
            child.hand_on()
        child.end_if_deaf()
        time.sleep(0.001)
    _remove(child.unfinished)  # of a child that could not do it
    if problem is None and child.asked:
        _die_of(child.asked[0])
    if not problem and os.WIFSIGNALED(status):
        problem = _said_of(os.WTERMSIG(status))
        if problem is None:
            _die_of(os.WTERMSIG(status))
    if problem:
        print(f"Error: {problem}", file=sys.stderr, flush=True)
        os._exit(_STATUS)
    os._exit(os.waitstatus_to_exitcode(status))


def _supervise(child: _Child) -> str | None:
    """Watch until the child closes its end; gives what it must be ended for, if anything."""
    import psutil
    from mnemoscope.analyzer import _memory

    process = psutil.Process(child.process)
    most = _memory.available()
    limit, what, spent, text, since = 0.0, "", 0.0, b"", None
    with suppress(psutil.NoSuchProcess):
        while True:
            ready, _, _ = select.select([child.told], [], [], _EVERY)
            if ready:
                sent = os.read(child.told, 4096)
                if not sent:
                    return None
                text += sent
                *lines, text = text.split(b"\n")
                for news in map(json.loads, lines):
                    child.hear(news)
                    if "limit" in news:
                        limit, what = news["limit"], news["what"]
                        spent = _processor_seconds(process)
            if child.pending:
                since = since or time.monotonic()
                if time.monotonic() - since > _PATIENCE:
                    child.hand_on()
                    since = None
            else:
                since = None
            child.end_if_deaf()
            used = process.memory_info().rss
            if used > most:
                return (
                    f"The command was ended because it took {_memory.shown(used)} of memory, "
                    f"and {_memory.shown(most)} may be used. A model that computes very large "
                    "tensors cannot be analysed here; free some memory, or raise "
                    f"{_memory.VARIABLE} if it is set."
                )
            if limit and _processor_seconds(process) - spent > limit:
                return (
                    f"The command was ended because {what} took more than {limit:.0f} s of "
                    f"processor time; a step of a language model takes far less. {_ADVICE}"
                )
    return None


def _remove(paths: set[str]) -> None:
    for path in paths:
        with suppress(OSError):
            os.unlink(path)


def _processor_seconds(process: Any) -> float:
    # Not time that passes: a busy machine, or a stopped process, is not the file's fault.
    times = process.cpu_times()
    return times.user + times.system


def _said_of(number: int) -> str | None:
    name = signal.Signals(number).name
    if name in _CRASHES:
        return f"ONNX Runtime, or another library that reads the model, crashed ({name}). {_ADVICE}"
    if name == "SIGKILL":
        return (
            "The command was killed from outside, as systems do when memory runs short. Ask for "
            "less: fewer --delays or one --state, or a smaller --memory."
        )
    return None


def _die_of(number: int) -> NoReturn:
    """End this process by the signal that ended the child."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    os._exit(128 + number)
