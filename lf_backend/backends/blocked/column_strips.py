"""The pass over global columns: keys that all rows see, gathered once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lf_backend.backend import Columns
from lf_backend.backends.blocked.strips import BAND_ROWS, SCORE_BYTES, At, Strip

COLUMN_ROWS = 512  # columns alone waste nothing; more rows are fewer steps


@dataclass(frozen=True, eq=False)
class ColumnStrip(Strip):
    """All queries of some heads; its keys are the columns, counted from 0."""

    columns: Columns

    def accumulator(self, grad: Tensor) -> Tensor:
        return torch.zeros_like(self._keys(grad))

    def settle(self, grad: Tensor, accumulated: Tensor) -> None:
        grad[self.batch, self.kv_heads].index_add_(1, self.columns.positions[self.batch], accumulated)

    def _keys(self, x: Tensor) -> Tensor:
        """Gathered, as index_select would copy all of a view."""
        return x[self.batch, self.kv_heads][:, self.columns.positions[self.batch]]

    def _positions_of(self, at: At) -> Tensor:
        return self.columns.positions[self.batch][at]

    def _seen(self) -> Iterator[tuple[slice, At, Tensor]]:
        """No column that is unused, ahead of a causal row, or in a band."""
        positions, valid = self.columns.positions[self.batch], self.columns.valid[self.batch]
        heads = self.heads.stop - self.heads.start
        size = min(max(SCORE_BYTES // (4 * heads * len(positions)), BAND_ROWS), COLUMN_ROWS)
        for rows in self._rows(size):
            slots = self._slots(rows)
            at, queries = positions[slots], self._queries(rows)[:, None]
            hidden = ~valid[slots].expand(len(queries), -1)
            for band in self.shown:
                hidden = hidden | band.sees(0, queries, at)
            if self.columns.causal:
                hidden = hidden | (at > queries)
            yield rows, slots, self._float(hidden) + self._of_others(rows, slots)

    def _slots(self, rows: slice) -> slice:
        """The columns that some queries can see: all, or those of their documents; at least one."""
        count = self.columns.positions.shape[1]
        if self.ends is None:
            return slice(0, count)
        used = self.columns.positions[self.batch][self.columns.valid[self.batch]]
        low, high = torch.searchsorted(used, torch.tensor(self._document_range(rows))).tolist()
        low = min(low, count - 1)
        return slice(low, max(high, low + 1))
