"""Heads that can be computed together."""

from __future__ import annotations

from collections.abc import Callable, Iterator


def head_runs(
    heads: int, kv_heads: int, alike: Callable[[int, int], bool], most: Callable[[int], int] = int
) -> Iterator[tuple[slice, slice]]:
    """Yield runs of heads that are alike, and the heads of their keys.

    A run is whole groups of heads that share keys, or lies within one.

    Args:
        alike: whether two heads may be in one run.
        most: of so many whole groups, how many to take at once; all of them by default.
    """
    group = heads // kv_heads
    start = 0
    while start < heads:
        end = start + 1
        while end < heads and alike(start, end):
            end += 1
        if start % group or end - start < group:
            stop = min(end, (start // group + 1) * group)
        else:
            stop = start + most((end - start) // group) * group
        yield slice(start, stop), slice(start // group, (stop - 1) // group + 1)
        start = stop
