"""A pass over one band: the keys of a block of queries are one slice of the residue class it lives in."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lf_backend.backends.blocked.strips import BAND_ROWS, At, Block, Strip
from lf_backend.numerics.precision import accumulation_dtype
from lf_backend.pattern.bands import Band, class_length


@dataclass(frozen=True, eq=False)
class BandStrip(Strip):
    """One residue class of a band.

    Attributes:
        band: of these heads, with their one dilation.
        masks: band masks of the whole call, which many strips share.
    """

    band: Band
    masks: dict[object, Tensor]

    @property
    def sees_itself(self) -> bool:
        return self.first and self.call.key_padding is None

    def _seen(self) -> Iterator[tuple[slice, At, Tensor]]:
        for rows in self._rows(BAND_ROWS):
            at = self._keys_of(rows)
            yield rows, at, self._mask(rows, at) + self._of_others(rows, at)

    def add_bias(self, grad: Tensor, block: Block, scores: Tensor) -> None:
        assert isinstance(block.at, slice), "keys of a band are a range"
        wide = self._wide(block.rows, 0.0)
        wide[..., self._band_columns(block.rows, block.at)] = scores
        self.of_queries(grad)[:, block.rows] += _diagonals(wide, grad.shape[-1])

    def _keys_of(self, rows: slice) -> slice:
        length = class_length(self.call.k.shape[2], self.residue, self.dilation)
        low, high = self.band.key_range(self._step + rows.start, self._step + rows.stop, length)
        start, end = self._document_range(rows)
        low = max(low, min(class_length(start, self.residue, self.dilation), high - 1))
        return slice(low, max(low + 1, min(high, class_length(end, self.residue, self.dilation))))

    def _mask(self, rows: slice, keys: slice) -> Tensor:
        """[R, K] or, with a bias, [H, R, K]."""
        columns = self._band_columns(rows, keys)
        if self.call.band_bias is None:
            mask = self._whole_mask()[: rows.stop - rows.start, columns]
        else:
            wide = self._wide(rows, -math.inf)
            bias = self.of_queries(self.call.band_bias)[:, rows]
            _diagonals(wide, bias.shape[-1]).copy_(bias)
            mask = wide[..., columns]
        return mask if self._padding is None else mask + self._padding[keys]

    def _whole_mask(self) -> Tensor:
        """[rows, rows + left + right] of a block that no edge cuts."""
        rows = min(BAND_ROWS, self.call.q.shape[2])
        key = (self.band, self.shown, self._reach, rows)
        if key not in self.masks:
            device, (left, right) = self.call.q.device, self._reach
            queries = torch.arange(rows, device=device)[:, None] * self.dilation
            at = (torch.arange(rows + left + right, device=device) - left) * self.dilation
            seen = self.band.sees(0, queries, at)
            for other in self.shown:
                seen = seen & ~other.sees(0, queries, at)
            self.masks[key] = self._float(~seen)
        return self.masks[key]

    def _band_columns(self, rows: slice, keys: slice) -> slice:
        """Keys as columns of a band mask, where column c is c - left steps from the first row."""
        shift = self._reach[0] - self._step - rows.start
        return slice(keys.start + shift, keys.stop + shift)

    def _wide(self, rows: slice, fill: float) -> Tensor:
        """[H, R, R + left + right], a row's window starting on the diagonal."""
        count = rows.stop - rows.start
        shape = (self.heads.stop - self.heads.start, count, count + sum(self._reach))
        dtype = accumulation_dtype(self.call.q.dtype)
        return torch.full(shape, fill, dtype=dtype, device=self.call.q.device)

    @cached_property
    def _step(self) -> int:
        """Step of the first query in its residue class."""
        return (self.call.offset + self.start) // self.dilation

    @cached_property
    def _reach(self) -> tuple[int, int]:
        """Reach in steps; as written where a bias has a column for every tap."""
        band = self.band
        if self.call.band_bias is not None and band.left is not None and band.right is not None:
            return band.left, band.right
        if self.ends is not None:  # no query sees farther than its document
            return band.clipped(class_length(self.ends.longest, 0, self.dilation))
        return band.clipped(class_length(self.call.k.shape[2], self.residue, self.dilation))

    @cached_property
    def _padding(self) -> Tensor | None:
        """[m]: 0 or -inf, None without padding."""
        if self.call.key_padding is None:
            return None
        return self._float(self.call.key_padding[self.batch, self.residue :: self.dilation])


def _diagonals(wide: Tensor, taps: int) -> Tensor:
    """View [H, R, taps] of a rectangle [H, R, R + taps - 1]: row r starts at column r."""
    return wide.as_strided((*wide.shape[:2], taps), (wide.stride(0), wide.stride(1) + 1, 1))
