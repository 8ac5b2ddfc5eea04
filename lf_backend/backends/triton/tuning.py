"""Sizes of tiles as data: `tiles.json`, which `python -m benchmarks.tune` writes.

A row holds for an architecture (as Triton calls it; "any" for all others), a kernel, head dimensions up to
`dims`, elements of up to `bytes`, windows of up to `reach` steps (left + right), and calls with softcap, band
bias or dropout only if `extras`. The first that fits is used.
"""

from __future__ import annotations

import json
from functools import lru_cache
from importlib import resources
from typing import NamedTuple


class Tiles(NamedTuple):
    """Rows (queries) and keys of a program's tile, warps that share it, loads in flight."""

    rows: int
    keys: int
    warps: int
    stages: int


class Wanted(NamedTuple):
    """What sizes are looked up for."""

    kernel: str
    dims: int
    bytes: int
    reach: int
    extras: bool


class Row(NamedTuple):
    """One row of the table; `origin` says how it was found."""

    arch: int | str
    kernel: str
    dims: int
    bytes: int
    reach: int
    extras: bool
    tiles: Tiles
    origin: str

    def fits(self, wanted: Wanted) -> bool:
        """Whether the row is for a call."""
        below = wanted.dims <= self.dims and wanted.bytes <= self.bytes and wanted.reach <= self.reach
        return self.kernel == wanted.kernel and below and wanted.extras <= self.extras


@lru_cache(maxsize=1)
def table() -> tuple[Row, ...]:
    """All rows, in the order in which they are asked."""
    text = resources.files(__package__).joinpath("tiles.json").read_text(encoding="utf-8")
    return tuple(Row(**{**row, "tiles": Tiles(*row["tiles"])}) for row in json.loads(text))


@lru_cache(maxsize=1024)
def row_for(arch: int | str, wanted: Wanted) -> Row:
    """The row that sizes a kernel of a call: the device's own before those for any.

    Raises:
        LookupError: there is none. Whatever the backend accepts has one.
    """
    for known in (arch, "any"):
        for row in table():
            if row.arch == known and row.fits(wanted):
                return row
    raise LookupError(f"a row for {arch} or any that fits {wanted} wanted in tiles.json, found none")
