"""Device functions that the kernels share: addresses, tiles that meet, scores, dropped weights.

A tile of scores is [queries, keys] or transposed. What varies over queries or keys comes as [R, 1] and
[1, K], or [1, R] and [K, 1], so that one function serves both.

Steps count in a residue class of the dilation, positions in the sequence; see `lf_backend/bands.py`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


class View(NamedTuple):
    """A tensor as kernels take it; `wide` is 1 if offsets in a plane x[batch, head] need 64 bits, or None."""

    ptr: Any
    stride: tuple[int, ...]
    wide: Any


class Taps(NamedTuple):
    """A band bias [B, H, N, taps], or its gradient. Unlike a `View` it holds no None: Triton 3.6 cannot ask
    of a tuple with one whether it is None itself."""

    ptr: Any
    stride: tuple[int, ...]


class Padding(NamedTuple):
    """Padded positions, `mask` int8 [B, M], contiguous. Of an example, `bounds` int32 [B, 3] holds the first
    position that is not padded, the end of the last one, and whether there is padding between."""

    mask: Any
    bounds: Any


class Dropout(NamedTuple):
    """`starts` int32 [B] and `origin` int64 [1] are those of `dropout`; hashes below `threshold` are dropped,
    others count `factor`."""

    starts: Any
    origin: Any
    threshold: int
    factor: float


class Documents(NamedTuple):
    """Packed documents, int32 [B, M]. Of a position: where its document starts, and its `end`; and of what
    is listed in ascending order, global columns or queries, the `first` that it sees, and the end, `last`."""

    start: Any
    end: Any
    first: Any
    last: Any


class Scoring(NamedTuple):
    """In a kernel, what makes a score of a product: scale, softcap or None."""

    scale: Any
    softcap: Any


class Band(NamedTuple):
    """In a kernel, the band of a head: reach in steps, and the dilation."""

    left: Any
    right: Any
    dilation: Any


class Queries(NamedTuple):
    """In a kernel, some queries of an example: vectors of head, slot in the list of those that are computed,
    index in q (which is the slot where all are), step, position, existence; and `ends`, start and end of
    their documents. Without documents it is empty, and not None, because functions of Triton 3.6 cannot
    return None in a tuple."""

    batch: Any
    head: Any
    slot: Any
    index: Any
    step: Any
    position: Any
    inside: Any
    ends: Any


class Keys(NamedTuple):
    """In a kernel, the keys that a program reads: those of a head, in a residue class of `length` steps."""

    batch: Any
    head: Any
    residue: Any
    length: Any
    total: Any


@triton.jit
def rows_at(x, batch, head, index):
    """Addresses of the rows x[batch, head, index]. Planes begin anywhere in 64 bits."""
    plane = x.ptr + batch.to(tl.int64) * x.stride[0] + head.to(tl.int64) * x.stride[1]
    if x.wide is not None:
        index = index.to(tl.int64)
    return plane + index * x.stride[2]


@triton.jit
def taps_at(taps, queries, tap):
    """Addresses of the taps of queries, with offsets of 64 bits."""
    plane = (
        taps.ptr + queries.batch.to(tl.int64) * taps.stride[0] + queries.head.to(tl.int64) * taps.stride[1]
    )
    return plane + queries.index.to(tl.int64) * taps.stride[2] + tap * taps.stride[3]


@triton.jit
def read(x, at, inside, dims, HEAD_DIM: tl.constexpr, MASKED: tl.constexpr):
    """Rows [R, dims] that begin at `at`; 0 beyond the head dimension and, if MASKED, where not inside."""
    pointers = _pointers(x, at, dims)
    if MASKED and dims.shape[0] == HEAD_DIM:
        tile = tl.load(pointers, mask=inside[:, None], other=0.0)
    elif MASKED:
        tile = tl.load(pointers, mask=inside[:, None] & (dims < HEAD_DIM)[None, :], other=0.0)
    elif dims.shape[0] == HEAD_DIM:
        tile = tl.load(pointers)
    else:
        tile = tl.load(pointers, mask=(dims < HEAD_DIM)[None, :], other=0.0)
    return tile


@triton.jit
def write(x, at, inside, dims, tile, HEAD_DIM: tl.constexpr):
    """The way back of `read`, rounded to the dtype of x."""
    mask = inside[:, None] & (dims < HEAD_DIM)[None, :]
    tl.store(_pointers(x, at, dims), tile.to(x.ptr.dtype.element_ty), mask=mask)


@triton.jit
def _pointers(x, at, dims):
    if x.wide is not None:
        dims = dims.to(tl.int64)
    return at[:, None] + dims[None, :] * x.stride[3]


@triton.jit
def band_of(left, right, dilations, head):
    """The band of a head; without dilations all are 1."""
    dilation = 1 if dilations is None else tl.load(dilations + head)
    return Band(left, right, dilation)


@triton.jit
def block_of(block, length, dilation, SIZE: tl.constexpr):
    """A block of up to SIZE of the positions residue, residue + dilation, ...: residue, and first step."""
    blocks = tl.cdiv(tl.cdiv(length, dilation), SIZE)
    return block // blocks, block % blocks * SIZE


@triton.jit
def class_length(length, residue, dilation):
    """How many positions below `length` are residue, residue + dilation, ...; `bands.class_length`."""
    return tl.cdiv(tl.maximum(length - residue, 0), dilation)


@triton.jit
def queries_at(batch, head, slot, index, step, position, inside, documents, keys):
    """Queries, with the ends of their documents."""
    at = batch.to(tl.int64) * keys + position
    ends = () if documents is None else _ends_at(documents, at, inside)
    return Queries(batch, head, slot, index, step, position, inside, ends)


@triton.jit
def _ends_at(documents, at, inside):
    start = tl.load(documents.start + at, mask=inside, other=0)
    end = tl.load(documents.end + at, mask=inside, other=0)
    return start, end


@triton.jit
def shared(documents, batch, keys, first, last, residue, dilation, low, high):
    """Steps [low, high) that some of the steps first..last share a document with, and those that all do."""
    all_low, all_high = low, high
    if documents is not None:
        at = batch.to(tl.int64) * keys + residue + first * dilation
        to = batch.to(tl.int64) * keys + residue + last * dilation
        all_low = tl.maximum(low, class_length(tl.load(documents.start + to), residue, dilation))
        all_high = tl.minimum(high, class_length(tl.load(documents.end + at), residue, dilation))
        low = tl.maximum(low, class_length(tl.load(documents.start + at), residue, dilation))
        high = tl.minimum(high, class_length(tl.load(documents.end + to), residue, dilation))
    return low, high, all_low, all_high


@triton.jit
def among(documents, batch, keys, first, last, count):
    """The range [low, high) of `count` things, listed by position, that first..last can see."""
    low, high = 0, count
    if documents is not None:
        example = batch.to(tl.int64) * keys
        low = tl.load(documents.first + example + first)
        high = tl.load(documents.last + example + last)
    return low, high


@triton.jit
def span(first, last, before, after, low, high, all_low, all_high, TILE: tl.constexpr):
    """Range [start, stop) that any of first..last meets; of its tiles, [inner, outer) meet all of them.

    This is `bands.Band.key_range` where before and after are left and right, else `query_range`. Nothing is
    met outside [low, high), and not by all outside [all_low, all_high).
    """
    start = tl.maximum(first - before, low)
    stop = tl.maximum(tl.minimum(last + after + 1, high), start)
    inner = start + tl.cdiv(tl.maximum(tl.maximum(last - before, all_low) - start, 0), TILE) * TILE
    inner = tl.minimum(inner, start + tl.cdiv(stop - start, TILE) * TILE)
    end = tl.minimum(tl.minimum(first + after + 1, all_high), stop)
    outer = start + tl.maximum(end - start, 0) // TILE * TILE
    return start, stop, inner, tl.maximum(outer, inner)


@triton.jit
def without_holes(low, high, inner, outer, padding, holes):
    """The span, in which nothing is padded and no mask has to be looked at; with holes an empty one.

    Returns:
        high, inner, outer; and the end of a span with holes, which begins at `low`.
    """
    stop = low
    if padding is not None:
        stop = tl.where(holes, high, low)
        high = tl.where(holes, low, high)
        inner = tl.where(holes, low, inner)
        outer = tl.where(holes, low, outer)
    return high, inner, outer, stop


@triton.jit
def part_of(start, stop, inner, outer, part, parts, TILE: tl.constexpr):
    """The part-th of equal parts of a span, in whole tiles."""
    size = tl.cdiv(tl.cdiv(stop - start, TILE), parts) * TILE
    low = tl.minimum(start + part * size, stop)
    high = tl.minimum(low + size, stop)
    inner = tl.minimum(tl.maximum(inner, low), low + tl.cdiv(high - low, TILE) * TILE)
    outer = tl.minimum(outer, low + (high - low) // TILE * TILE)
    return low, high, inner, tl.maximum(outer, inner)


@triton.jit
def edges(start, stop, inner, outer, TILE: tl.constexpr):
    """Number of tiles of [start, stop) on either side of [inner, outer)."""
    return (inner - start) // TILE + tl.cdiv(tl.maximum(stop - outer, 0), TILE)


@triton.jit
def edge(tile, start, inner, outer, TILE: tl.constexpr):
    """Start of the tile-th of those tiles."""
    at = start + tile * TILE
    return tl.where(at < inner, at, at - inner + outer)


@triton.jit
def unpadded(padding, batch, residue, dilation, length):
    """Steps [low, high) of a class that hold all that is not padded, and whether there is padding between."""
    if padding is None:
        low, high, holes = 0, length, False
    else:
        bounds = padding.bounds + batch * 3
        low = class_length(tl.load(bounds), residue, dilation)
        high = tl.minimum(class_length(tl.load(bounds + 1), residue, dilation), length)
        holes = tl.load(bounds + 2) != 0
    return low, high, holes


@triton.jit
def real(padding, batch, keys, position, inside):
    """Return which positions, of `keys`, are inside and not padded."""
    if padding is not None:
        at = padding.mask + batch.to(tl.int64) * keys + position
        inside = inside & (tl.load(at, mask=inside, other=1) == 0)
    return inside


@triton.jit
def in_band(distance, band):
    """Whether a pair at the distance key - query, in positions, is in the band."""
    step = distance // band.dilation  # in steps, as reach in positions may exceed 32 bits
    return (step * band.dilation == distance) & (step >= -band.left) & (step <= band.right)


@triton.jit
def tanh(x):
    """From the exponential of a negative number, and as a series where that would cancel."""
    square = x * x
    series = x * (1 + square * (-1 / 3 + square * (2 / 15 - square * (17 / 315))))
    small = tl.exp2(tl.abs(x) * (-2 * LOG2E))
    ratio = (1 - small) / (1 + small)
    return tl.where(square < 0.01, series, tl.where(x < 0, -ratio, ratio))


@triton.jit
def scores(rows, columns, scoring, PLAIN: tl.constexpr, PRECISION: tl.constexpr):
    """rows @ columns.T, in float32, and tanh(score / softcap). PLAIN leaves the scale to `unit`."""
    found = tl.dot(rows, tl.trans(columns), input_precision=PRECISION)
    capped = found
    if not PLAIN:
        found = found * scoring.scale
        if scoring.softcap is not None:
            capped = tanh(found / scoring.softcap)
            found = capped * scoring.softcap
    return found, capped


@triton.jit
def unit(scoring, PLAIN: tl.constexpr):
    """Factor that turns raw scores into natural-log units."""
    found = scoring.scale if PLAIN else 1.0
    return found


@triton.jit
def mix(x):
    """MurmurHash3's fmix32 on uint32; `dropout._mix`."""
    x = x ^ (x >> 16)
    x = x * 0x85EBCA6B
    x = x ^ (x >> 13)
    x = x * 0xC2B2AE35
    return x ^ (x >> 16)


@triton.jit
def keep(dropout, batch, head, query, key):
    """`dropout.keep` of positions: 0 where dropped, else 1 / (1 - p)."""
    start = tl.load(dropout.starts + batch).to(tl.uint32, bitcast=True)
    origin = tl.load(dropout.origin).to(tl.uint32)
    row = mix(mix(start ^ head.to(tl.uint32)) ^ (query.to(tl.uint32) + origin))
    hashed = mix(row ^ mix(key.to(tl.uint32) + origin))
    return tl.where(hashed.to(tl.int32, bitcast=True) >= dropout.threshold, dropout.factor, 0.0)
