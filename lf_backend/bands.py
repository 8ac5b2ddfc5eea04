"""The lowered form of a pattern: bands and global tokens. Window arithmetic lives here and only here.

A band counts in *steps*: in the residue class of positions r, r + d, r + 2d, ... a window dilated by d
is a plain sliding window, so `key_range` and its transpose `query_range` know nothing of dilation.

`lower` turns a union of intersections into that form, exactly: what is neither a band nor a set of
global tokens stays a rule, for backends that take predicates.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache, reduce
from typing import Any, Protocol

import torch

from lf_backend.constants import on_device
from lf_backend.spans import Span, Spans, common, united

Sees = Callable[[Any, Any, Any], Any]  # (head, query, key) -> bool


@dataclass(frozen=True)
class Band:
    """Position i sees i + d * m for -left <= m <= right; d is `dilations[head]`, or the only one.

    `left` and `right` are None where there is no limit.
    """

    left: int | None
    right: int | None
    dilations: tuple[int, ...]

    def dilation(self, head: int) -> int:
        return self.dilations[head] if len(self.dilations) > 1 else self.dilations[0]

    def at(self, head: int) -> Band:
        """The band of one head."""
        return Band(self.left, self.right, (self.dilation(head),))

    def of_heads(self, heads: slice) -> Band:
        """The band of some heads."""
        return self if len(self.dilations) == 1 else Band(self.left, self.right, self.dilations[heads])

    def taps(self) -> int | None:
        """left + right + 1, or None without a limit."""
        if self.left is None or self.right is None:
            return None
        return self.left + self.right + 1

    def span(self) -> tuple[int | None, int | None]:
        """Reach in positions, back and ahead, of the head that reaches farthest."""
        widest = max(self.dilations)
        left = None if self.left is None else self.left * widest
        return left, None if self.right is None else self.right * widest

    def clipped(self, length: int) -> tuple[int, int]:
        """Left and right reach in steps, no larger than a class of `length` steps can use."""
        most = max(length - 1, 0)
        left = most if self.left is None else min(self.left, most)
        return left, most if self.right is None else min(self.right, most)

    def key_range(self, start: int, stop: int, length: int) -> tuple[int, int]:
        """Steps [low, high), of `length`, that queries at steps [start, stop) see between them."""
        left, right = self.clipped(length)
        return max(start - left, 0), min(stop + right, length)

    def query_range(self, start: int, stop: int, length: int) -> tuple[int, int]:
        """Steps [low, high), of `length`, whose queries see keys at steps [start, stop)."""
        left, right = self.clipped(length)
        return max(start - right, 0), min(stop + left, length)

    def keys_of(self, query: int, m: int) -> range:
        """Positions, of `m`, that `query` sees through a band of one dilation."""
        return self._positions(self.key_range, query, m)

    def queries_of(self, key: int, m: int) -> range:
        """Positions, of `m`, that see `key` through a band of one dilation."""
        return self._positions(self.query_range, key, m)

    def _positions(self, steps: Callable[[int, int, int], tuple[int, int]], at: int, m: int) -> range:
        step, residue = divmod(at, self.dilations[0])
        low, high = steps(step, step + 1, class_length(m, residue, self.dilations[0]))
        return range(residue + low * self.dilations[0], residue + high * self.dilations[0], self.dilations[0])

    def sees(self, head: Any, query: Any, key: Any) -> Any:
        """Whether the pair is in the band; ints or tensors of ints that broadcast."""
        return self.shows(key - query, self._dilation_of(head)) | (head != head)

    def shows(self, distance: Any, dilation: Any) -> Any:
        """Whether a key at that distance is in the band of a head with that dilation."""
        seen = distance % dilation == 0
        if self.left is not None:
            seen = seen & (distance >= -self.left * dilation)
        if self.right is not None:
            seen = seen & (distance <= self.right * dilation)
        return seen

    def touches(self, head: int, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
        """Whether any distance key - query of low .. high is in the band; int tensors of one shape."""
        dilation = self.dilation(head)
        if self.left is not None:
            low = low.clamp(min=-self.left * dilation)
        if self.right is not None:
            high = high.clamp(max=self.right * dilation)
        return high // dilation * dilation >= low

    def spans(self, head: int, first: int, last: int, m: int) -> Spans:
        """Keys, of `m`, that queries first .. last may see; all see what the ends of a block agree on."""
        step = self.dilation(head)
        back, ahead = (m if reach is None else reach * step for reach in (self.left, self.right))
        near = Span(last - back, first + ahead + 1, full=True) if step == 1 else Span(0, 0)
        return united((Span(first - back, last + ahead + 1), near), m)

    @property
    def bounded(self) -> bool:
        return True

    @property
    def per_head(self) -> bool:
        return len(set(self.dilations)) > 1

    def traced(self, device: torch.device) -> Sees:
        if not self.per_head:
            return lambda head, query, key: self.shows(key - query, self.dilations[0])
        dilations = on_device(self.dilations, torch.int64, device)
        return lambda head, query, key: self.shows(key - query, dilations[head])

    def _dilation_of(self, head: Any) -> Any:
        if len(self.dilations) > 1 and isinstance(head, torch.Tensor):
            return torch.tensor(self.dilations, device=head.device)[head]
        return self.dilation(head)

    def intersect(self, other: Band) -> Band | None:
        """Exactly the common pairs, or None where the heads would differ in reach.

        Common distances are multiples of the least common multiple of the two dilations.
        """
        heads = range(max(len(self.dilations), len(other.dilations)))
        steps = tuple(math.lcm(self.dilation(head), other.dilation(head)) for head in heads)
        left = {_common_reach(self, other, "left", head, steps[head]) for head in heads}
        right = {_common_reach(self, other, "right", head, steps[head]) for head in heads}
        if len(left) > 1 or len(right) > 1:
            return None
        return Band(left.pop(), right.pop(), steps)

    def offsets(self, head: int, m: int) -> set[int]:
        """Every key - query of the band that fits into `m` positions."""
        dilation = self.dilation(head)
        left, right = self.clipped(-(-m // dilation))
        return {step * dilation for step in range(-left, right + 1)}


def _common_reach(one: Band, two: Band, side: str, head: int, step: int) -> int | None:
    reaches = [(getattr(band, side), band.dilation(head)) for band in (one, two)]
    spans = [reach * dilation for reach, dilation in reaches if reach is not None]
    return min(spans) // step if spans else None


def class_length(m: int, residue: int, dilation: int) -> int:
    """How many of the positions 0 .. m - 1 are congruent to `residue` modulo `dilation`."""
    return max(0, -(-(m - residue) // dilation))


EVERYTHING = Band(None, None, (1,))
PAST = Band(None, 0, (1,))  # and self


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
    """What a single term of a pattern is made of: a `Band`, `Tokens`, or anything else that decides."""

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
