"""A union of bands as bands that share no pair, so that each can be computed alone and the results joined."""

from __future__ import annotations

from collections.abc import Iterable

from lf_backend.pattern.bands import Band


def disjoint(bands: Iterable[Band]) -> tuple[Band, ...] | None:
    """Bands that share no pair and show what these show between them; None if no bands can.

    A reach may be negative: such a band ends before the query, or begins after it. Bands can be taken apart
    where, in every head, the larger dilation is a multiple of the smaller and the same steps are common.
    """
    found: list[Band] = []
    for band in sorted(bands, key=lambda band: max(band.dilations)):
        pieces = [band]
        for earlier in found:
            cuts = [_without(piece, earlier) for piece in pieces]
            pieces = [piece for cut in cuts for piece in cut or ()]
            if None in cuts:
                return None
        found += pieces
    return tuple(found)


def _without(band: Band, other: Band) -> list[Band] | None:
    """Subtract the other band: return the pieces on its two sides, or None if they are no bands."""
    heads = range(max(len(band.dilations), len(other.dilations)))
    ratios = [(other.dilation(head), band.dilation(head)) for head in heads]
    backs, aheads = (
        {None if reach is None else reach * finer // coarser for finer, coarser in ratios}
        for reach in (other.left, other.right)
    )
    if any(coarser % finer for finer, coarser in ratios) or len(backs) > 1 or len(aheads) > 1:
        return None
    (back,), (ahead,) = backs, aheads
    sides = []
    if back is not None:
        sides.append(Band(band.left, _least(band.right, -back - 1), band.dilations))
    if ahead is not None:
        sides.append(Band(_least(band.left, -ahead - 1), band.right, band.dilations))
    return [side for side in sides if (taps := side.taps()) is None or taps > 0]


def _least(reach: int | None, limit: int) -> int:
    return limit if reach is None else min(reach, limit)
