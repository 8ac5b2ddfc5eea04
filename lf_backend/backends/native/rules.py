"""Rules of a pattern as the library reads them: runs of keys, and which queries of a block see each run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lf_backend.backend import Call
from lf_backend.errors import BuildError
from lf_backend.pattern.block_map import block_map, positions
from lf_backend.pattern.kept import kept
from lf_backend.pattern.lowered import Form
from lf_backend.pattern.spans import Span

ROWS = 64  # queries of a block, RULE_ROWS in src/rules.h: as many as a word has bits
EVERY = -1  # the word of a run that all of them see
MOST = 1 << 23  # runs that are kept, 16 bytes each; a rule that tells more apart is asked again by each call
ASKED = 1 << 15  # keys asked about in one step


@dataclass(frozen=True, eq=False)
class Runs:
    """Runs of all blocks of queries, of each head or of all alike.

    Attributes:
        first: int64 [heads x blocks + 1], runs before those of a block.
        start, stop: int32 [runs], keys of a run.
        queries: int64 [runs], which queries of the block see it, as bits.
        maps: how many heads there are; 1 if all are alike.
    """

    first: Tensor
    start: Tensor
    stop: Tensor
    queries: Tensor
    maps: int


def runs_of(call: Call) -> Runs:
    """Return the runs of a call's rules, as long as the pattern lives.

    Raises:
        BuildError: there are too many to be kept.
    """
    rules = call.lowered.others
    heads = call.q.shape[1] if any(rule.per_head for rule in rules) else 1
    return _runs(rules, heads, call.q.shape[2], call.k.shape[2])


def elsewhere(call: Call) -> Tensor | None:
    """Return bool [B, M], keys that rules show to nobody, or None: padded ones, and columns, of which every
    pair is shown, as where they are causal the rules are.
    """
    columns, padding = call.columns, call.key_padding
    if columns is None:
        return padding
    keys = torch.zeros(call.k.shape[0], call.k.shape[2], dtype=torch.bool)
    keys.scatter_(1, columns.positions, columns.valid)
    return keys if padding is None else keys | padding


@kept(4)
def _runs(rules: tuple[Form, ...], heads: int, n: int, m: int) -> Runs:
    found: list[Tensor] = []
    first, total = [0], 0
    for head in range(heads):
        for index, spans in enumerate(block_map(rules, head, n, m, ROWS)):
            at = m - n + index * ROWS
            for span in spans:
                made = list(_runs_of_span(rules, head, range(at, min(at + ROWS, m)), span))
                total += sum(len(runs) for runs in made)
                found += made
                if total > MOST:
                    raise BuildError(f"rules of at most {MOST} runs of keys wanted, these have more")
            first.append(total)
    runs = torch.cat(found) if found else torch.empty((0, 3), dtype=torch.int64)
    start, stop, queries = (column.contiguous() for column in runs.unbind(1))
    return Runs(torch.tensor(first), start.int(), stop.int(), queries, heads)


def _runs_of_span(rules: tuple[Form, ...], head: int, block: range, span: Span) -> Iterator[Tensor]:
    """Runs int64 [runs, (start, stop, queries)] of a span of keys."""
    if span.full:
        yield torch.tensor([[span.start, span.stop, EVERY]])
        return
    queries, bits = torch.arange(block.start, block.stop)[:, None], torch.arange(len(block))[:, None]
    for keys in positions((span,)).split(ASKED):
        seen = torch.zeros(len(block), len(keys), dtype=torch.bool)
        for rule in rules:
            seen |= torch.as_tensor(rule.sees(torch.tensor(head), queries, keys))
        words = torch.where(seen.all(0), EVERY, (seen.long() << bits).sum(0))
        starts = torch.cat([torch.ones(1, dtype=torch.bool), words[1:] != words[:-1]]).nonzero()[:, 0]
        stops = torch.cat([starts[1:], torch.tensor([len(keys)])])
        made = torch.stack([keys[0] + starts, keys[0] + stops, words[starts]], 1)
        yield made[made[:, 2] != 0]
