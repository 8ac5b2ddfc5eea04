"""Launches as the shapes of a call have them: sizes, grids, numbers, made once for each kind of call."""

from __future__ import annotations

from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lf_backend.backend import Call
from lf_backend.backends.triton.device import Device
from lf_backend.backends.triton.tuning import Tiles, Wanted

PACKED_ROWS = 64  # most rows, over all heads that share keys, of queries so few that one program takes them
MOST_PARTS = 64
MOST_PLANS = 1024  # that a device keeps


class Step(NamedTuple):
    """A launch without its tensors.

    Attributes:
        parts: programs that share the keys of one block, or the heads.
        shares: partial sums that it leaves of a gradient that is not its own: of global columns, or of rows.
    """

    size: Tiles
    grid: tuple[int, int]
    parts: int
    arguments: dict[str, Any]
    shares: int = 0


class LaunchPlan:
    """How the kernels of all calls of one kind are launched: what their shapes say, made once.

    Attributes:
        alike: heads that share keys have the same dilation.
        places: queries are at the call's positions.
        listed: how many queries are computed: all, or those at these positions.
        count: global columns of an example.
        scoring: arguments of every kernel that computes scores.
    """

    @classmethod
    def of(cls, call: Call, device: Device) -> LaunchPlan:
        """Return the plan for calls like this one, which the device keeps."""
        columns = call.columns
        kind = (
            call.q.shape, call.k.shape, call.q.dtype, call.lowered.bands,
            None if columns is None else (columns.positions.shape[1], columns.causal),
            None if call.positions is None else call.positions.shape[1],
            call.scale > 0, call.softcap is None, call.band_bias is None, call.dropout_p > 0,
            call.documents is None, call.key_padding is None, _precision(call.q),
        )  # fmt: skip
        known: LaunchPlan | None = device.plans.get(kind)
        if known is None:
            if len(device.plans) >= MOST_PLANS:
                device.plans.clear()
            known = device.plans[kind] = cls(call, device)
        return known

    def __init__(self, call: Call, device: Device) -> None:
        self.device = device
        self.batch, self.heads, self.queries, self.head_dim = call.q.shape
        self.kv_heads, self.keys = call.k.shape[1:3]
        self.group = self.heads // self.kv_heads
        self.dims = dims_of(self.head_dim)
        self.bytes = call.q.element_size()
        self.band = call.lowered.bands[0] if call.lowered.bands else None
        self.reach, self.dilations = reach_of(call)
        self.alike = len(set(self.dilations)) == 1 or all(
            len(set(self.dilations[at : at + self.group])) == 1 for at in range(0, self.heads, self.group)
        )
        extras = bool(call.softcap is not None or call.band_bias is not None or call.dropout_p)
        # So many registers take also padding in documents, and dimensions that fill their tile in part.
        extras |= call.documents is not None and call.key_padding is not None
        self.extras = extras or self.head_dim != self.dims
        self.documents, self.biased = call.documents is not None, call.band_bias is not None
        self.places = call.positions is not None
        self.listed = self.queries if call.positions is None else call.positions.shape[1]
        self.count = 0 if call.columns is None else call.columns.positions.shape[1]
        self.scoring: dict[str, Any] = {
            "left": self.reach[0], "right": self.reach[1],
            "heads": self.heads, "kv_heads": self.kv_heads, "queries": self.queries, "keys": self.keys,
            "HEAD_DIM": self.head_dim, "DIMS": self.dims, "PRECISION": _precision(call.q),
            "PLAIN": call.scale > 0 and call.softcap is None and call.band_bias is None,
        }  # fmt: skip
        self._seeing: dict[str, Any] = {  # columns
            "count": self.count, "BAND": self.band is not None,
            "CAUSAL": call.columns is not None and call.columns.causal,
        }  # fmt: skip

    @cached_property
    def forward(self) -> Step:
        size = self._tiles("forward")
        pack = self._pack(size)
        rows = self._rows(size, pack)
        blocks = self._blocks(self.listed, rows // pack)
        programs = blocks * self.heads // pack * self.batch
        parts = self._parts(programs, size.keys)
        return Step(size, (programs, parts), parts, {
            **self.scoring, **self._seeing, "listed": self.listed, "blocks": blocks, "parts": parts,
            "PACK": pack, "ROWS": rows, "KEYS": size.keys, "COLUMNS": self._width(size), "PARTED": parts > 1,
        })  # fmt: skip

    @cached_property
    def combine(self) -> Step:
        count, parts = self.batch * self.heads * self.listed, self.forward.parts
        return Step(Tiles(1, 1, 1, 1), (count, 1), parts, {
            "heads": self.heads, "queries": self.queries, "keys": self.keys, "listed": self.listed,
            "rows": count, "parts": parts, "HEAD_DIM": self.head_dim, "DIMS": self.dims,
            "PARTS": power(parts),
        })  # fmt: skip

    @cached_property
    def grad_queries(self) -> Step:
        size = self._tiles("grad_queries")
        pack = self._pack(size)
        rows = self._rows(size, pack)
        blocks = self._blocks(self.listed, rows // pack)
        programs = blocks * self.heads // pack * self.batch
        parts = self._parts(programs, size.keys)
        # A part of the columns' gradients weighs two float32 each, what it saves two rows for each query.
        few = self._meets_all and not self.places and parts == 1 and 0 < 8 * self.count <= rows
        return Step(size, (programs, parts), parts, {
            **self.scoring, **self._seeing, "listed": self.listed, "blocks": blocks, "parts": parts,
            "PACK": pack, "ROWS": rows, "KEYS": size.keys, "COLUMNS": self._width(size), "PARTED": parts > 1,
            "FEW": few,
        }, few * blocks * self.group // pack)  # fmt: skip

    @cached_property
    def grad_keys(self) -> Step:
        size = self._tiles("grad_keys")
        blocks = self._blocks(self.keys, size.keys)
        shares = self._shares(blocks)
        few = self._meets_all and self.places and 4 * self.group * self.listed <= size.keys
        return Step(size, (blocks * self.kv_heads * shares * self.batch, 1), shares, {
            **self.scoring, "listed": self.listed, "blocks": blocks, "group": self.group // shares,
            "ROWS": size.rows, "KEYS": size.keys, "FEW": few,
        }, few * blocks)  # fmt: skip

    @cached_property
    def grad_columns(self) -> Step:
        size = self._tiles("grad_columns")
        width = self._width(size)
        slots = over(self.count, width)
        programs = slots * self.kv_heads * self.batch
        most = min(2 * self.device.processors // programs, over(self.queries, size.rows), MOST_PARTS)
        parts = max(1, most)
        return Step(size, (programs, parts), parts, {
            **self.scoring, **self._seeing, "slots": slots, "parts": parts, "ROWS": size.rows,
            "COLUMNS": width,
        })  # fmt: skip

    def partial(self, parts: int, device: torch.device) -> Tensor:
        """Memory for what every part finds for the queries, float32 [parts * B, H, listed, D]."""
        shape = (parts * self.batch, self.heads, self.listed, self.head_dim)
        return torch.empty(shape, dtype=torch.float32, device=device)

    def _tiles(self, kernel: str) -> Tiles:
        """Sizes for a kernel on this device."""
        return self.device.tiles(Wanted(kernel, self.dims, self.bytes, sum(self.reach), self.extras))

    def _shares(self, blocks: int) -> int:
        """Programs that share the heads of one block of keys: one for each dilation among these, and more if
        there are so few blocks that the device would idle, where all queries are computed."""
        if not self.alike:
            return self.group
        most = 1 if self.places else 2 * self.device.processors // (blocks * self.kv_heads * self.batch)
        return max(
            share for share in range(1, self.group + 1) if share <= max(most, 1) and not self.group % share
        )

    @property
    def _most_in_class(self) -> int:
        """Queries of the largest residue class."""
        return over(self.listed, min(self.dilations))

    @property
    def _meets_all(self) -> bool:
        """Every block of queries meets every global column, and every block of keys every row of one."""
        return not self.documents and not self.biased and set(self.dilations) == {1}

    def _pack(self, size: Tiles) -> int:
        """Heads of one program of the queries' kernels, which read the keys that these share once."""
        if not self.alike:
            return 1
        if self._most_in_class * self.group <= PACKED_ROWS:
            return self.group
        return best_pack(self.group, self._rows(size, 1), size.keys, sum(self.reach))

    def _rows(self, size: Tiles, pack: int) -> int:
        """Rows of a program, no more than there are: a power of two from 16, as products want."""
        return max(16, min(size.rows, power(self._most_in_class * pack)), power(pack))

    def _width(self, size: Tiles) -> int:
        """Global columns of one tile: all, if they are no more than keys of one tile of the band."""
        return max(16, min(power(self.count), size.keys))

    def _blocks(self, length: int, size: int) -> int:
        """Blocks that any head has at most: residue classes times blocks of a class."""
        return max(min(d, length) * over(over(length, d), size) for d in set(self.dilations))

    def _parts(self, programs: int, tile: int) -> int:
        """Programs that share the keys of one block, so that few queries keep the device busy."""
        if self.band is None:
            return 1
        seen = min(sum(self.reach) + 1, self.keys)
        return max(1, min(2 * self.device.processors // programs, seen // (2 * tile), MOST_PARTS))


def best_pack(group: int, rows: int, keys: int, reach: int) -> int:
    """Heads of a group that share a program of so many rows: those with the fewest tiles of keys for a row.

    Fewer positions have shorter edges, where a tile has fewer keys than rows; otherwise there is nothing to
    win. By the model of an H100, at D 64 and 64 x 32: 160 to 178 TFLOP/s forward for the last 128 keys, and
    244 to 276 for gradients of queries; for the last 1,024 keys 381 to 387, and 564 to 573.
    """

    def tiles_of_a_row(pack: int) -> float:
        positions = rows // pack
        return over(positions + reach, keys) / (positions * pack)

    return min((pack for pack in range(1, min(group, rows) + 1) if not group % pack), key=tiles_of_a_row)


def reach_of(call: Call) -> tuple[tuple[int, int], tuple[int, ...]]:
    """Return the reach of the band in steps, no larger than the keys, and its dilations."""
    if not call.lowered.bands:
        return (0, 0), (1,)
    band, keys = call.lowered.bands[0], call.k.shape[2]
    left, right = (keys if reach is None else min(reach, keys) for reach in (band.left, band.right))
    if min(band.dilations) >= keys and call.band_bias is None:  # itself at most, if that
        return (min(left, 0), min(right, 0)), (1,)
    return (left, right), band.dilations


def _precision(q: Tensor) -> str:
    """float32 means float32, unless torch was told otherwise."""
    if q.dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest":
        return "tf32"
    return "ieee"


def over(length: int, size: int) -> int:
    """How many tiles of a size a length takes."""
    return -(-length // size)


def dims_of(head_dim: int) -> int:
    """Width of a tile of rows: a power of two from 16, as products want."""
    return max(16, power(head_dim))


def power(count: int) -> int:
    return 1 << max(count - 1, 0).bit_length()
