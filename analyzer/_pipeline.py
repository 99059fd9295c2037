"""Threads that read ahead and take each part of the work through it, none waiting for all."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import numpy as np
from threadpoolctl import threadpool_limits

AHEAD = 4  # batches that may wait for the products
_CONTROL = Path("/sys/fs/cgroup")


class _Counted(Protocol):
    """What is read at once: so many positions."""

    @property
    def count(self) -> int: ...


_Batch = TypeVar("_Batch", bound=_Counted)


class Pipeline(Generic[_Batch]):
    """Threads that read batches ahead and take each part through them, none waiting for all.

    Args:
        batches: Read by one thread at a time.
        parts: Each takes every batch in turn, its share of all products; parts need nothing of
            each other.
        threads: How many.
    """

    def __init__(
        self,
        batches: Iterator[_Batch],
        parts: Sequence[Callable[[_Batch], None]],
        threads: int,
    ) -> None:
        self._batches, self._parts = batches, parts
        self._changed = threading.Condition()
        self._threads = [
            threading.Thread(target=self._work, name=f"products-{i}", daemon=True)
            for i in range(threads)
        ]
        self._ready: dict[int, _Batch] = {}  # those that a part has still to take
        self._read = 0  # batches so far
        self._reading = self._ended = False
        self._taken = [0] * len(parts)  # batches so far, by each part
        self._busy: set[int] = set()
        self._passed = 0  # positions that all parts have taken
        self._stopped = False
        self._error: BaseException | None = None

    def run(self) -> Iterator[int]:
        """Work to the end; yields how many positions are done."""
        shown, finished = 0, False
        try:
            for thread in self._threads:
                thread.start()
            while not finished:
                with self._changed:
                    while not (self._error or self._passed > shown or self._finished()):
                        self._changed.wait()
                    if self._error:
                        raise self._error
                    passed, finished = self._passed, self._finished()
                if passed > shown:
                    yield passed
                    shown = passed
        finally:
            with self._changed:
                self._stopped = True
                self._changed.notify_all()
            for thread in self._threads:
                if thread.ident is not None:  # started
                    thread.join()

    def _finished(self) -> bool:
        return self._ended and min(self._taken) == self._read

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._stopped and (job := self._choose()) is None:
                    self._changed.wait()
                if self._stopped:
                    return
            try:
                job()  # type: ignore[misc]  # not None here
            except BaseException as error:
                with self._changed:
                    self._error, self._stopped = self._error or error, True
                    self._changed.notify_all()
                return

    def _choose(self) -> Callable[[], None] | None:
        """What a free thread does next: read where a part may soon wait, else the last part."""
        may_read = not (self._reading or self._ended) and self._read - min(self._taken) < AHEAD
        free = [p for p, n in enumerate(self._taken) if p not in self._busy and n < self._read]
        if may_read and (not free or self._read - max(self._taken) < AHEAD // 2):
            self._reading = True
            return self._read_one
        if not free:
            return None
        part = min(free, key=lambda p: self._taken[p])
        self._busy.add(part)
        return lambda: self._take_one(part)

    def _read_one(self) -> None:
        batch = next(self._batches, None)
        with self._changed:
            self._reading = False
            if batch is None:
                self._ended = True
            else:
                self._ready[self._read] = batch
                self._read += 1
            self._changed.notify_all()

    def _take_one(self, part: int) -> None:
        number = self._taken[part]
        self._parts[part](self._ready[number])
        with self._changed:
            self._busy.discard(part)
            self._taken[part] += 1
            if min(self._taken) > number:
                self._passed += self._ready.pop(number).count
            self._changed.notify_all()


class _OneThreadAProduct:
    """While any products run, BLAS uses one thread in each; the limit holds for the process."""

    def __init__(self) -> None:
        self._lock, self._users = threading.Lock(), 0
        self._limit: threadpool_limits | None = None

    def __enter__(self) -> None:
        with self._lock:
            if not self._users:
                self._limit = threadpool_limits(1, user_api="blas")
            self._users += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._users -= 1
            if not self._users and self._limit is not None:
                self._limit.restore_original_limits()


one_thread_a_product = _OneThreadAProduct()


def processors() -> int:
    """How many processors this process may use: of the machine, or of its control group."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        quota, period = (_CONTROL / "cpu.max").read_text().split()
        return max(1, min(count or 1, -(-int(quota) // int(period))))
    except (OSError, ValueError):  # no control groups, or no limit ("max")
        return count or 1


def parts_of(size: int, threads: int) -> list[slice]:
    """Coordinates 0 … size-1 dealt to as many parts as there are threads."""
    number = min(size, threads)
    edges = np.arange(number + 1) * size // number
    return [slice(int(a), int(b)) for a, b in itertools.pairwise(edges)]
