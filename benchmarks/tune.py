"""Find sizes of tiles for the Triton backend: writes rows of `lf_backend/backends/triton/tiles.json`.

    python -m benchmarks.tune                          # on a GPU: measure, and keep the fastest for it
    python -m benchmarks.tune --compile 80 90 gfx942   # anywhere: the first that fits all of these, as "any"
    python -m benchmarks.tune --mend                   # anywhere: others for the rows that do not fit

Prints everything that is tried. Without a GPU the candidates' order is the only judge: large tiles first, as
they visit fewer invisible pairs for each product, among those that spill no register and fit the memory.
Versions of Triton differ in what they spill: `--mend` writes rows for the one that is installed alone. A new
row may size other calls too and not fit them: run it until it writes none.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from lf_backend.backend import Call
from lf_backend.backends.triton import devices, launch, tuning
from lf_backend.backends.triton.ahead import CALLS, DTYPES, SHARED_BYTES, built, example, shipped
from lf_backend.backends.triton.device import Device
from lf_backend.backends.triton.tuning import Row, Tiles, Wanted
from lf_backend.errors import BuildError
from lf_backend.measure import interleaved

TABLE = Path(tuning.__file__).with_name("tiles.json")
ANY_REACH = 2**31 - 1
REACHES = (128, 512, 2048)
LENGTH = 16384
LARGEST = {2: Tiles(128, 128, 8, 2), 4: Tiles(64, 32, 8, 2)}  # more of float32 compiles for minutes
_BY_QUERY = (
    (128, 128, 8, 2), (128, 64, 8, 3), (128, 64, 4, 3), (128, 64, 8, 2), (128, 32, 8, 2), (64, 64, 8, 2),
    (64, 64, 4, 2), (64, 32, 8, 2), (64, 32, 4, 2), (64, 32, 8, 1), (64, 32, 4, 1), (32, 32, 4, 1),
    (32, 16, 8, 1), (32, 16, 4, 1), (16, 16, 4, 2), (16, 16, 4, 1), (16, 16, 8, 1),
)  # fmt: skip
CANDIDATES = {
    "forward": _BY_QUERY,
    "grad_queries": _BY_QUERY,
    "grad_keys": (
        (64, 128, 8, 2), (64, 64, 8, 2), (32, 128, 8, 2), (32, 64, 8, 2), (32, 64, 4, 2), (32, 64, 8, 1),
        (32, 32, 4, 2), (32, 32, 8, 1), (32, 32, 4, 1), (16, 32, 4, 1), (16, 32, 8, 1), (16, 16, 8, 2),
        (16, 16, 4, 1), (16, 16, 8, 1),
    ),
    "grad_columns": (
        (128, 64, 8, 2), (64, 64, 8, 2), (64, 32, 8, 2), (64, 32, 4, 2), (32, 32, 4, 2), (32, 32, 8, 1),
        (32, 32, 4, 1), (32, 16, 4, 1), (16, 16, 4, 2), (16, 16, 4, 1), (16, 16, 8, 1),
    ),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    way = parser.add_mutually_exclusive_group()
    way.add_argument("--compile", nargs="+", metavar="ARCH", help=f"any of {list(SHARED_BYTES)}")
    way.add_argument("--mend", action="store_true", help="compile all rows, replace those that do not fit")
    parser.add_argument("--kernels", nargs="+", choices=CANDIDATES, default=list(CANDIDATES))
    options = parser.parse_args()
    console = Console(width=140, highlight=False)
    if options.compile:
        archs = [int(name) if name.isdecimal() else name for name in options.compile]
        if unknown := [arch for arch in archs if arch not in SHARED_BYTES]:
            parser.error(f"--compile: some of {list(SHARED_BYTES)} wanted, got {unknown}")
        found = list(_by_compiling(archs, options.kernels, console))
    elif options.mend:
        found = list(_by_mending(options.kernels, console))
    elif torch.cuda.is_available():
        found = list(_by_measuring(options.kernels, console))
    else:
        parser.error("a GPU wanted to measure on, found none; --compile and --mend work without")
    _write(found)
    console.print(f"{len(found)} rows written to {TABLE.name}")


def _by_compiling(archs: list[int | str], kernels: list[str], console: Console) -> Iterator[Row]:
    """The first candidates that every target takes, whatever a call asks for."""
    arch = archs[0] if len(archs) == 1 else "any"
    for (dims, size), kernel in product(CALLS, kernels):
        largest = Row(arch, kernel, dims, size, ANY_REACH, True, LARGEST[size], "")
        yield _first(largest, archs, console)
        yield _first(largest._replace(extras=False), archs, console)


def _by_mending(kernels: list[str], console: Console) -> Iterator[Row]:
    """Others for the rows that do not fit, for each target and kind of call where they do not."""
    for row, arch, extras in shipped():
        own = row._replace(arch=arch, extras=extras, version=tuning.INSTALLED)
        if row.kernel in kernels and not _fits(own, arch, console):
            yield _first(own, [arch], console)


def _first(row: Row, archs: list[int | str], console: Console) -> Row:
    """The row with the first candidate that all targets take: no larger than its own, or else just larger."""
    candidates = [Tiles(*sizes) for sizes in CANDIDATES[row.kernel]]
    larger = [one for one in candidates if one.rows * one.keys > row.tiles.rows * row.tiles.keys]
    origin = "compiled for " + ", ".join(map(str, archs))
    for tiles in [one for one in candidates if one not in larger] + larger[::-1]:
        candidate = row._replace(tiles=tiles, origin=origin)
        if all(_fits(candidate, arch, console) for arch in archs):
            return candidate
    raise SystemExit(f"no candidate for {row} fits {archs}")


def _fits(row: Row, arch: int | str, console: Console) -> bool:
    found = built(row, arch, row.extras)
    fits = found.spills == 0 and found.shared <= SHARED_BYTES[arch]
    console.print(f"{arch} {DTYPES[row.bytes]} {row.dims} {found} {'fits' if fits else 'does not fit'}")
    return fits


def _by_measuring(kernels: list[str], console: Console) -> Iterator[Row]:
    """The fastest candidates on the GPU at hand."""
    device = devices.of(torch.device("cuda", torch.cuda.current_device()))
    for (dims, size), reach in product(CALLS, REACHES):
        call = example(DTYPES[size], dims, reach, False, "cuda", LENGTH)
        last = ANY_REACH if reach == REACHES[-1] else reach
        for kernel in kernels:
            if best := _fastest(call, device, kernel, console):
                origin = f"measured on {torch.cuda.get_device_name()}"
                yield Row(device.arch, kernel, dims, size, last, False, best, origin)


def _fastest(call: Call, device: Device, kernel: str, console: Console) -> Tiles | None:
    runs = {}
    for candidate in map(Tiles._make, CANDIDATES[kernel]):
        run = _run(call, _Only(device.arch, device.processors, device.index, kernel, candidate))
        try:
            run()
        except BuildError as error:
            console.print(f"{kernel} {candidate} cannot run: {str(error)[:100]}")
        else:
            runs[candidate] = run
    times = interleaved({str(c): run for c, run in runs.items()}, repeats=20) if runs else {}
    for candidate in runs:
        time = times[str(candidate)].median * 1e3
        console.print(f"{kernel} {call.q.dtype} {tuple(call.q.shape)} {candidate}: {time:.3f} ms")
    return min(runs, key=lambda c: times[str(c)].median, default=None)


@dataclass(frozen=True)
class _Only(Device):
    """A device that launches one kernel, with one candidate."""

    kernel: str
    candidate: Tiles

    def tiles(self, wanted: Wanted) -> Tiles:
        return self.candidate if wanted.kernel == self.kernel else super().tiles(wanted)

    def launch(self, kernel: Any, grid: tuple[int, int], size: Tiles, **arguments: Any) -> None:
        if kernel.fn.__name__ == self.kernel:
            super().launch(kernel, grid, size, **arguments)


def _run(call: Call, device: _Only) -> Callable[[], object]:
    if device.kernel == "forward":
        return lambda: launch.forward(call, device)
    lse = torch.zeros(call.q.shape[:3], device=call.q.device)
    return lambda: launch.backward(call, device, call.q, lse, lse)


def _write(found: list[Row]) -> None:
    """New rows replace those for the same calls; with one for all versions of Triton, theirs too."""
    new = {(row[:6], row.version) for row in found}
    kept = [row for row in tuning.table() if new.isdisjoint({(row[:6], None), (row[:6], row.version)})]
    rows = sorted([*kept, *found], key=_place)
    lines = ",\n".join("  " + json.dumps(_data(row)) for row in rows)
    TABLE.write_text(f"[\n{lines}\n]\n", "utf8")


def _place(row: Row) -> tuple[Any, ...]:
    return str(row.arch), row.kernel, row.breadth, row.version or ()


def _data(row: Row) -> dict[str, Any]:
    return {name: value for name, value in row._asdict().items() if value is not None}


if __name__ == "__main__":
    main()
