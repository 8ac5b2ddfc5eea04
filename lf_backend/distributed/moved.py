"""A rule that a part of a row is asked about as the whole row is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

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
        length: positions of the row.
    """

    rule: Rule
    origin: int
    length: int

    def sees(self, head: Any, query: Any, key: Any) -> Any:
        return self.rule.sees(head, query + self.origin, key + self.origin)

    def traced(self, device: torch.device) -> Sees:
        sees, origin = self.rule.traced(device), self.origin
        return lambda head, query, key: sees(head, query + origin, key + origin)

    def spans(self, head: int, first: int, last: int, m: int) -> Spans:
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


def reason_against(rule: Rule, heads: int, slices: Sequence[range]) -> str | None:
    """Return why the keys that a rule shows cannot come from near slices; None if they can."""
    if any(isinstance(part, Tokens) for part in rule.parts):
        return "`Causal()` over all terms or over none wanted, got it over global tokens alone"
    if not any((isinstance(part, Band) and None not in part.span()) or part.bounded for part in rule.parts):
        return "a predicate with `bounds`, or within a window with a limit on both sides, wanted, got neither"
    length = sum(map(len, slices))
    for own in slices:
        seen = seen_by(rule, heads, own, length)
        reach = max(own.start - seen.start, seen.stop - own.stop) if own and seen else 0
        if reach > max(NEAR, length // 2):
            most = f"reach at most half of the row or {NEAR:,} positions"
            return f"rules that {most} wanted, got bounds that reach {reach:,} of {length:,}"
    return None
