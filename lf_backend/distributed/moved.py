"""A rule that a part of a row is asked about as the whole row is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lf_backend.distributed.slices import Slices
from lf_backend.pattern.bands import Band, Sees
from lf_backend.pattern.lowered import Form, Rule, Tokens
from lf_backend.pattern.spans import Span, Spans, united
from lf_backend.pattern.terms import Term

NEAR = 1024  # positions that a rule may always reach


@dataclass(frozen=True)
class Moved(Term):
    """The pairs of a rule, in positions that count from another one.

    Attributes:
        rule: the rule, in positions of the row.
        origin: the position in the row of what is position 0 here.
        length: positions of the row; None where positions are those of documents, whose length is the call's.
    """

    rule: Rule
    origin: int
    length: int | None

    def sees(self, head: Any, query: Any, key: Any) -> Any:
        return self.rule.sees(head, query + self.origin, key + self.origin)

    def traced(self, device: torch.device) -> Sees:
        sees, origin = self.rule.traced(device), self.origin
        return lambda head, query, key: sees(head, query + origin, key + origin)

    def spans(self, head: int, first: int, last: int, m: int) -> Spans:
        if self.length is None:
            return self.rule.spans(head, first, last, m)
        first, last = (min(at + self.origin, self.length - 1) for at in (first, last))
        spans = self.rule.spans(head, first, last, self.length)
        return united((Span(s.start - self.origin, s.stop - self.origin, s.full) for s in spans), m)

    @property
    def bounded(self) -> bool:
        return self.rule.bounded

    @property
    def per_head(self) -> bool:
        return self.rule.per_head

    @property
    def form(self) -> Form:
        return self

    def _write(self) -> str:
        # No text to read back: the pattern lives as long as the call that it was made for.
        return f"moved<{hash(self):#x} at {id(self):#x}>"


def seen_by(rule: Rule, heads: int, own: range, length: int) -> range:
    """Return the range of keys, of `length`, that queries `own` may see by a rule; empty if none."""
    if not own:
        return own
    asked = range(heads if rule.per_head else 1)
    spans = [span for head in asked for span in rule.spans(head, own.start, own.stop - 1, length)]
    if not spans:
        return range(own.start, own.start)
    return range(min(span.start for span in spans), max(span.stop for span in spans))


def seen_in_documents(rule: Rule, heads: int, own: range, start: Tensor, end: Tensor) -> range:
    """Return the range of keys that queries `own` may see by a rule whose positions are those of documents.

    Args:
        start, end: int64 [B, n], where the document of each of these positions begins and ends.
    """
    found = own
    # A document that lies within the slice shows keys of the slice alone.
    for column, across in ((0, start[:, 0] < own.start), (-1, end[:, -1] > own.stop)) if own else ():
        for first, last in zip(start[across, column].tolist(), end[across, column].tolist(), strict=True):
            queries = range(max(own.start, first) - first, min(own.stop, last) - first)
            seen = seen_by(rule, heads, queries, last - first)
            found = range(min(found.start, seen.start + first), max(found.stop, seen.stop + first))
    return found


def reason_against(rule: Rule) -> str | None:
    """Return why nothing is known of how far a rule reaches; None if something is."""
    if any(isinstance(part, Tokens) for part in rule.parts):
        return "`Causal()` over all terms or over none wanted, got it over global tokens alone"
    if not any((isinstance(part, Band) and None not in part.span()) or part.bounded for part in rule.parts):
        return "a predicate with `bounds`, or within a window with a limit on both sides, wanted, got neither"
    return None


def reason_against_reach(slices: Slices, seen: Sequence[range]) -> str | None:
    """Return why keys that rules show to each rank are too far; None if they are not."""
    for own, keys in zip(slices.ranges, seen, strict=True):
        reach = max(own.start - keys.start, keys.stop - own.stop)
        if reach > max(NEAR, slices.length // 2):
            most = f"reach at most half of the row or {NEAR:,} positions"
            return f"rules that {most} wanted, got bounds that reach {reach:,} of {slices.length:,}"
    return None
