"""A command in a process of its own, watched from outside.

The libraries that read models are native code. A file that is damaged, or made to do harm, can
let them crash, compute for ever or fill the memory, and no ``except`` helps against that. So the
command runs in a child process, and this one waits: a crash becomes a message and exit status 2,
and what takes too much memory or time is ended.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

from mnemoscope.analyzer.errors import MnemoscopeError

_EVERY = 0.02  # seconds between looks at the child's memory
_PATIENCE = 0.5  # seconds that a child has to end by an interruption that reached it as well
_FORWARDED = ("SIGINT", "SIGTERM", "SIGHUP")
_CRASHES = ("SIGSEGV", "SIGABRT", "SIGBUS", "SIGFPE", "SIGILL", "SIGSYS", "SIGTRAP")
_STATUS = 2
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
    threading.Thread(target=_end_with_parent, args=(living,), daemon=True).start()
    from mnemoscope.analyzer import _limits

    def announce(seconds: float, what: str) -> None:
        os.write(tell, f"{seconds}\t{what}\n".encode())

    _limits.watch_with(announce)
    return work()


def _interrupt(number: int, frame: Any) -> NoReturn:
    """Once: it may come from the terminal and through the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt


def _end_with_parent(living: int) -> None:
    """Wait in a thread of the child for the other end to be closed: nobody watches any more."""
    os.read(living, 1)
    os._exit(128 + signal.SIGHUP)


def _watch(child: int, told: int) -> NoReturn:
    """Wait for the child, and leave as it left."""
    pending: list[int] = []
    for name in _FORWARDED:
        signal.signal(getattr(signal, name), lambda number, frame: pending.append(number))
    try:
        problem = _supervise(child, told, pending)
    except MnemoscopeError as error:
        problem = str(error)
    since = time.monotonic()
    if problem:
        os.kill(child, signal.SIGKILL)
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        if pending and time.monotonic() - since > _PATIENCE:
            os.kill(child, pending.pop())
        time.sleep(0.001)
    if not problem and os.WIFSIGNALED(status):
        problem = _said_of(os.WTERMSIG(status))
    if problem:
        print(f"Error: {problem}", file=sys.stderr, flush=True)
        os._exit(_STATUS)
    os._exit(os.waitstatus_to_exitcode(status))


def _supervise(child: int, told: int, pending: list[int]) -> str | None:
    """Watch until the child closes its end; gives what it must be ended for, if anything."""
    import psutil
    from mnemoscope.analyzer import _memory

    process = psutil.Process(child)
    most = _memory.available()
    limit, what, spent, text, since = 0.0, "", 0.0, b"", None
    with suppress(psutil.NoSuchProcess):
        while True:
            ready, _, _ = select.select([told], [], [], _EVERY)
            if ready:
                news = os.read(told, 4096)
                if not news:
                    return None
                text += news
                *lines, text = text.split(b"\n")
                for line in lines:
                    seconds, _, said = line.decode().partition("\t")
                    limit, what, spent = float(seconds), said, _processor_seconds(process)
            if pending:
                since = since or time.monotonic()
                if time.monotonic() - since > _PATIENCE:
                    os.kill(child, pending.pop())
                    since = None
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
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    return None
