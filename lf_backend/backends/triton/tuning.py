"""Sizes of tiles as data: `tiles.json`, which `python -m benchmarks.tune` writes.

A row holds for an architecture (as Triton calls it; "any" for all others), a kernel, head dimensions up to
`dims`, elements of up to `bytes`, windows of up to `reach` steps (left + right); only if `extras` also for
calls with softcap, band bias, dropout, padding in packed documents, or dimensions that fill their tile in
part. Versions of Triton differ in where they spill registers: a row may hold for one `version` alone. Of the
rows that hold for a call the narrowest sizes it.
"""

from __future__ import annotations

import json
from functools import lru_cache
from importlib import resources
from typing import Any, NamedTuple

import triton

Version = tuple[int, ...]  # major and minor
INSTALLED: Version = tuple(int(part) for part in triton.__version__.split(".")[:2])
# Devices that take the rows of others: as much shared memory, as many registers, products by the same
# instructions.
LIKE: dict[int | str, int] = {89: 86, 120: 86}


class Tiles(NamedTuple):
    """Rows (queries) and keys of a program's tile, warps that share it, loads in flight; and the most
    registers of a thread, 0 for as many as a compiler likes: fewer make room for one program more on a
    processor of NVIDIA's."""

    rows: int
    keys: int
    warps: int
    stages: int
    registers: int = 0


class Wanted(NamedTuple):
    """The call for which sizes are looked up."""

    kernel: str
    dims: int
    bytes: int
    reach: int
    extras: bool


class TilesRow(NamedTuple):
    """One row of the table; `origin` says how it was found, `version` which Triton it is for, if not all."""

    arch: int | str
    kernel: str
    dims: int
    bytes: int
    reach: int
    extras: bool
    tiles: Tiles
    origin: str
    version: Version | None = None

    def fits(self, wanted: Wanted) -> bool:
        """Whether the row is for a call."""
        below = wanted.dims <= self.dims and wanted.bytes <= self.bytes and wanted.reach <= self.reach
        return self.kernel == wanted.kernel and below and wanted.extras <= self.extras

    @property
    def breadth(self) -> tuple[int, ...]:
        """How much it holds for: first calls, as sizes for other dims are worse than for other devices."""
        devices = self.arch == "any", self.version is None
        return self.bytes, self.dims, self.extras, self.reach, *devices


@lru_cache(maxsize=1)
def table() -> tuple[TilesRow, ...]:
    """All rows."""
    text = resources.files(__package__).joinpath("tiles.json").read_text(encoding="utf-8")
    return tuple(_row(**data) for data in json.loads(text))


@lru_cache(maxsize=1024)
def row_for(arch: int | str, wanted: Wanted, version: Version = INSTALLED) -> TilesRow:
    """The row that sizes a kernel of a call.

    Raises:
        LookupError: there is none. Whatever the backend accepts has one.
    """
    arch = LIKE.get(arch, arch)
    here = [row for row in table() if row.arch in (arch, "any") and row.version in (None, version)]
    if fitting := [row for row in here if row.fits(wanted)]:
        return min(fitting, key=lambda row: row.breadth)
    raise LookupError(f"a row for {arch} or any that fits {wanted} wanted in tiles.json, found none")


def _row(tiles: list[int], version: list[int] | None = None, **others: Any) -> TilesRow:
    return TilesRow(tiles=Tiles(*tiles), version=tuple(version) if version else None, **others)
