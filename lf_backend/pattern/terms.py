"""The terms of a pattern, their algebra, and the one definition of visibility.

A pattern is a value: frozen, hashable, comparable, without tensors and without a device. Everything
else in the library (backends, drawings, FLOP counts, tests) is derived from two of its members:

- `Pattern.sees(head, query, key)` says whether a pair is visible. It is *the* definition.
- `Pattern.lowered` is the same set of pairs as bands + global tokens, the form that kernels run.
  What cannot be written so is kept in `Lowered.others` and needs a backend that takes predicates.

Terms are those of Longformer (Beltagy et al. 2020, arXiv 2004.05150, section 3.1). Positions are
absolute: with more keys than queries, the queries are the last positions of the sequence.
"""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property, reduce
from itertools import product
from typing import Any

import torch

from lf_backend._integers import integer
from lf_backend.errors import PatternError
from lf_backend.pattern import block_map
from lf_backend.pattern.bands import PAST, Band
from lf_backend.pattern.interchange import Interchange
from lf_backend.pattern.lowered import Conjunction, Form, Lowered, Tokens, looks_ahead, lower

Index = Any  # an int, or a tensor of ints that broadcasts with the other indices

BLOCK = 1 << 24  # pairs that a count looks at in one step


class Pattern(Interchange, ABC):
    """Base of all terms. Combine with `|` (union) and `&` (intersection).

    Attributes:
        text: the pattern as one short string; `lf_backend.parse` reads it back.
        lowered: the same pairs as bands, global tokens and what is neither.
        lowered_with_globals: `lowered` for a call that brings global tokens of its own.
        is_causal: `Causal()` is laid over all of it, and so over the global tokens of a call as well. A
            window that ends at the query does not say so: its global tokens see and show all.
        looks_ahead: some visible pair may have its key ahead of its query.
        global_positions: every global position that the pattern names, sorted.
    """

    text: str
    lowered: Lowered
    lowered_with_globals: Lowered
    is_causal: bool
    looks_ahead: bool
    global_positions: tuple[int, ...]

    def __post_init__(self) -> None:
        # Derived at once and not when first read, so that torch.compile has only attributes to read.
        union = self.conjunctions()
        tokens = (form for parts in union for form in parts if isinstance(form, Tokens))
        positions = sorted({position for form in tokens for position in form.positions})
        object.__setattr__(self, "text", self._write())
        object.__setattr__(self, "lowered", lower(union))
        object.__setattr__(self, "is_causal", self._is_cut())
        # Exactly `pattern | Global()`, but under `Causal()`, which is laid over what joins it too.
        beside = union if self.is_causal else (*union, (Tokens(()),))
        object.__setattr__(self, "lowered_with_globals", lower(beside))
        object.__setattr__(self, "looks_ahead", looks_ahead(union))
        object.__setattr__(self, "global_positions", tuple(positions))

    def __getstate__(self) -> dict[str, Any]:
        written = (field.name for field in fields(self) if field.init)  # type: ignore[arg-type]
        return {name: getattr(self, name) for name in written}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.__post_init__()

    @cached_property
    def past(self) -> Pattern:
        """`self & Causal()`, made once: a layer that decodes asks for it at every step."""
        return intersection(self, Causal())

    def __or__(self, other: Pattern) -> Pattern:
        return union(self, other) if isinstance(other, Pattern) else NotImplemented

    def __and__(self, other: Pattern) -> Pattern:
        return intersection(self, other) if isinstance(other, Pattern) else NotImplemented

    @abstractmethod
    def sees(self, head: Index, query: Index, key: Index) -> Any:
        """Whether `query` sees `key` in `head`: bool for ints, a bool tensor for tensors."""

    @abstractmethod
    def conjunctions(self) -> tuple[Conjunction, ...]:
        """The pattern as a union of intersections of single terms (disjunctive normal form)."""

    @property
    @abstractmethod
    def heads(self) -> int | None:
        """Number of heads the pattern is written for, None when it is the same for all."""

    @abstractmethod
    def _write(self) -> str:
        """The text."""

    @abstractmethod
    def _is_cut(self) -> bool:
        """Whether `Causal()` is laid over all of it."""

    def visible(self, query: int, key: int, head: int = 0) -> bool:
        """Whether position `query` sees position `key` in `head`; all count from 0.

        Raises:
            PatternError: a negative position, or a head that the pattern does not have.
        """
        head = integer("head", head, 0, self.heads)
        return bool(self.sees(head, integer("query", query, 0), integer("key", key, 0)))

    def mask(self, n: int, m: int | None = None, heads: int | None = None) -> torch.Tensor:
        """The dense mask, bool [heads, n, m], True where visible. For tests, drawings, small inputs.

        Args:
            n: number of queries, the last `n` of the `m` positions.
            m: number of keys, `n` if not given.
            heads: number of heads; if not given, as many as the pattern distinguishes (else 1).

        Raises:
            PatternError: more queries than keys, a global position beyond the keys, or a number of
                heads that is not the pattern's.
        """
        m, heads = self.extent(n, m, heads)
        return self._rows(range(m - n, m), m, heads)

    def pairs(self, n: int, m: int | None = None, heads: int | None = None) -> int:
        """Number of visible (query, key) pairs over all heads, in time linear in the reach.

        Useful FLOPs of a forward pass are `4 * head_dim * batch * pairs`. Arguments and errors as in
        `mask`. Patterns with predicates are counted pair by pair, in bounded memory.
        """
        m, heads = self.extent(n, m, heads)
        if self.lowered.others:
            step = max(1, BLOCK // max(1, m * heads))
            blocks = (range(at, min(at + step, m)) for at in range(m - n, m, step))
            return sum(int(self._rows(block, m, heads).sum()) for block in blocks)
        if self.heads is None:
            return heads * self.lowered.pairs(n, m, head=0)
        return sum(self.lowered.pairs(n, m, head=head) for head in range(heads))

    def check(self, n: int, m: int | None = None, heads: int | None = None) -> None:
        """Look at every pair for what a predicate can get wrong. For tests: time n x m, bounded memory.

        Arguments as in `mask`.

        Raises:
            PatternError: bounds that the rule contradicts, a rule whose answer for a pair depends on
                more than the pair, or a pattern that shows nothing at all.
        """
        m, heads = self.extent(n, m, heads)
        for rule in self.lowered.others:
            for head in range(heads if rule.per_head else 1):
                block_map.check(rule, head, n, m)
        if n and not self.pairs(n, m, heads):
            raise PatternError(f"a pattern that shows something wanted, got no pair of {n} x {m}: {self}")

    def key_range(self, query: int, m: int, head: int = 0) -> range:
        """Keys, of `m`, that the only window shows to `query`: `range(first, last + 1, dilation)`.

        Raises:
            PatternError: no or several windows, a query outside the `m` positions, no such head.
        """
        return self._only_band(head).keys_of(integer("query", query, 0, m), m)

    def query_range(self, key: int, m: int, head: int = 0) -> range:
        """Queries, of `m` positions, to which the only window shows `key`: `key_range` transposed."""
        return self._only_band(head).queries_of(integer("key", key, 0, m), m)

    def check_heads(self, heads: int) -> None:
        """Raise PatternError unless the pattern can be used with that many heads."""
        if self.heads is not None and self.heads != heads:
            raise PatternError(f"dilation: one int per head wanted, {heads} heads, got {self.heads} values")

    def check_positions(self, m: int) -> None:
        """Raise PatternError if a global position lies outside `m` keys."""
        last = max(self.global_positions, default=-1)
        if last >= m:
            raise PatternError(f"global position < {m} (the number of keys) wanted, got {last}")

    def extent(self, n: int, m: int | None, heads: int | None) -> tuple[int, int]:
        """Number of keys and of heads, checked."""
        m = n if m is None else m
        if not 0 <= n <= m:
            raise PatternError(f"0 <= n <= m wanted (queries are the last positions), got n={n}, m={m}")
        self.check_positions(m)
        heads = (self.heads or 1) if heads is None else heads
        self.check_heads(heads)
        return m, heads

    def _rows(self, queries: range, m: int, heads: int) -> torch.Tensor:
        """The mask of some queries, bool [heads, len(queries), m]."""
        head = torch.arange(heads)[:, None, None]
        query = torch.arange(queries.start, queries.stop)[None, :, None]
        return torch.as_tensor(self.sees(head, query, torch.arange(m)[None, None, :]))

    def _only_band(self, head: int) -> Band:
        bands = self.lowered.bands
        if len(bands) != 1:
            raise PatternError(f"a pattern with exactly one window wanted, got {len(bands)}: {self}")
        return bands[0].at(integer("head", head, 0, self.heads))

    def __str__(self) -> str:
        return self.text


class Term(Pattern):
    """A pattern of one form, the same for all heads: neither a union nor an intersection."""

    @property
    @abstractmethod
    def form(self) -> Form:
        """Return the lowered form of the term."""

    def sees(self, head: Index, query: Index, key: Index) -> Any:
        return self.form.sees(head, query, key)

    def conjunctions(self) -> tuple[Conjunction, ...]:
        return ((self.form,),)

    @property
    def heads(self) -> int | None:
        return None

    def _is_cut(self) -> bool:
        return False


@dataclass(frozen=True)
class Window(Term):
    """Sliding window: position i sees i + dilation * m for -left <= m <= right.

    Reach counts dilated steps, as in the paper: left + right + 1 keys, self included. Keys outside
    the sequence are dropped; the window is not shifted at the edges.

    Args:
        left: steps back, int >= 0, or None for no limit.
        right: steps ahead, int >= 0, or None for no limit.
        dilation: step between keys, int >= 1, or one int per query head.

    Raises:
        PatternError: anything else, saying what was wanted and what came.
    """

    left: int | None
    right: int | None
    dilation: int | tuple[int, ...] = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "left", _reach("left", self.left))
        object.__setattr__(self, "right", _reach("right", self.right))
        object.__setattr__(self, "dilation", _dilation(self.dilation))
        super().__post_init__()

    @classmethod
    def causal(cls, n: int, dilation: int | Sequence[int] = 1) -> Window:
        """The last `n` keys, self included, and nothing ahead.

        That is the window alone: global tokens beside it see and show what is ahead of them, as with
        every window. `(Window.causal(n) | Global(0)) & Causal()` cuts them too, and
        `Window.causal(n) & Causal()` those of a `global_mask`.
        """
        return cls(integer("n", n, 1) - 1, 0, _dilation(dilation))

    @classmethod
    def of(cls, band: Band) -> Window:
        """The window that a band of a lowered pattern is."""
        return cls(band.left, band.right, band.dilations if len(band.dilations) > 1 else band.dilations[0])

    @property
    def form(self) -> Band:
        return Band(self.left, self.right, _tuple(self.dilation))

    def _write(self) -> str:
        words = [str(reach).lower() for reach in (self.left, self.right)]
        if isinstance(self.dilation, tuple):
            words.append(f"dilation={list(self.dilation)}")
        elif self.dilation != 1:
            words.append(f"dilation={self.dilation}")
        return f"window({', '.join(words)})"

    @property
    def heads(self) -> int | None:
        return len(self.dilation) if isinstance(self.dilation, tuple) else None


@dataclass(frozen=True, init=False)
class Global(Term):
    """Global tokens: seen by all (a column of the mask) and seeing all (a row).

    `Global()` names no position: the place-holder for globals given per example as `global_mask`.

    Raises:
        PatternError: a position that is no int or is negative.
    """

    positions: tuple[int, ...]

    def __init__(self, *positions: int) -> None:
        found = {integer("global position", position, 0) for position in positions}
        object.__setattr__(self, "positions", tuple(sorted(found)))
        super().__post_init__()

    @property
    def form(self) -> Tokens:
        return Tokens(self.positions)

    def _write(self) -> str:
        return f"global({', '.join(map(str, self.positions))})"


@dataclass(frozen=True)
class Causal(Term):
    """The past and self. As `pattern & Causal()` it cuts everything ahead, globals too.

    Also those of a call's `global_mask`: they join the pattern under `Causal()`.
    """

    @property
    def form(self) -> Band:
        return PAST

    def _write(self) -> str:
        return "causal()"

    def _is_cut(self) -> bool:
        return True


@dataclass(frozen=True)
class _Joined(Pattern):
    """Several terms of one number of heads."""

    terms: tuple[Pattern, ...]

    def __post_init__(self) -> None:
        _ = self.heads  # raises where the terms disagree
        super().__post_init__()

    @property
    def heads(self) -> int | None:
        counts = sorted({term.heads for term in self.terms if term.heads is not None})
        if len(counts) > 1:
            raise PatternError(f"dilation: one number of heads in all terms wanted, got {counts}")
        return counts[0] if counts else None


@dataclass(frozen=True)
class Union(_Joined):
    """Pairs that any term shows; written `a | b`."""

    def sees(self, head: Index, query: Index, key: Index) -> Any:
        return reduce(operator.or_, (term.sees(head, query, key) for term in self.terms))

    def _write(self) -> str:
        return " | ".join(term.text for term in self.terms)

    def conjunctions(self) -> tuple[Conjunction, ...]:
        return tuple(parts for term in self.terms for parts in term.conjunctions())

    def _is_cut(self) -> bool:
        return all(term.is_causal for term in self.terms)


@dataclass(frozen=True)
class Intersection(_Joined):
    """Pairs that all terms show; written `a & b`."""

    def sees(self, head: Index, query: Index, key: Index) -> Any:
        return reduce(operator.and_, (term.sees(head, query, key) for term in self.terms))

    def _write(self) -> str:
        return " & ".join(f"({term})" if isinstance(term, Union) else term.text for term in self.terms)

    def conjunctions(self) -> tuple[Conjunction, ...]:
        choices = product(*(term.conjunctions() for term in self.terms))
        return tuple(tuple(form for parts in choice for form in parts) for choice in choices)

    def _is_cut(self) -> bool:
        return any(term.is_causal for term in self.terms)


def union(*patterns: Pattern) -> Pattern:
    """Unite one or more patterns: `a | b | c` shows what any of them shows."""
    terms = _flat(Union, *patterns)
    return Union(tuple(terms)) if len(terms) > 1 else terms[0]


def intersection(*patterns: Pattern) -> Pattern:
    """Intersect one or more patterns: `a & b & c` shows what all of them show.

    Under `Causal()` a window has `right` 0; `Causal()` stays, as it says something of global tokens.
    """
    terms = _flat(Intersection, *patterns)
    rest = [term for term in terms if not isinstance(term, Causal)]
    if len(rest) < len(terms):
        rest = [Window(t.left, 0, t.dilation) if isinstance(t, Window) else t for t in rest]
        rest.append(Causal())
    return Intersection(tuple(rest)) if len(rest) > 1 else rest[0]


def _flat(kind: type[_Joined], *patterns: Pattern) -> list[Pattern]:
    parts = (pattern.terms if isinstance(pattern, kind) else (pattern,) for pattern in patterns)
    return [term for terms in parts for term in terms]


def _tuple(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else (value,)


def _reach(name: str, value: Any) -> int | None:
    return None if value is None else integer(name, value, 0)


def _dilation(value: Any) -> int | tuple[int, ...]:
    if isinstance(value, Sequence) and not isinstance(value, str):
        if not value:
            raise PatternError("dilation: at least one value wanted, got an empty sequence")
        return tuple(integer("dilation", step, 1) for step in value)
    return integer("dilation", value, 1)
