"""All the work of a call, as strips in the order of the passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from torch import Tensor

from lf_backend.backend import Call
from lf_backend.backends.blocked.band_strips import BandStrip
from lf_backend.backends.blocked.column_strips import ColumnStrip
from lf_backend.backends.blocked.rule_strips import RuleStrip, differ, most_keys
from lf_backend.backends.blocked.strips import BAND_ROWS, SCORE_BYTES, Ends, Strip
from lf_backend.numerics.head_runs import head_runs
from lf_backend.pattern.bands import Band, class_length

Alike = Callable[[int, int], bool]  # whether two heads may share a strip


def strips(call: Call) -> Iterator[Strip]:
    """All strips; passes in order, so that a later one finds the earlier one's result."""
    masks: dict[object, Tensor] = {}
    for batch in range(call.q.shape[0]):
        ends = Ends.of(call, batch)
        for index, band in enumerate(call.lowered.bands):
            for heads, kv_heads in _head_runs(call, _band_scores(call, band), _dilated_alike(call)):
                own = band.at(heads.start)
                for residue in range(own.dilations[0]):
                    strip = BandStrip(
                        call,
                        batch,
                        heads,
                        kv_heads,
                        index == 0,
                        _shown(call, heads, index),
                        own.dilations[0],
                        residue,
                        ends,
                        own,
                        masks,
                    )
                    if strip.start < call.q.shape[2]:
                        yield strip
        first = not call.lowered.bands
        if call.columns is not None:
            scores = _rows(call) * call.columns.positions.shape[1]
            for heads, kv_heads in _head_runs(call, scores, _dilated_alike(call)):
                shown = _shown(call, heads)
                yield ColumnStrip(call, batch, heads, kv_heads, first, shown, 1, 0, ends, call.columns)
            first = False
        if call.lowered.others:
            for heads, kv_heads in _head_runs(call, _rows(call) * most_keys(call), _ruled_alike(call)):
                yield RuleStrip(call, batch, heads, kv_heads, first, _shown(call, heads), 1, 0, ends)


def passes(call: Call) -> int:
    """Number of passes that write each row."""
    return len(call.lowered.bands) + (call.columns is not None) + bool(call.lowered.others)


def _shown(call: Call, heads: slice, before: int | None = None) -> tuple[Band, ...]:
    """The first bands, of these heads, with their one dilation."""
    return tuple(band.at(heads.start) for band in call.lowered.bands[:before])


def _head_runs(call: Call, scores: int, alike: Alike) -> Iterator[tuple[slice, slice]]:
    """Heads that are alike, few enough for the cache, and the heads of their keys.

    Args:
        scores: number of scores per head of one block.
    """
    heads, kv_heads = call.q.shape[1], call.k.shape[1]
    return head_runs(heads, kv_heads, alike, partial(_evenly, scores=scores * heads // kv_heads))


def _evenly(count: int, scores: int) -> int:
    """How many of `count` to take at once, so that steps fit the cache and are of one size."""
    steps = -(-count * scores * 4 // SCORE_BYTES)
    return -(-count // max(1, min(steps, count)))


def _dilated_alike(call: Call) -> Alike:
    bands = call.lowered.bands
    return lambda one, other: all(band.alike(one, other) for band in bands)


def _ruled_alike(call: Call) -> Alike:
    return (lambda one, other: False) if differ(call) else _dilated_alike(call)


def _rows(call: Call) -> int:
    return min(BAND_ROWS, call.q.shape[2])


def _band_scores(call: Call, band: Band) -> int:
    """Count the scores of one block and head."""
    reach = band.clipped(class_length(call.k.shape[2], 0, min(band.dilations)))
    return _rows(call) * (_rows(call) + sum(reach))
