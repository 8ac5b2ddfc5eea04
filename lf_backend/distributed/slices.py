"""Whose positions are whose, and who needs them: arithmetic of contiguous slices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True)
class Route:
    """The way of a tensor [B, H, X, D] along its third dimension, for one rank.

    Attributes:
        sends: first and end, for each rank, of what it gets.
        counts: how many come from each rank.
    """

    sends: tuple[tuple[int, int], ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Slices:
    """A sequence cut into one contiguous slice for each rank.

    Attributes:
        sizes: positions of each rank; some may have none.
        starts: where each slice begins.
        length: positions of all.
    """

    sizes: tuple[int, ...]

    @property
    def starts(self) -> tuple[int, ...]:
        return tuple(accumulate(self.sizes, initial=0))[:-1]

    @property
    def length(self) -> int:
        return sum(self.sizes)

    def range_of(self, rank: int) -> range:
        """Return the positions of a rank."""
        start = self.starts[rank]
        return range(start, start + self.sizes[rank])

    @property
    def ranges(self) -> tuple[range, ...]:
        """The positions of every rank."""
        return tuple(map(self.range_of, range(len(self.sizes))))

    def reach_of(self, rank: int, back: int, ahead: int) -> range:
        """Return the positions whose keys the queries of a rank see; none for a rank without queries."""
        own = self.range_of(rank)
        if not own:
            return own
        return range(max(0, own.start - back), min(self.length, own.stop + ahead))

    def halo(self, rank: int, reaches: Sequence[range]) -> Route:
        """Return the way of keys to all other ranks that reach them."""
        own, none = self.range_of(rank), range(0)
        needed = [none if other == rank else common(own, reach) for other, reach in enumerate(reaches)]
        sends = tuple((part.start - own.start, part.stop - own.start) if part else (0, 0) for part in needed)
        counts = (0 if i == rank else len(common(x, reaches[rank])) for i, x in enumerate(self.ranges))
        return Route(sends, tuple(counts))


def covering(parts: Sequence[range]) -> range:
    """Return the range from the first to the last position of any of some ranges."""
    some = [part for part in parts if part] or [parts[0]]
    return range(min(part.start for part in some), max(part.stop for part in some))


def gathering(counts: tuple[int, ...], rank: int) -> Route:
    """Return the way of all that each rank has, to all."""
    return Route(((0, counts[rank]),) * len(counts), counts)


def returning(counts: tuple[int, ...], rank: int) -> Route:
    """Return the way of what each rank has for all that was gathered, to whom it came from."""
    starts = Slices(counts).starts
    sends = tuple((start, start + count) for start, count in zip(starts, counts, strict=True))
    return Route(sends, (counts[rank],) * len(counts))


def common(one: range, other: range) -> range:
    """Return what two ranges of positions share; an empty range that lies within the first if nothing."""
    start = min(max(one.start, other.start), one.stop)
    return range(start, max(start, min(one.stop, other.stop)))
