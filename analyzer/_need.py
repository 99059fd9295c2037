"""How much memory a run needs, known before it begins."""

from __future__ import annotations

from dataclasses import dataclass

from ._pipeline import AHEAD
from .groups import Groups
from .linearize import Linearization, Step
from .model import MemoryModel
from .sums import Plan, Size

_COPIES = 12  # of the weights and what is made of them: in files as they are read, in sessions


@dataclass(frozen=True)
class Need:
    """Bytes that a run holds at once; each term is an upper bound, measured in the tests."""

    layout: Plan
    delays: int
    sizes: dict[str, int]
    groups: Groups
    step: Step
    model: MemoryModel
    after: int  # what is made of the sums while they are held
    scratch: bool  # whether there is a folder for large totals
    volatile: bool = False  # whether it was not used, since its files would lie in memory
    sketch: int | None = None  # directions that are followed for each input
    chunk: int | None = None  # positions a call, if somebody asked for them

    @property
    def size(self) -> Size:
        """Of the sums."""
        cells = sum(self.sizes.values()) * self.step.embedding_size
        return Size.of(self.layout, self.groups, self.delays + 1, cells, self.step.dtype)

    @property
    def filed(self) -> bool:
        """Whether a temporary file holds the totals."""
        return self.scratch and self.size.filed

    def least(self) -> int:
        """What is known before the step is linearised."""
        proto = self.model.proto.ByteSize()
        table = self.model.vocabulary_size * self.step.embedding_size
        size, item = self.size, self.step.dtype.itemsize
        # Of what a file holds, the block at hand is in memory until it is let go.
        totals = size.totals // (self.layout.blocks + 1) if self.filed else size.totals
        # Whitening takes three tables in double precision; the file is parsed, cut, written out
        # and loaded.
        columns = min(self._columns, sum(self.sizes.values()))
        return (
            self._tangents(list(self.sizes), columns)
            + totals
            + max(size.staging, self.after)
            + table * (2 * item + 24)
            + 4 * proto
        )

    def whole(self, linear: Linearization, by_rows: bool = False) -> int:
        """With the states that are carried along, and the derivatives."""
        item = self.step.dtype.itemsize
        carried, wanted = linear.carried(list(self.sizes)), sum(self.sizes.values())
        least = min(self._columns, wanted)
        if by_rows:
            found = (self.delays + 1) * wanted * self.step.embedding_size * item
            more = self._tangents(carried, wanted) + found
        else:
            more = self._tangents(carried, self._columns)
        dense = sum(linear.dense())
        return (
            self.least()
            - self._tangents(list(self.sizes), least)
            + more
            # The batches that wait for the products, one as it comes and one being arranged.
            + (AHEAD + 3) * linear.batch * dense * item
            + linear.working
            + _COPIES * linear.model.ByteSize()
        )

    def with_streams(self, linear: Linearization, beside: int) -> int:
        """With streams side by side that hold `beside` here, instead of one."""
        least = min(self._columns, sum(self.sizes.values()))
        tangents = self._tangents(list(self.sizes), least)
        return self.least() - tangents + beside + _COPIES * linear.model.ByteSize()

    @property
    def _columns(self) -> int:
        """Of the embedding that are carried."""
        return self.sketch or self.step.embedding_size

    def _tangents(self, states: list[str], number: int) -> int:
        """Two buffers of so many columns or rows, and what the products hold besides."""
        width = sum(c.size for c in self.step.differentiable if c.name in states)
        return 4 * (self.delays + 1) * number * width * self.step.dtype.itemsize

    @property
    def advice(self) -> str:
        """What to ask less of."""
        disk = ""
        if self.volatile and self.size.filed:
            disk = "write the output to a folder that is not in memory (tmpfs), "
        chunk = "" if self.chunk is None else f"a smaller --chunk (now {self.chunk:,}), "
        return (
            f"Ask for {chunk}fewer --delays (now {self.delays}), one --state (now "
            f"{', '.join(self.sizes)}), fewer --blocks (now {self.layout.blocks}), {disk}or raise "
            "--memory."
        )
