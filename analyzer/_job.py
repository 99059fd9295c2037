"""The shards of a plan, followed one after another or side by side on this machine."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

from ._checkpoint import later
from ._products import Products, Window
from ._rows import RowProducts, RowWindow
from ._shards import Carrier, Shard
from ._states import States, Stepper
from ._streams import Streams
from .corpus import Corpus
from .sums import Accumulator


@dataclass(frozen=True)
class Job:
    """The shards of a plan, and what they are followed with.

    Attributes:
        corpus: Token ids.
        shards: All of the plan's, in the order of the corpus.
        products: What follows them.
        sums: Where their Jacobians are added.
        stepper: Carries the states from shard to shard.
    """

    corpus: Corpus
    shards: list[Shard]
    products: Products | RowProducts | Streams
    sums: Accumulator
    stepper: Stepper

    def carrier(self, position: int = 0, states: States | None = None) -> Carrier:
        """The states along the corpus, known before `position`; default at its beginning."""
        return Carrier(self.stepper, self.corpus.ids, position, states)

    def advance(
        self, done: int, carrier: Carrier, progress: Callable[[int, int], None] | None = None
    ) -> Generator[tuple[int, int, States]]:
        """Follow all shards but the first `done`.

        Yields:
            After some shards: how many are done in all, a position, and the states before it.
        """
        before, total = (sum(s.steps for s in part) for part in (self.shards[:done], self.shards))
        while done < len(self.shards):
            some = self.shards[done : done + self.at_once]
            self.follow(some, carrier, later(progress, before, total))
            before += sum(shard.steps for shard in some)
            done += len(some)
            yield done, *carrier.known

    def follow(
        self,
        shards: Sequence[Shard],
        carrier: Carrier,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Follow some shards, one after another, and move their sums to the totals.

        Args:
            shards: In the order of the corpus.
            carrier: The states before the first.
            progress: Called with steps done and in all.
        """
        before, total = 0, sum(shard.steps for shard in shards)
        for low in range(0, len(shards), self.at_once):
            some = shards[low : low + self.at_once]
            for done in self.side_by_side(some, carrier):
                if progress:
                    progress(before + done, total)
            self.sums.flush()
            before += sum(shard.steps for shard in some)

    @property
    def at_once(self) -> int:
        """How many shards are followed side by side: only after so many are the sums whole."""
        return self.products.count if isinstance(self.products, Streams) else 1

    def side_by_side(self, some: Sequence[Shard], carrier: Carrier) -> Generator[int]:
        """Follow so many shards; yields time steps done, of all together."""
        if isinstance(self.products, Streams):
            starts = [carrier.at(shard.begin) for shard in some]
            yield from self.products.run(self.corpus.ids, some, starts, self.sums)
            return
        (shard,) = some
        tokens = self.corpus.ids[shard.begin : shard.read]
        start, keep = carrier.at(shard.begin), shard.end - shard.begin
        yield from self.products.run(tokens, start, self._visit, shard.begin, shard.follow, keep)
        if self.products.kept is not None:
            carrier.know(shard.end, self.products.kept)

    def _visit(self, window: Window | RowWindow) -> None:
        if isinstance(window, RowWindow):
            self.sums.add_input(window.position, window.jacobians, window.part)
        else:
            self.sums.add(window.time, window.inputs, window.jacobians, window.part,
                          window.directions)  # fmt: skip
