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
from lf_backend.pattern.spans import Spans

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
            made = list(_runs_of_block(rules, head, range(at, min(at + ROWS, m)), spans))
            total += sum(map(len, made))
            found += made
            first.append(total)
            if total > MOST:
                raise BuildError(f"rules of at most {MOST} runs of keys wanted, these have more")
    runs = torch.cat(found) if found else torch.empty((0, 3), dtype=torch.int64)
    start, stop, queries = (column.contiguous() for column in runs.unbind(1))
    return Runs(torch.tensor(first), start.int(), stop.int(), queries, heads)


def _runs_of_block(rules: tuple[Form, ...], head: int, block: range, spans: Spans) -> Iterator[Tensor]:
    """Runs int64 [runs, (start, stop, queries)] of the keys that a block of queries touches."""
    if all(span.full for span in spans):  # nobody has to be asked
        rows = [(span.start, span.stop, EVERY) for span in spans]
        yield torch.tensor(rows, dtype=torch.int64).view(-1, 3)
        return
    full = torch.cat([torch.full((stop - start,), full) for start, stop, full in spans])
    for keys, whole in zip(positions(spans).split(ASKED), full.split(ASKED), strict=True):
        words = torch.full_like(keys, EVERY)
        words[~whole] = _words(rules, head, block, keys[~whole])
        changes = (words[1:] != words[:-1]) | (keys[1:] != keys[:-1] + 1)
        last = torch.cat([changes, torch.ones(1, dtype=torch.bool)]).nonzero()[:, 0]
        begin = torch.cat([torch.zeros(1, dtype=torch.int64), last[:-1] + 1])
        made = torch.stack([keys[begin], keys[last] + 1, words[begin]], 1)
        yield made[made[:, 2] != 0]


def _words(rules: tuple[Form, ...], head: int, block: range, keys: Tensor) -> Tensor:
    """Return which queries of a block see each of some keys, as bits."""
    queries, bits = torch.arange(block.start, block.stop)[:, None], torch.arange(len(block))[:, None]
    seen = torch.zeros(len(block), len(keys), dtype=torch.bool)
    for rule in rules:
        seen |= torch.as_tensor(rule.sees(torch.tensor(head), queries, keys))
    return torch.where(seen.all(0), EVERY, (seen.long() << bits).sum(0))
