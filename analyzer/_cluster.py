"""Processes that share work, through Dask: those of a scheduler, or some on this machine."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from . import _memory
from ._products import processors
from .errors import MnemoscopeError, ResourceError

if TYPE_CHECKING:
    from distributed import Client, Future

T = TypeVar("T")

_PATIENCE = 20.0  # seconds that a scheduler has to answer, and its first worker to be there
_DEATHS = 3  # workers that may end over one task before it is given up


@dataclass(frozen=True)
class Cluster:
    """Where work goes.

    Attributes:
        scheduler: Address of a Dask scheduler; None means processes on this machine.
        workers: How many of those; None with a scheduler.
    """

    scheduler: str | None
    workers: int | None

    @property
    def threads(self) -> int:
        """How many a task uses; a worker of a scheduler has a task for each of its own."""
        return max(1, processors() // self.workers) if self.workers else 1


def cluster_of(scheduler: str | None, workers: int | None) -> Cluster | None:
    """The cluster that was asked for, if any.

    Raises:
        MnemoscopeError: Both were given, or there is less than one worker, or Dask is missing.
    """
    if scheduler is None and workers is None:
        return None
    if scheduler is not None and workers is not None:
        raise MnemoscopeError(
            "A scheduler has workers of its own; give --scheduler or --workers, not both."
        )
    if workers is not None and workers < 1:
        raise MnemoscopeError(f"The number of workers must be 1 or more, not {workers}.")
    try:
        import cryptography  # noqa: F401  # for the keys between local processes
        import distributed  # noqa: F401
    except ImportError as error:
        raise MnemoscopeError(
            f"Work is shared through Dask, which is not installed ({error}): "
            "pip install 'mnemoscope[distributed]'."
        ) from error
    return Cluster(scheduler, workers)


@contextmanager
def connected(cluster: Cluster) -> Iterator[Client]:
    """A client of the cluster, whose workers have what they need.

    Raises:
        ResourceError: The scheduler does not answer or has no worker, or libraries differ.
    """
    with (_local if cluster.workers else _remote)(cluster) as client:
        _check_libraries(client)
        yield client


@contextmanager
def _local(cluster: Cluster) -> Iterator[Client]:
    from distributed import Client, LocalCluster, Security

    class Local(LocalCluster):
        """Nothing is closed at the program's exit, which a half-started cluster would disturb.

        Its processes end with this one.
        """

        shutdown_on_close = property(lambda self: False, lambda self, asked: None)

    workers = cluster.workers or 1
    with (
        Local(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            # Whoever can connect can run code, and on a shared machine everybody could.
            security=Security.temporary(),
            dashboard_address="127.0.0.1:0",  # of any free port: two clusters may run
            memory_limit=_memory.available() // workers,
            scheduler_kwargs={"allowed_failures": _DEATHS - 1},
            silence_logs=logging.CRITICAL,
        ) as made,
        Client(made, set_as_default=False) as client,
    ):
        yield client


@contextmanager
def _remote(cluster: Cluster) -> Iterator[Client]:
    from distributed import Client

    address = cluster.scheduler or ""
    try:
        client = Client(address, timeout=_PATIENCE, set_as_default=False)
    except Exception as error:  # of the address, of the network, of the protocol, of certificates
        raise ResourceError(
            f"Expected a Dask scheduler at {address}, such as tcp://host:8786; none answered "
            f"({_said(error)}). Start one with dask scheduler, or use --workers."
        ) from error
    with client:
        since = time.monotonic()
        while not client.nthreads():
            if time.monotonic() - since > _PATIENCE:
                raise ResourceError(
                    f"The scheduler at {address} has no workers. Start some with: "
                    f"dask worker {address} --nthreads 1"
                )
            time.sleep(0.1)
        yield client


def _check_libraries(client: Client) -> None:
    """Refuse workers whose libraries would compute something else, or nothing."""
    from ._identity import versions

    here = versions()
    found = {"the scheduler": _asked(client.run_on_scheduler, versions)}
    there = _asked(client.run, versions, on_error="return")
    found |= {f"the worker {k}": v for k, v in there.items()} if isinstance(there, dict) else {}
    for who, has in found.items():
        if not isinstance(has, dict):
            raise ResourceError(
                f"Mnemoscope {here['mnemoscope']} does not run on {who} ({_said(has)}). Install "
                "mnemoscope[distributed] there, in the version that is here."
            )
        for name in here.keys() | has.keys():
            if here.get(name) != has.get(name):
                raise ResourceError(
                    f"Versions differ: {name} is {here.get(name, 'missing')} here and "
                    f"{has.get(name, 'missing')} on {who}. Install the same."
                )


def _asked(ask: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """What a process answers, or the error that it met."""
    try:
        return ask(*arguments, **options)
    except Exception as error:
        return error


def _said(error: object) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def in_order(client: Client, tasks: Iterator[T]) -> Iterator[T]:
    """What is submitted one after another, in that order, done or not.

    No more are submitted than keep the workers busy, so that few results wait.
    """
    waiting: deque[T] = deque()
    for task in tasks:
        waiting.append(task)
        if len(waiting) > 2 * sum(client.nthreads().values()) + 1:
            yield waiting.popleft()
    while waiting:
        yield waiting.popleft()


def over(task: Future, seconds: float) -> bool:
    """Wait a little; whether a task has ended, well or not."""
    until = time.monotonic() + seconds
    while not task.done():
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True


def result_of(task: Future, what: str) -> Any:
    """The result of a task; what becomes of it otherwise is an error that says `what` it was.

    Raises:
        MnemoscopeError: As the task raised it, or the workers ended over the task, or the
            scheduler is gone.
    """
    from distributed import KilledWorker
    from distributed.comm import CommClosedError

    try:
        return task.result()
    except KilledWorker as error:
        raise ResourceError(
            f"{what[0].upper()}{what[1:]} ended {error.allowed_failures + 1} workers one after "
            "another, as too little memory does, or a model that crashes ONNX Runtime. Ask for "
            "less (fewer --delays, one --state), or use fewer --workers."
        ) from error
    except ImportError as error:  # of a worker that came later
        raise ResourceError(
            f"A worker cannot do {what} ({_said(error)}). Install mnemoscope[distributed] there, "
            "in the version that is here."
        ) from error
    except (CancelledError, CommClosedError) as error:
        raise ResourceError(
            f"The scheduler went away during {what}. Start it and the command again."
        ) from error
