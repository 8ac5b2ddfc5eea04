"""The lowered form of a pattern: bands, global tokens, and rules for the rest.

`lower` turns a union of intersections into that form, exactly: what is neither a band nor a set of
global tokens stays a rule, for backends that take predicates.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache, reduce
from typing import Any, Protocol

import torch

from lf_backend.pattern.bands import EVERYTHING, PAST, Band, Sees
from lf_backend.pattern.spans import Span, Spans, common, united


@dataclass(frozen=True)
class Tokens:
    """Global tokens: every pair with one of them as its query or as its key."""

    positions: tuple[int, ...]

    def sees(self, head: Any, query: Any, key: Any) -> Any:
        """Whether the pair has a global token; ints or tensors of ints that broadcast."""
        seen: Any = (head != head) | (query != query) | (key != key)  # False in the common shape
        for position in self.positions:
            seen = seen | (query == position) | (key == position)
        return seen

    def spans(self, head: int, first: int, last: int, m: int) -> Spans:
        """Keys, of `m`, that queries first .. last may see: all of them if one is a global token."""
        rows = any(first <= position <= last for position in self.positions)
        columns = (Span(position, position + 1, full=True) for position in self.positions)
        return united((*columns, Span(0, m * rows)), m)

    def traced(self, device: torch.device) -> Sees:
        return self.sees

    @property
    def bounded(self) -> bool:
        return True

    @property
    def per_head(self) -> bool:
        return False


class Form(Protocol):
    """One term in its lowered form: a `Band`, `Tokens`, or anything else that decides about pairs."""

    def sees(self, head: Any, query: Any, key: Any) -> Any:
        """Whether the pair is visible; tensors of ints that broadcast."""

    def spans(self, head: int, first: int, last: int, m: int) -> Spans:
        """Keys, of `m`, that queries first .. last may see."""

    def traced(self, device: torch.device) -> Sees:
        """`sees` for a compiler: arithmetic alone, its tables tensors on the device."""

    @property
    def bounded(self) -> bool:
        """Its spans are worth something: they are not all keys for want of a better answer."""

    @property
    def per_head(self) -> bool:
        """Heads differ."""


Conjunction = tuple[Form, ...]


@dataclass(frozen=True)
class Rule:
    """Pairs that all parts show."""

    parts: Conjunction

    def sees(self, head: Any, query: Any, key: Any) -> Any:
        return reduce(operator.and_, (part.sees(head, query, key) for part in self.parts))

    def traced(self, device: torch.device) -> Sees:
        first, *others = (part.traced(device) for part in self.parts)

        def shown(head: Any, query: Any, key: Any) -> Any:
            seen = first(head, query, key)  # no `reduce`: torch 2.10 does not trace it everywhere
            for part in others:
                seen = seen & part(head, query, key)
            return seen

        return shown

    def spans(self, head: int, first: int, last: int, m: int) -> Spans:
        return common((part.spans(head, first, last, m) for part in self.parts), m)

    @property
    def bounded(self) -> bool:
        return all(part.bounded for part in self.parts)

    @property
    def per_head(self) -> bool:
        return any(part.per_head for part in self.parts)


@dataclass(frozen=True)
class Lowered:
    """A pattern as kernels run it: the union of all fields.

    Attributes:
        bands: windows; a pair may lie in more than one and still counts once.
        positions: global tokens, sorted.
        causal_globals: the global tokens show and see only the past.
        others: rules for what is neither band nor global token.
    """

    bands: tuple[Band, ...]
    positions: tuple[int, ...]
    causal_globals: bool
    others: tuple[Rule, ...]

    @property
    def forms(self) -> tuple[Form, ...]:
        """Everything but global tokens."""
        return (*self.bands, *self.others)

    @property
    def everything(self) -> tuple[Form, ...]:
        """`forms`, and global tokens."""
        tokens = Tokens(self.positions)
        return (*self.forms, Rule((PAST, tokens)) if self.causal_globals else tokens)

    def pairs(self, n: int, m: int, head: int) -> int:
        """Visible pairs of one head, the queries being the last `n` of `m` positions."""
        return _pairs(self, n, m, head)

    @property
    def reach(self) -> int | None:
        """How many positions before a query it reaches, global tokens apart; None without a bound."""
        spans = [band.span()[0] for band in self.bands]
        if self.others or None in spans:
            return None
        return max([0, *(span for span in spans if span is not None)])  # no `default`: torch.compile reads it

    def window(self, m: int) -> int:
        """The most keys, of `m`, that one window shows a query."""
        return max((min(m, 1 + sum(band.clipped(m))) for band in self.bands), default=0)

    def covers(self, n: int, m: int) -> tuple[bool, bool]:
        """Whether one window shows every past key to each of the last `n` of `m` queries; and every key."""
        whole = [band.clipped(m) for band in self.bands if set(band.dilations) == {1}]
        past = [ahead for back, ahead in whole if back >= m - 1]
        return bool(past), any(ahead >= n - 1 for ahead in past)


def lower(union: Iterable[Conjunction]) -> Lowered:
    """Sort the intersections into bands, global tokens and the rest; exact, never approximate."""
    bands: list[Band] = []
    others: list[Rule] = []
    tokens: list[Tokens] = []
    causal_tokens: list[Tokens] = []
    for parts in union:
        band, rest = _intersected(parts)
        if band is not None and not rest:
            bands.append(band)
        elif band in (EVERYTHING, PAST) and len(rest) == 1 and isinstance(rest[0], Tokens):
            (causal_tokens if band == PAST else tokens).append(rest[0])
        else:
            others.append(Rule(parts))
    # The row of a causal global token sees exactly the past only if nothing shows it the future. A
    # term without positions counts: it stands for the global tokens that a call may bring.
    if others or tokens or any(band.right != 0 for band in bands):
        others.extend(Rule((PAST, some)) for some in causal_tokens if some.positions)
        causal_tokens = []
    positions = sorted({p for some in (*tokens, *causal_tokens) for p in some.positions})
    return Lowered(
        tuple(dict.fromkeys(bands)), tuple(positions), bool(positions and causal_tokens), tuple(others)
    )


def _intersected(parts: Conjunction) -> tuple[Band | None, list[Form]]:
    """All bands of an intersection as one, None if none is the same; and what is no band."""
    band: Band | None = EVERYTHING
    for part in parts:
        if band is not None and isinstance(part, Band):
            band = band.intersect(part)
    return band, [part for part in parts if not isinstance(part, Band)]


def looks_ahead(union: Iterable[Conjunction]) -> bool:
    """False if every intersection has a band that ends at the query itself."""
    return not all(any(isinstance(p, Band) and p.right == 0 for p in parts) for parts in union)


@lru_cache(maxsize=256)
def _pairs(lowered: Lowered, n: int, m: int, head: int) -> int:
    """Bands by counting queries for each distance, then global rows and columns, none twice."""
    offsets = {offset for band in lowered.bands for offset in band.offsets(head, m)}
    first = m - n
    total = sum(_queries_with(offset, first, m) for offset in offsets)
    rows = [p for p in lowered.positions if first <= p < m]
    for row in rows:
        total += row + 1 if lowered.causal_globals else m
        total -= sum(0 <= row + offset < m for offset in offsets)
    for column in lowered.positions:
        low = max(first, column) if lowered.causal_globals else first
        seeing = m - low - sum(low <= row for row in rows)
        total += seeing - _seen_already(column, low, m, offsets, rows)
    return total


def _queries_with(offset: int, first: int, m: int) -> int:
    """Queries i of [first, m) for which i + offset is a position."""
    return max(0, min(m, m - offset) - max(first, -offset))


def _seen_already(column: int, low: int, m: int, offsets: Iterable[int], rows: list[int]) -> int:
    """Queries of [low, m), global rows apart, to which a band shows `column`."""
    queries = {column - offset for offset in offsets if low <= column - offset < m}
    return len(queries.difference(rows))
