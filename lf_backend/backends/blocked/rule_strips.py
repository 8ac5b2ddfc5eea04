"""The pass over rules: what is neither band nor global column, all predicates in one.

The block map says which keys a block of queries touches; a single range of them is read as a view, several
are gathered. Only keys that not all of these queries see are asked about one by one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lf_backend.backend import Call
from lf_backend.backends.blocked.strips import BAND_ROWS, At, Strip
from lf_backend.pattern.block_map import Map, block_map, positions
from lf_backend.pattern.spans import Span, Spans

NOTHING = (Span(0, 1),)  # a first pass writes every row: one that sees nothing asks about a key in vain


@dataclass(frozen=True, eq=False)
class RuleStrip(Strip):
    """All queries of some heads, which the rules treat alike."""

    def _seen(self) -> Iterator[tuple[slice, At, Tensor]]:
        for rows, start, spans in self._mapped():
            if not spans and not self.first:
                continue
            spans = spans or NOTHING
            keys, low, high = positions(spans).to(self.call.q.device), spans[0].start, spans[-1].stop
            at = slice(start + low, start + high) if len(keys) == high - low else start + keys
            yield (
                rows,
                at,
                self._float(self._hidden(self._queries(rows)[:, None], start + keys, spans, start)),
            )

    def _mapped(self) -> Iterator[tuple[slice, int, Spans]]:
        """Blocks of queries of one document, where it starts, and their keys, counted from there."""
        for start, end, queries in self._document_runs():
            first = end - queries - self.call.offset
            sizes = (
                slice(at, min(at + BAND_ROWS, first + queries))
                for at in range(first, first + queries, BAND_ROWS)
            )
            found = rule_map(self.call, self.heads.start, queries, end - start)
            yield from ((rows, start, spans) for rows, spans in zip(sizes, found, strict=True))

    def _document_runs(self) -> Iterator[tuple[int, int, int]]:
        """Start and end of every document that has queries, and how many: its last positions."""
        keys, offset = self.call.k.shape[2], self.call.offset
        at = offset
        while at < keys:
            start, end = (0, keys) if self.ends is None else (self.ends.start[at], self.ends.end[at])
            yield start, end, end - at
            at = end

    def _hidden(self, queries: Tensor, keys: Tensor, spans: Spans, start: int) -> Tensor:
        """Bool [R, K]: no rule shows it, an earlier pass does, or it is padded.

        Args:
            start: of the document, from which rules count.
        """
        hidden = torch.zeros(len(queries), len(keys), dtype=torch.bool, device=keys.device)
        hidden |= self._elsewhere[keys]
        for band in self.shown:
            hidden |= band.sees(0, queries, keys)
        full = torch.cat([torch.full((stop - start,), full) for start, stop, full in spans])
        if not full.all():
            head = torch.tensor(self.heads.start, device=keys.device)
            partial = full.logical_not().nonzero()[:, 0].to(keys.device)
            seen = torch.zeros(len(queries), len(partial), dtype=torch.bool, device=keys.device)
            for rule in self.call.lowered.others:
                seen |= rule.sees(head, queries - start, keys[partial] - start)
            hidden[:, partial] |= ~seen
        return hidden

    @cached_property
    def _elsewhere(self) -> Tensor:
        """Bool [M]: padded keys, and global columns. Where columns are causal the rules are, so that the
        pass over columns has shown every pair with such a key."""
        call = self.call
        keys = torch.zeros(call.k.shape[2], dtype=torch.bool, device=call.q.device)
        if call.columns is not None:
            keys.scatter_(0, call.columns.positions[self.batch], call.columns.valid[self.batch])
        return keys if call.key_padding is None else keys | call.key_padding[self.batch]


def rule_map(call: Call, head: int, queries: int, keys: int) -> Map:
    """Return the keys that each block of queries touches, the last of so many keys."""
    return block_map(call.lowered.others, head * differ(call), queries, keys, BAND_ROWS)


def differ(call: Call) -> bool:
    """Rules treat heads differently."""
    return any(rule.per_head for rule in call.lowered.others)


def most_keys(call: Call) -> int:
    """The most keys that a block touches, in any head."""
    heads = call.q.shape[1] if differ(call) else 1
    if call.documents is not None:  # documents differ; a document is at most a row
        return call.k.shape[2]
    maps = (rule_map(call, head, call.q.shape[2], call.k.shape[2]) for head in range(heads))
    sizes = (sum(stop - start for start, stop, _ in spans) for found in maps for spans in found)
    return max(sizes, default=1)
