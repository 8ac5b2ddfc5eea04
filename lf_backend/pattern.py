"""What sees what: the terms of a pattern, their algebra, and the one definition of visibility.

A pattern is a value: frozen, hashable, comparable, without tensors and without a device. Everything
else in the library (backends, drawings, FLOP counts, tests) is derived from two methods here:

- `Pattern.sees(head, query, key)` says whether a pair is visible. It is *the* definition.
- `Pattern.lowered` is the same set of pairs as bands + global tokens, the form that kernels run.
  What cannot be written so is kept in `Lowered.others` and needs a backend that takes predicates.

Terms are those of Longformer (Beltagy et al. 2020, arXiv 2004.05150, section 3.1). Positions are
absolute: with more keys than queries, the queries are the last positions of the sequence.
"""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from lf_backend.bands import Band, Lowered
from lf_backend.errors import PatternError

Index = Any  # an int, or a tensor of ints that broadcasts with the other indices


class Pattern(ABC):
    """Base of all terms. Combine with `|` (union) and `&` (intersection)."""

    def __or__(self, other: Pattern) -> Pattern:
        return Union(*_flat(Union, self, other)) if isinstance(other, Pattern) else NotImplemented

    def __and__(self, other: Pattern) -> Pattern:
        if not isinstance(other, Pattern):
            return NotImplemented
        if isinstance(self, Window) and isinstance(other, Causal):
            return self.cut_future()
        if isinstance(self, Causal) and isinstance(other, Window):
            return other.cut_future()
        return Intersection(*_flat(Intersection, self, other))

    @abstractmethod
    def sees(self, head: Index, query: Index, key: Index) -> Any:
        """Whether `query` sees `key` in `head`: bool for ints, a bool tensor for tensors."""

    @cached_property
    @abstractmethod
    def text(self) -> str:
        """The pattern as one short string; `lf_backend.parse` reads it back."""

    @abstractmethod
    def conjunctions(self) -> tuple[tuple[Pattern, ...], ...]:
        """The pattern as a union of intersections of single terms (disjunctive normal form)."""

    @property
    @abstractmethod
    def heads(self) -> int | None:
        """Number of heads the pattern is written for, None when it is the same for all."""

    @cached_property
    def lowered(self) -> Lowered:
        """The same pairs as bands, global tokens and what is neither."""
        return _lower(self)

    @cached_property
    def causal(self) -> bool:
        """True if the pattern never looks ahead; per-example globals are then cut as well."""
        return all(_is_causal(terms) for terms in self.conjunctions())

    def visible(self, query: int, key: int, head: int = 0) -> bool:
        """Whether position `query` sees position `key` in `head`. Positions count from 0."""
        return bool(self.sees(head, query, key))

    def mask(self, n: int, m: int | None = None, heads: int | None = None) -> torch.Tensor:
        """The dense mask, bool [heads, n, m], True where visible. For tests, drawings, small inputs.

        Args:
            n: number of queries, the last `n` of the `m` positions.
            m: number of keys, `n` if not given.
            heads: number of heads; if not given, as many as the pattern distinguishes (else 1).
        """
        m = n if m is None else m
        if n > m:
            raise PatternError(f"n <= m wanted (queries are the last positions), got n={n}, m={m}")
        self.check_positions(m)
        heads = heads or self.heads or 1
        self.check_heads(heads)
        head = torch.arange(heads)[:, None, None]
        query = torch.arange(m - n, m)[None, :, None]
        key = torch.arange(m)[None, None, :]
        return torch.as_tensor(self.sees(head, query, key)).expand(heads, n, m)

    def pairs(self, n: int, m: int | None = None, heads: int | None = None) -> int:
        """Number of visible (query, key) pairs over all heads, in time linear in the reach.

        Useful FLOPs of a forward pass are `4 * head_dim * batch * pairs`. Arguments as in `mask`;
        patterns with predicates are counted from the dense mask.
        """
        m = n if m is None else m
        if self.lowered.others:
            return int(self.mask(n, m, heads).sum())
        self.check_positions(m)
        heads = heads or self.heads or 1
        self.check_heads(heads)
        if self.heads is None:
            return heads * self.lowered.pairs(n, m, head=0)
        return sum(self.lowered.pairs(n, m, head=head) for head in range(heads))

    def key_range(self, query: int, m: int, head: int = 0) -> range:
        """Keys, of `m`, that the only window shows to `query`: `range(first, last + 1, dilation)`."""
        return self._only_band().at(head).keys_of(query, m)

    def query_range(self, key: int, m: int, head: int = 0) -> range:
        """Queries, of `m` positions, to which the only window shows `key`: `key_range` transposed."""
        return self._only_band().at(head).queries_of(key, m)

    def check_heads(self, heads: int) -> None:
        """Raise PatternError unless the pattern can be used with that many heads."""
        if self.heads is not None and self.heads != heads:
            raise PatternError(
                f"dilation: one int per head wanted, {heads} heads, got {self.heads} values"
            )

    def check_positions(self, m: int) -> None:
        """Raise PatternError if a global position lies outside `m` keys."""
        last = max(self._positions, default=-1)
        if last >= m:
            raise PatternError(f"global position < {m} (the number of keys) wanted, got {last}")

    @cached_property
    def _positions(self) -> frozenset[int]:
        terms = [term for group in self.conjunctions() for term in group]
        return frozenset(p for term in terms if isinstance(term, Global) for p in term.positions)

    def _only_band(self) -> Band:
        bands = self.lowered.bands
        if len(bands) != 1:
            raise PatternError(f"a pattern with exactly one window wanted, got {len(bands)}: {self}")
        return bands[0]

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Window(Pattern):
    """Sliding window: position i sees i + dilation * m for -left <= m <= right.

    Reach counts dilated steps, as in the paper: left + right + 1 keys, self included. Keys outside
    the sequence are dropped; the window is not shifted at the edges.

    Args:
        left: steps back, int >= 0, or None for no limit.
        right: steps ahead, int >= 0, or None for no limit.
        dilation: step between keys, int >= 1, or one int per query head.
    """

    left: int | None
    right: int | None
    dilation: int | tuple[int, ...] = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "left", _reach("left", self.left))
        object.__setattr__(self, "right", _reach("right", self.right))
        object.__setattr__(self, "dilation", _dilation(self.dilation))

    @classmethod
    def causal(cls, n: int, dilation: int | Sequence[int] = 1) -> Window:
        """The last `n` keys, self included, and nothing ahead."""
        if _integer("n", n) < 1:
            raise PatternError(f"n >= 1 keys wanted (self included), got {n}")
        return cls(n - 1, 0, dilation)  # type: ignore[arg-type]  # normalised in __post_init__

    def cut_future(self) -> Window:
        return Window(self.left, 0, self.dilation)

    def sees(self, head: Index, query: Index, key: Index) -> Any:
        return self.band.sees(head, query, key)

    @cached_property
    def band(self) -> Band:
        dilation = (self.dilation,) if isinstance(self.dilation, int) else self.dilation
        return Band(self.left, self.right, dilation)

    @cached_property
    def text(self) -> str:
        words = [str(reach).lower() for reach in (self.left, self.right)]
        if isinstance(self.dilation, tuple):
            words.append(f"dilation={list(self.dilation)}")
        elif self.dilation != 1:
            words.append(f"dilation={self.dilation}")
        return f"window({', '.join(words)})"

    def conjunctions(self) -> tuple[tuple[Pattern, ...], ...]:
        return ((self,),)

    @property
    def heads(self) -> int | None:
        return len(self.dilation) if isinstance(self.dilation, tuple) else None


@dataclass(frozen=True, init=False)
class Global(Pattern):
    """Global tokens: seen by all (a column of the mask) and seeing all (a row).

    `Global()` names no position: the place-holder for globals given per example as `global_mask`.
    """

    positions: tuple[int, ...]

    def __init__(self, *positions: int) -> None:
        for position in positions:
            if _integer("global position", position) < 0:
                raise PatternError(f"global position >= 0 wanted, got {position}")
        object.__setattr__(self, "positions", tuple(sorted({int(p) for p in positions})))

    def sees(self, head: Index, query: Index, key: Index) -> Any:
        seen: Any = _falses(head, query, key)
        for position in self.positions:
            seen = seen | (query == position) | (key == position)
        return seen

    @cached_property
    def text(self) -> str:
        return f"global({', '.join(map(str, self.positions))})"

    def conjunctions(self) -> tuple[tuple[Pattern, ...], ...]:
        return ((self,),)

    @property
    def heads(self) -> None:
        return None


@dataclass(frozen=True)
class Causal(Pattern):
    """The past and self. As `pattern & Causal()` it cuts everything ahead, globals too."""

    def sees(self, head: Index, query: Index, key: Index) -> Any:
        return (key <= query) | _falses(head, query, key)

    @cached_property
    def text(self) -> str:
        return "causal()"

    def conjunctions(self) -> tuple[tuple[Pattern, ...], ...]:
        return ((self,),)

    @property
    def heads(self) -> None:
        return None


@dataclass(frozen=True)
class Predicate(Pattern):
    """Any rule `fn(head, query, key) -> bool` on index tensors that broadcast with each other.

    Equal to another predicate only if the function is the same object. Runs on backends that take
    predicates; it cannot be written as text, because text is parsed and never evaluated.
    """

    fn: Callable[[Any, Any, Any], Any]

    def __post_init__(self) -> None:
        if not callable(self.fn):
            raise PatternError(f"fn(head, query, key) wanted, got {self.fn!r}")

    def sees(self, head: Index, query: Index, key: Index) -> Any:
        if isinstance(query, torch.Tensor):
            return self._on_tensors(*torch.broadcast_tensors(*map(torch.as_tensor, (head, query, key))))
        return bool(self.fn(*map(torch.as_tensor, (head, query, key))))

    def _on_tensors(self, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        seen = torch.as_tensor(self.fn(head, query, key), device=query.device)
        if seen.dtype != torch.bool:
            raise PatternError(f"fn: a bool tensor wanted, got {seen.dtype} from {self.text}")
        return seen.expand(query.shape)

    @cached_property
    def text(self) -> str:
        name = getattr(self.fn, "__qualname__", type(self.fn).__name__)
        return f"predicate<{name} at {id(self.fn):#x}>"

    def conjunctions(self) -> tuple[tuple[Pattern, ...], ...]:
        return ((self,),)

    @property
    def heads(self) -> None:
        return None


@dataclass(frozen=True, init=False)
class Union(Pattern):
    """Pairs that any term shows; `a | b`."""

    terms: tuple[Pattern, ...]

    def __init__(self, *terms: Pattern) -> None:
        object.__setattr__(self, "terms", _terms("|", terms))

    def sees(self, head: Index, query: Index, key: Index) -> Any:
        seen = self.terms[0].sees(head, query, key)
        for term in self.terms[1:]:
            seen = seen | term.sees(head, query, key)
        return seen

    @cached_property
    def text(self) -> str:
        return " | ".join(term.text for term in self.terms)

    def conjunctions(self) -> tuple[tuple[Pattern, ...], ...]:
        return tuple(group for term in self.terms for group in term.conjunctions())

    @property
    def heads(self) -> int | None:
        return _common_heads(self.terms)


@dataclass(frozen=True, init=False)
class Intersection(Pattern):
    """Pairs that all terms show; `a & b`."""

    terms: tuple[Pattern, ...]

    def __init__(self, *terms: Pattern) -> None:
        object.__setattr__(self, "terms", _terms("&", terms))

    def sees(self, head: Index, query: Index, key: Index) -> Any:
        seen = self.terms[0].sees(head, query, key)
        for term in self.terms[1:]:
            seen = seen & term.sees(head, query, key)
        return seen

    @cached_property
    def text(self) -> str:
        return " & ".join(
            f"({term.text})" if isinstance(term, Union) else term.text for term in self.terms
        )

    def conjunctions(self) -> tuple[tuple[Pattern, ...], ...]:
        groups: tuple[tuple[Pattern, ...], ...] = ((),)
        for term in self.terms:
            groups = tuple(left + right for left in groups for right in term.conjunctions())
        return groups

    @property
    def heads(self) -> int | None:
        return _common_heads(self.terms)


def receptive_field(layers: Sequence[Pattern]) -> tuple[int | None, int | None]:
    """How far back and ahead the top layer looks through windows, in positions.

    The sum over layers of reach times dilation (paper, section 3.1: l * d * w), for the head that
    reaches farthest. None means no limit. Global tokens are left out: with one in two successive
    layers everything sees everything.
    """
    left: int | None = 0
    right: int | None = 0
    for layer in layers:
        if layer.lowered.others:
            raise PatternError(f"receptive_field: windows and globals wanted, got {layer}")
        spans = [band.span() for band in layer.lowered.bands]
        left = _add(left, [span[0] for span in spans])
        right = _add(right, [span[1] for span in spans])
    return left, right


def _add(total: int | None, reaches: list[int | None]) -> int | None:
    if total is None or None in reaches:
        return None
    return total + max((reach for reach in reaches if reach is not None), default=0)


def _lower(pattern: Pattern) -> Lowered:
    """Sort the conjunctions into bands, global tokens and the rest; exact, never approximate."""
    bands: list[Band] = []
    tokens: dict[bool, set[int]] = {False: set(), True: set()}
    others: list[Callable[[Any, Any, Any], Any]] = []
    for terms in pattern.conjunctions():
        rest = [term for term in terms if not isinstance(term, Causal)]
        cut = len(rest) < len(terms)
        band = _intersected(rest)
        if band is not None:
            bands.append(band.cut_future() if cut else band)
        elif len(rest) == 1 and isinstance(rest[0], Global):
            tokens[cut].update(rest[0].positions)
        else:
            others.append(Intersection(*terms).sees)
    # A causal global row sees exactly the past only if nothing else shows it the future.
    ahead = bool(others) or bool(tokens[False]) or any(band.right != 0 for band in bands)
    if tokens[True] and ahead:
        others.append(Intersection(Global(*tokens[True]), Causal()).sees)
        tokens[True] = set()
    positions = tuple(sorted(tokens[True] or tokens[False]))
    return Lowered(tuple(dict.fromkeys(bands)), positions, bool(tokens[True]), tuple(others))


def _intersected(terms: list[Pattern]) -> Band | None:
    """One band for windows intersected with each other; None if something else is among them."""
    band: Band | None = Band(None, None, (1,))
    for term in terms:
        band = band.intersect(term.band) if band and isinstance(term, Window) else None
    return band


def _is_causal(terms: tuple[Pattern, ...]) -> bool:
    windows = [term for term in terms if isinstance(term, Window)]
    return any(isinstance(term, Causal) for term in terms) or any(w.right == 0 for w in windows)


def _flat(kind: type[Union] | type[Intersection], *terms: Pattern) -> list[Pattern]:
    parts: list[Pattern] = []
    for term in terms:
        parts.extend(term.terms if isinstance(term, kind) else (term,))
    return parts


def _terms(sign: str, terms: tuple[Pattern, ...]) -> tuple[Pattern, ...]:
    if not terms or not all(isinstance(term, Pattern) for term in terms):
        raise PatternError(f"patterns joined by {sign} wanted, got {terms!r}")
    _common_heads(terms)
    return terms


def _common_heads(terms: tuple[Pattern, ...]) -> int | None:
    counts = sorted({term.heads for term in terms} - {None})  # type: ignore[type-var]
    if len(counts) > 1:
        raise PatternError(f"dilation: one number of heads in all terms wanted, got {counts}")
    return counts[0] if counts else None


def _falses(head: Index, query: Index, key: Index) -> Any:
    """False in the broadcast shape of the indices."""
    return (head != head) | (query != query) | (key != key)


def _integer(name: str, value: Any) -> int:
    if isinstance(value, bool):
        raise PatternError(f"{name}: an int wanted, got {value!r}")
    try:
        return operator.index(value)
    except TypeError:
        raise PatternError(f"{name}: an int wanted, got {value!r}") from None


def _reach(name: str, value: Any) -> int | None:
    if value is None:
        return None
    if (value := _integer(name, value)) < 0:
        raise PatternError(f"{name} >= 0 wanted, got {value}")
    return value


def _dilation(value: Any) -> int | tuple[int, ...]:
    if isinstance(value, Sequence) and not isinstance(value, str):
        if not value:
            raise PatternError("dilation: at least one value wanted, got an empty sequence")
        return tuple(_step(item) for item in value)
    return _step(value)


def _step(value: Any) -> int:
    if (value := _integer("dilation", value)) < 1:
        raise PatternError(f"dilation >= 1 wanted, got {value}")
    return value
