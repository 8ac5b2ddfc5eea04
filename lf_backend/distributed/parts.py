"""The parts of a slice that are computed together: its interior, which needs no neighbour, and its edges.

The interior's queries see keys of their own slice alone, which stays where it is in memory. The queries at
an edge, as many as a window reaches, see the halo and a few keys beside it: what has to be copied grows with
the reach, and not with the slice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lf_backend.distributed.slices import common

SHORT = 8  # reaches of a slice below which copying its keys costs less than computing its edges again


@dataclass(frozen=True)
class Part:
    """Some queries with all keys that they see, as positions of the row.

    Attributes:
        used: the queries.
        rows: those that are computed for it, the last of the keys: the operator's queries are.
        keys: the keys.
    """

    used: range
    rows: range
    keys: range


def parts_of(own: range, reach: range, window: tuple[int, int] | None) -> list[Part]:
    """Return the parts of a slice, the one that needs no halo first if there is one.

    Args:
        own: positions of the slice.
        reach: positions of the keys that its queries see.
        window: how far any of them sees, back and ahead; None if that differs among them.
    """
    if window is None or reach == own or len(own) < SHORT * sum(window):
        return [Part(own, range(own.start, reach.stop), reach)]
    back, ahead = window
    first = own.start + (back if reach.start < own.start else 0)
    last = own.stop - (ahead if reach.stop > own.stop else 0)
    found = [Part(range(first, last), own, own)]
    if first > own.start:
        rows = range(own.start, first + ahead)
        found.append(Part(range(own.start, first), rows, range(reach.start, rows.stop)))
    if last < own.stop:
        rows = range(last, reach.stop)
        found.append(Part(range(last, own.stop), rows, range(last - back, rows.stop)))
    return found


Pieces = Sequence[tuple[range, Tensor]]  # tensors [B, H, n, ...] that lie one after another in the row


def cut(pieces: Pieces, wanted: range) -> Tensor:
    """Return [B, H, len(wanted), ...] of the row, zeros where no piece is; a view if one piece has it all."""
    (first, like), *_ = pieces
    before = min(max(0, first.start - wanted.start), len(wanted))
    found = [_rows(piece, at, shared) for at, piece in pieces if (shared := common(at, wanted))]
    after = len(wanted) - before - sum(x.shape[2] for x in found)
    if before:
        found.insert(0, _zeros(like, before))
    if after or not found:
        found.append(_zeros(like, after))
    return found[0] if len(found) == 1 else torch.cat(found, 2)


def _zeros(like: Tensor, count: int) -> Tensor:
    return like.new_zeros(*like.shape[:2], count, *like.shape[3:])


def add(total: Tensor, at: range, new: Tensor, where: range) -> None:
    """Add the part of `new`, which lies at `where` in the row, to `total` at `at` in place."""
    if shared := common(at, where):
        _rows(total, at, shared).add_(_rows(new, where, shared))


def _rows(x: Tensor, at: range, wanted: range) -> Tensor:
    return x.narrow(2, wanted.start - at.start, len(wanted))
