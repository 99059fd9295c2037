"""What a way of computing the Jacobians offers to be compared and timed."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod

import numpy as np

from .shapes import FIRST, Job


class Unavailable(Exception):
    """This peer cannot run here; the message says why."""


class Peer(ABC):
    """One way of summing the Jacobians of all states by the embedding at every delay.

    Attributes:
        multiple: What the number of positions must be a multiple of.
    """

    multiple = 1

    def __init__(self, job: Job) -> None:
        self.job = job

    @abstractmethod
    def sums(self, start: int, stop: int) -> dict[str, np.ndarray]:
        """State → ``[delay, H, E]``, summed over the inputs from `start` to before `stop`."""

    def seconds(self, positions: int) -> float:
        """How long the sums over so many positions take."""
        began = time.perf_counter()
        self.sums(FIRST, FIRST + positions)
        return time.perf_counter() - began
