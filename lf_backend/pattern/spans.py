"""Ranges of keys that a block of queries may see: what a term of a pattern gives instead of a mask.

A list of spans is an upper bound: what lies outside is seen by no query of the block. A span that is
`full` is seen by all of them, so that it needs no mask.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple


class Span(NamedTuple):
    """Keys start .. stop - 1; with `full`, every query of the block sees every one of them."""

    start: int
    stop: int
    full: bool = False


Spans = tuple[Span, ...]  # disjoint and sorted, where a function of this module returns them


def united(spans: Iterable[Span], m: int) -> Spans:
    """Unite spans of `m` keys; they may overlap."""
    return _covered(spans, 1, m)


def common(lists: Iterable[Spans], m: int) -> Spans:
    """Intersect lists of spans of `m` keys; within a list, spans are disjoint."""
    parts = list(lists)
    return _covered((span for spans in parts for span in spans), len(parts), m)


def bridged(spans: Spans, gap: int) -> Spans:
    """Spans less than `gap` apart as one, so that there are few."""
    found: list[Span] = []
    for span in spans:
        if found and 0 < span.start - found[-1].stop < gap:
            span = Span(found.pop().start, span.stop)
        found.append(span)
    return tuple(found)


def _covered(spans: Iterable[Span], times: int, m: int) -> Spans:
    """Return where `times` of the spans lie, full where so many full ones do."""
    changes: dict[int, list[int]] = {}
    for start, stop, full in spans:
        start, stop = max(start, 0), min(stop, m)
        if start < stop:
            for edge, sign in ((start, 1), (stop, -1)):
                change = changes.setdefault(edge, [0, 0])
                change[0] += sign
                change[1] += sign * full
    found: list[Span] = []
    some = every = 0
    for start, stop in pairwise(sorted(changes)):
        some, every = some + changes[start][0], every + changes[start][1]
        if some < times:
            continue
        full = every >= times
        if found and found[-1].stop == start and found[-1].full == full:
            start = found.pop().start
        found.append(Span(start, stop, full))
    return tuple(found)
