"""Sizes of tiles as data: `tiles.json`, which `python -m benchmarks.tune` writes.

A row holds for architecture (as Triton calls it; "any" for all others), kernel, head dimensions up to `dims`,
elements of up to `bytes`, and windows of up to `reach` steps (left + right). The first that fits is used.
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


class Row(NamedTuple):
    """One row of the table; `origin` says how it was found."""

    arch: int | str
    kernel: str
    dims: int
    bytes: int
    reach: int
    tiles: Tiles
    origin: str

    def fits(self, kernel: str, dims: int, size: int, reach: int) -> bool:
        return self.kernel == kernel and dims <= self.dims and size <= self.bytes and reach <= self.reach


@lru_cache(maxsize=1)
def table() -> tuple[Row, ...]:
    """All rows, in the order in which they are asked."""
    text = resources.files(__package__).joinpath("tiles.json").read_text(encoding="utf-8")
    return tuple(Row(**{**row, "tiles": Tiles(*row["tiles"])}) for row in json.loads(text))


@lru_cache(maxsize=1024)
def tiles(kernel: str, arch: int | str, dims: int, size: int, reach: int) -> Tiles:
    """Sizes for a kernel, elements of `size` bytes, `reach` steps.

    Raises:
        LookupError: the table has no row; the rows for "any" fit whatever the backend accepts.
    """
    for known in (arch, "any"):
        for row in table():
            if row.arch == known and row.fits(kernel, dims, size, reach):
                return row.tiles
    raise LookupError(f"no tiles for {kernel}, head_dim {dims}, {size} bytes, reach {reach}")
