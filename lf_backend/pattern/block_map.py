"""The plan of a sparse pass: keys that each block of queries touches, and those that need no mask.

Where every term gives bounds, the map costs a few integers per block; what has no bounds is evaluated
once, in chunks of bounded memory. Nothing of size N x M is ever held. Maps are kept.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lf_backend.errors import PatternError
from lf_backend.pattern.kept import kept
from lf_backend.pattern.lowered import Form
from lf_backend.pattern.spans import Span, Spans, bridged, united

CHUNK = 1 << 21  # pairs evaluated in one step
GAP = 8  # spans this close are one: a key that nobody sees costs less than a span
CHECKED = (7, 64, 128)  # sizes of blocks that bounds are checked for: an odd one, and those of backends

Map = tuple[Spans, ...]


@kept(256)
def block_map(forms: tuple[Form, ...], head: int, n: int, m: int, rows: int) -> Map:
    """For each block of `rows` queries, the last `n` of `m` positions: the keys that any form shows.

    A full span is shown whole by one form, or by several one beside the other.
    """
    return tuple(
        bridged(united((span for form in forms for span in _spans(form, head, block, m)), m), GAP)
        for block in _blocks(n, m, rows)
    )


def _blocks(n: int, m: int, rows: int) -> Iterator[range]:
    return (range(start, min(start + rows, m)) for start in range(m - n, m, rows))


def _spans(form: Form, head: int, block: range, m: int) -> Spans:
    spans = form.spans(head, block[0], block[-1], m)
    return spans if form.bounded else _evaluated(form, head, block, spans)


def _evaluated(form: Form, head: int, block: range, spans: Spans) -> Spans:
    """Narrow spans to the keys that the form shows, asking key by key."""
    found: list[Span] = []
    for keys in _chunks(spans, max(1, CHUNK // len(block))):
        seen = _sees(form, head, block, keys)
        state = seen.any(0).int() + seen.all(0)
        starts = torch.ones_like(state, dtype=torch.bool)
        starts[1:] = (state[1:] != state[:-1]) | (keys[1:] != keys[:-1] + 1)
        first = starts.nonzero()[:, 0]
        last = torch.cat([first[1:], first.new_tensor([len(keys)])]) - 1
        runs = zip(keys[first].tolist(), keys[last].tolist(), state[first].tolist(), strict=True)
        found += [Span(low, high + 1, kind == 2) for low, high, kind in runs if kind]
    return tuple(found)


def positions(spans: Spans) -> Tensor:
    """The keys of some spans, int64, in order."""
    return torch.cat([torch.arange(span.start, span.stop) for span in spans or (Span(0, 0),)])


def _chunks(spans: Spans, size: int) -> Iterator[Tensor]:
    keys = positions(spans)
    return (keys[start : start + size] for start in range(0, len(keys), size))


def _sees(form: Form, head: int, block: range, keys: Tensor) -> Tensor:
    """Bool [queries, keys]."""
    queries = torch.arange(block.start, block.stop)[:, None]
    return torch.as_tensor(form.sees(torch.tensor(head), queries, keys)).expand(len(block), len(keys))


def check(form: Form, head: int, n: int, m: int) -> None:
    """Evaluate every pair, in chunks, and compare with the bounds of several blocks and with itself.

    Raises:
        PatternError: a pair outside the bounds is visible, one in a full span is not, or the answer for
            a pair depends on which others are asked for with it.
    """
    for block in (block for rows in CHECKED for block in _blocks(n, m, rows)):
        bound = torch.zeros(m, dtype=torch.int8)
        for start, stop, full in form.spans(head, block[0], block[-1], m):
            bound[start:stop] = 1 + full
        for keys in _chunks((Span(0, m),), max(1, CHUNK // len(block))):
            seen = _sees(form, head, block, keys)
            alone = _one_by_one(form, head, block, keys)
            for wanted, wrong in (
                ("bounds: a key within them", seen & (bound[keys] == 0)),
                ("bounds: only visible pairs in a full span", ~seen & (bound[keys] == 2)),
                ("fn: an answer that depends on the pair alone", seen != alone),
            ):
                if wrong.any():
                    row, column = wrong.nonzero()[0].tolist()
                    pair = f"head {head}, query {block[row]}, key {int(keys[column])}"
                    asked = f"(queries {block[0]} to {block[-1]} asked)"
                    raise PatternError(f"{wanted} wanted, got another for {pair} {asked}")


def _one_by_one(form: Form, head: int, block: range, keys: Tensor) -> Tensor:
    """`_sees` again, the pairs in a row and half of them at a time."""
    pairs = torch.cartesian_prod(torch.arange(block.start, block.stop), keys).flip(0)
    halves = [
        torch.as_tensor(form.sees(torch.tensor(head), *half.T.contiguous())).expand(len(half))
        for half in pairs.tensor_split(2)
    ]
    return torch.cat(halves).flip(0).view(len(block), len(keys))
