"""Sparse patterns of other papers, each a few lines on the public API: to use, and to copy.

    lf.sparsity.big_bird(4096, block=64)                   # prints so, and is read back from text and JSON
    lf.sparsity.documents(cu_seqlens) & lf.Causal()        # packed sequences
    print(lf.draw(lf.sparsity.neighbourhood(32, 32), 1024))

What is windows and global tokens runs everywhere; what is a predicate runs where `lf.explain` says, in
time linear in the pairs of the blocks it touches. All are settled at the ends of the sequence like
`Window`: keys outside are dropped, nothing is shifted.
"""

from __future__ import annotations

import random as random_numbers
from collections.abc import Sequence
from typing import Any

from lf_backend._integers import integer
from lf_backend.errors import PatternError
from lf_backend.pattern.named import term
from lf_backend.pattern.packed import SameDocument
from lf_backend.pattern.predicate import Predicate
from lf_backend.pattern.terms import Causal, Global, Pattern, Window


@term
def block_local(block: int, reach: int = 0) -> Pattern:
    """Blocks of positions that see themselves and `reach` blocks on each side, whole."""
    integer("block", block, 1)
    integer("reach", reach, 0)

    def near(head: Any, query: Any, key: Any) -> Any:
        return (key // block - query // block).abs() <= reach

    def bounds(head: int, first: int, last: int, m: int) -> list[tuple[int, int, bool]]:
        low, high = first // block, last // block
        some = ((low - reach) * block, (high + reach + 1) * block, False)
        return [some, ((high - reach) * block, (low + reach + 1) * block, True)]

    return Predicate(near, bounds)


@term
def strided(stride: int) -> Pattern:
    """Sparse Transformer, strided (Child et al. 2019, section 4.3): the last `stride` positions, and every
    `stride`-th before; causal. Two windows, so that every backend with those runs it."""
    return Window(integer("stride", stride, 1), 0) | Window(None, 0, dilation=stride)


@term
def fixed(stride: int, summary: int = 1) -> Pattern:
    """Sparse Transformer, fixed (section 4.3): the own block of `stride` positions, and the last `summary`
    positions of every block; causal."""
    first_of_summary = integer("stride", stride, 1) - integer("summary", summary, 1, stride + 1)

    def summaries(head: Any, query: Any, key: Any) -> Any:
        return key % stride >= first_of_summary

    def bounds(head: int, first: int, last: int, m: int) -> list[tuple[int, int, bool]]:
        blocks = range(0, last + 1, stride)
        return [(start + first_of_summary, start + stride, True) for start in blocks]

    return (block_local(stride) | Predicate(summaries, bounds)) & Causal()


@term
def random_blocks(length: int, block: int = 64, count: int = 3, seed: int = 0, heads: int = 1) -> Pattern:
    """Each block of queries sees `count` blocks of the `length` positions, drawn without replacement.

    Args:
        heads: number of different draws; head h has draw h % heads.
    """
    blocks = -(-integer("length", length, 1) // integer("block", block, 1))
    count = min(integer("count", count, 0), blocks)
    generator = random_numbers.Random(integer("seed", seed))
    draws = tuple(
        tuple(tuple(sorted(generator.sample(range(blocks), count))) for _ in range(blocks))
        for _ in range(integer("heads", heads, 1))
    )

    def drawn(head: Any, query: Any, key: Any, table: Any) -> Any:
        draw, row = head % heads if heads > 1 else 0, (query // block).clamp(max=blocks - 1)
        seen = key < 0
        for column in range(count):
            seen = seen | (table[draw, row, column] == key // block)
        return seen

    def bounds(head: int, first: int, last: int, m: int) -> list[tuple[int, int, bool]]:
        rows = range(min(first // block, blocks - 1), min(last // block, blocks - 1) + 1)
        alone = len(rows) == 1
        return [(at * block, (at + 1) * block, alone) for row in rows for at in draws[head % heads][row]]

    return Predicate(drawn, bounds, (draws,))


@term
def big_bird(
    length: int, block: int = 64, window: int = 3, random: int = 3, globals: int = 2, seed: int = 0
) -> Pattern:
    """BigBird (Zaheer et al. 2020, section 2): `window` blocks around, `random` blocks anywhere, and the
    first `globals` blocks of global tokens (its ITC variant). All heads have the same random blocks.

    Args:
        window: odd.
        length: the longest sequence, whose blocks are drawn from.
    """
    if integer("window", window, 1) % 2 == 0:
        raise PatternError(f"window: an odd number of blocks wanted, got {window}")
    tokens = Global(*range(min(integer("globals", globals, 0) * integer("block", block, 1), length)))
    return block_local(block, window // 2) | random_blocks(length, block, random, seed) | tokens


@term
def documents(boundaries: Sequence[int]) -> Pattern:
    """Packed sequences: a position sees its own document, whole; `& lf.Causal()` for a decoder.

    Boundaries that change from batch to batch are better given to `lf.attention` as `documents`.

    Args:
        boundaries: where documents begin, 0 first, and the end: the `cu_seqlens` of flash-attn, as a list
            or a tensor. What lies beyond the end is one more document.
    """
    edges = [integer("boundaries", edge, 0) for edge in boundaries]
    if edges[:1] != [0] or sorted(edges) != edges:
        raise PatternError(f"boundaries: ascending ints from 0 wanted, got {edges}")
    return SameDocument(tuple(edges))


@term
def prefix_lm(prefix: int) -> Pattern:
    """The past, and for the first `prefix` positions each other (Raffel et al. 2020, section 3.2.1)."""
    integer("prefix", prefix, 0)

    def within(head: Any, query: Any, key: Any) -> Any:
        return (query < prefix) & (key < prefix)

    def bounds(head: int, first: int, last: int, m: int) -> list[tuple[int, int, bool]]:
        return [(0, prefix, last < prefix)] if first < prefix else []

    return Causal() | Predicate(within, bounds)


@term
def streaming(window: int, sinks: int = 4) -> Pattern:
    """StreamingLLM (Xiao et al. 2023, section 3.2): the last `window` keys, self included, and the first
    `sinks`; causal. Runs wherever windows and global columns do."""
    return (Window.causal(window) | Global(*range(integer("sinks", sinks, 0)))) & Causal()


@term
def longnet(segments: Sequence[int], dilations: Sequence[int]) -> Pattern:
    """LongNet (Ding et al. 2023, section 3.1): segments of w positions in which head h keeps every r-th
    position from h % r on, and these see each other; a union over the pairs (w, r).

    A position that a head keeps in no pair sees nothing in it. The paper weighs the pairs by their softmax
    denominators, which counts a pair of positions once for each (w, r) that shows it; here it counts once.

    Args:
        segments, dilations: as many of one as of the other, e.g. [2048, 4096] and [1, 2].
    """
    if len(segments) != len(dilations) or not segments:
        raise PatternError(f"dilations: one for each of {len(segments)} > 0 segments wanted, got {dilations}")
    first, *others = (
        _segment(integer("segments", segment, 1), integer("dilations", step, 1))
        for segment, step in zip(segments, dilations, strict=True)
    )
    pattern: Pattern = first
    for other in others:
        pattern = pattern | other
    return pattern


def _segment(segment: int, step: int) -> Pattern:
    def kept(head: Any, query: Any, key: Any) -> Any:
        offset = head % step
        here = (query % segment % step == offset) & (key % segment % step == offset)
        return here & (query // segment == key // segment)

    def whole(head: Any, query: Any, key: Any) -> Any:
        return query // segment == key // segment

    def bounds(head: int, first: int, last: int, m: int) -> list[tuple[int, int, bool]]:
        low, high = first // segment, last // segment
        return [(low * segment, (high + 1) * segment, low == high and step == 1)]

    return Predicate(whole if step == 1 else kept, bounds)


@term
def neighbourhood(height: int, width: int, reach: int = 3) -> Pattern:
    """Pixels of an image, row by row: a pixel sees those at most `reach` rows and columns away.

    At an edge the neighbourhood is cut, as a window is (NATTEN shifts it inwards instead). Positions beyond
    height * width see nothing.
    """
    pixels = integer("height", height, 1) * integer("width", width, 1)
    integer("reach", reach, 0)

    def near(head: Any, query: Any, key: Any) -> Any:
        rows, columns = key // width - query // width, key % width - query % width
        inside = (query < pixels) & (key < pixels)
        return inside & (rows.abs() <= reach) & (columns.abs() <= reach)

    def bounds(head: int, first: int, last: int, m: int) -> list[tuple[int, int]]:
        low, high = (first % width, last % width) if first // width == last // width else (0, width - 1)
        rows = range(max(first // width - reach, 0), min(last // width + reach + 1, height))
        left, right = max(low - reach, 0), min(high + reach + 1, width)
        return [(row * width + left, row * width + right) for row in rows]

    return Predicate(near, bounds)
