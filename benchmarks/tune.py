"""Find sizes of tiles for the Triton backend: writes rows of `lf_backend/backends/triton/tiles.json`.

    python -m benchmarks.tune                          # on a GPU: measure, and keep the fastest for it
    python -m benchmarks.tune --model 90               # anywhere: what the model takes for the fastest
    python -m benchmarks.tune --compile 80 90 gfx942   # anywhere: the first that fits all of these, as "any"
    python -m benchmarks.tune --mend                   # anywhere: others for the rows that do not fit

Prints everything that is tried. `--model` is for windows in half precision alone, says in the table that
nothing was measured, and replaces no row that was: see `gpu_model`. `--compile` has the candidates' order as
its only judge: large tiles first, as they visit fewer invisible pairs for each product, among those that fit
the shared memory and touch no local memory in loops over tiles. Versions of Triton differ in that: `--mend`
writes rows for the one that is installed alone. A new row may size other calls too and not fit them: run it
until it writes none.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from benchmarks.gpu_model import GROUP, NARROW_REACH, PRODUCTS, estimates, told
from lf_backend.backend import Call
from lf_backend.backends.triton import devices, launch, tuning
from lf_backend.backends.triton.ahead import CALLS, DTYPES, SHARED_BYTES, built, example, shipped
from lf_backend.backends.triton.device import Device
from lf_backend.backends.triton.tuning import Tiles, TilesRow, Wanted
from lf_backend.errors import BuildError
from lf_backend.measure import interleaved
from lf_backend.pattern.terms import Pattern

TABLE = Path(tuning.__file__).with_name("tiles.json")
ANY_REACH = 2**31 - 1
REACHES = (128, 512, 2048)
LENGTH = 16384
LARGEST = {2: Tiles(128, 128, 8, 2), 4: Tiles(64, 32, 8, 2)}  # more of float32 compiles for minutes
_BY_QUERY = (
    (128, 128, 8, 2),
    (128, 64, 8, 3),
    (128, 64, 4, 3),
    (128, 64, 8, 2),
    (128, 32, 8, 2),
    (64, 64, 8, 2),
    (64, 64, 4, 2),
    (64, 32, 8, 2),
    (64, 32, 4, 2),
    (64, 32, 8, 1),
    (64, 32, 4, 1),
    (32, 32, 4, 1),
    (32, 16, 8, 1),
    (32, 16, 4, 1),
    (16, 16, 4, 2),
    (16, 16, 4, 1),
    (16, 16, 8, 1),
)
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
_MODELLED_BY_QUERY = (
    (64, 64, 4, 3), (64, 64, 4, 3, 128), (64, 32, 4, 3), (128, 64, 8, 3), (64, 32, 4, 3, 128),
    (64, 32, 4, 3, 168), (64, 64, 4, 2),
)  # fmt: skip
TIE = 1.1  # by which the model has to prefer a candidate to those before it, smaller and without a limit
MODELLED = {  # in half precision, the best known first: four warps for every 64 rows of a product
    "forward": _MODELLED_BY_QUERY,
    "grad_queries": _MODELLED_BY_QUERY,
    "grad_keys": (
        (64, 64, 4, 3), (64, 64, 4, 3, 168), (32, 64, 4, 3), (32, 64, 4, 3, 168), (64, 64, 4, 2),
        (32, 64, 4, 2), (32, 32, 4, 2),
    ),
}  # fmt: skip
ORDERED = [80, 86, 90, 100, "gfx942"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    way = parser.add_mutually_exclusive_group()
    way.add_argument("--compile", nargs="+", metavar="ARCH", help=f"any of {list(SHARED_BYTES)}")
    way.add_argument("--model", metavar="ARCH", help=f"one of {ORDERED}")
    way.add_argument("--mend", action="store_true", help="compile all rows, replace those that do not fit")
    parser.add_argument("--kernels", nargs="+", choices=CANDIDATES, default=list(CANDIDATES))
    options = parser.parse_args()
    archs = [_arch(name, parser) for name in options.compile or filter(None, [options.model])]
    console = Console(width=140, highlight=False)
    if options.compile:
        found = list(_by_compiling(archs, options.kernels, console))
    elif options.model:
        if archs[0] not in ORDERED:
            parser.error(
                f"--model: one of {ORDERED} wanted, got {archs[0]}, of which there is no model: --compile"
            )
        found = list(_by_model(archs[0], options.kernels, console))
    elif options.mend:
        found = list(_by_mending(options.kernels, console))
    elif torch.cuda.is_available():
        found = list(_by_measuring(options.kernels, console))
    else:
        parser.error("a GPU wanted to measure on, found none; --model, --compile and --mend work without")
    _write(found)
    console.print(f"{len(found)} rows written to {TABLE.name}")


def _arch(name: str, parser: argparse.ArgumentParser) -> int | str:
    arch = int(name) if name.isdecimal() else name
    own = [arch for arch in SHARED_BYTES if arch not in tuning.LIKE]
    if arch not in own:
        parser.error(f"one of {own} wanted, got {arch!r}; {tuning.LIKE} take the rows of others")
    return arch


def _by_model(arch: int | str, kernels: list[str], console: Console) -> Iterator[TilesRow]:
    """The fastest candidates by the model, for all windows, and for narrow ones where these want others; for
    AMD's, which it does not know, the first that fit."""
    for dims, kernel in product((64, 128), [kernel for kernel in kernels if kernel in PRODUCTS]):
        origin = f"compiled for {arch}, not measured"
        wide = _modelled(TilesRow(arch, kernel, dims, 2, ANY_REACH, False, LARGEST[2], origin), console)
        yield wide
        if isinstance(arch, int):
            narrow = _modelled(wide._replace(reach=NARROW_REACH), console)
            if narrow.tiles != wide.tiles:
                yield narrow


def _modelled(row: TilesRow, console: Console) -> TilesRow:
    """The row with the candidate that the model takes for the fastest, of those that all its devices take."""
    best: tuple[float, TilesRow | None] = 0.0, None
    archs = [row.arch, *(other for other, like in tuning.LIKE.items() if like == row.arch)]
    for sizes in MODELLED[row.kernel]:
        candidate = row._replace(tiles=Tiles(*sizes))
        if not all(_fits(candidate, arch, console) for arch in archs):
            continue
        if not isinstance(row.arch, int):
            return candidate
        found = estimates(candidate, row.arch)
        console.print(f"    {told(candidate, found)}")
        every = found + (estimates(candidate, row.arch, GROUP) if row.kernel != "grad_keys" else [])
        if found and (speed := geometric_mean(one.tflops for one in every)) > TIE * best[0]:
            best = speed, candidate._replace(origin=told(candidate, found))
    if best[1] is None:
        raise SystemExit(f"no candidate of {row.kernel} for head dimension {row.dims} fits {row.arch}")
    return best[1]


def _by_compiling(archs: list[int | str], kernels: list[str], console: Console) -> Iterator[TilesRow]:
    """The first candidates that every target takes, whatever a call asks for."""
    arch = archs[0] if len(archs) == 1 else "any"
    for (dims, size), kernel in product(CALLS, kernels):
        largest = TilesRow(arch, kernel, dims, size, ANY_REACH, True, LARGEST[size], "")
        yield _first(largest, archs, console)
        yield _first(largest._replace(extras=False), archs, console)


def _by_mending(kernels: list[str], console: Console) -> Iterator[TilesRow]:
    """Others for the rows that do not fit, for each target and kind of call where they do not."""
    for row, arch, extras in shipped():
        own = row._replace(arch=arch, extras=extras, version=tuning.INSTALLED)
        if row.kernel in kernels and not _fits(own, arch, console):
            yield _first(own, [arch], console)


def _first(row: TilesRow, archs: list[int | str], console: Console) -> TilesRow:
    """The row with the first candidate that all targets take: no larger than its own, or else just larger."""
    candidates = [Tiles(*sizes) for sizes in CANDIDATES[row.kernel]]
    larger = [one for one in candidates if one.rows * one.keys > row.tiles.rows * row.tiles.keys]
    origin = "compiled for " + ", ".join(map(str, archs))
    for tiles in [one for one in candidates if one not in larger] + larger[::-1]:
        candidate = row._replace(tiles=tiles, origin=origin)
        if all(_fits(candidate, arch, console) for arch in archs):
            return candidate
    raise SystemExit(f"no candidate for {row} fits {archs}")


def _fits(row: TilesRow, arch: int | str, console: Console) -> bool:
    found = built(row, arch, row.extras)
    fits = found.fits(arch)
    console.print(f"{arch} {DTYPES[row.bytes]} {row.dims} {found} {'fits' if fits else 'does not fit'}")
    return fits


def _by_measuring(kernels: list[str], console: Console) -> Iterator[TilesRow]:
    """The fastest candidates on the GPU at hand."""
    device = devices.of(torch.device("cuda", torch.cuda.current_device()))
    for (dims, size), reach in product(CALLS, REACHES):
        call = example(DTYPES[size], dims, reach, False, "cuda", LENGTH)
        last = ANY_REACH if reach == REACHES[-1] else reach
        for kernel in kernels:
            if best := _fastest(call, device, kernel, console):
                origin = f"measured on {torch.cuda.get_device_name()}"
                yield TilesRow(device.arch, kernel, dims, size, last, False, best, origin)


def _fastest(call: Call, device: Device, kernel: str, console: Console) -> Tiles | None:
    runs = {}
    for candidate in map(Tiles._make, CANDIDATES[kernel]):
        run = run_of(call, device, kernel, candidate)
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
    """A device on which one kernel alone is launched, with one candidate."""

    whole: Device
    kernel: str
    candidate: Tiles

    def tiles(self, wanted: Wanted) -> Tiles:
        return self.candidate if wanted.kernel == self.kernel else self.whole.tiles(wanted)

    def launch(self, kernel: Any, grid: tuple[int, int], size: Tiles, **arguments: Any) -> None:
        if kernel.fn.__name__ == self.kernel:
            self.whole.launch(kernel, grid, size, **arguments)


def run_of(call: Call, device: Device, kernel: str, tiles: Tiles) -> Callable[[], object]:
    """Return what launches one kernel of a call, in a size."""
    only = _Only(device.arch, device.processors, device.index, device, kernel, tiles)
    if kernel == "forward":
        return lambda: launch.forward(call, only)
    lse = torch.zeros(call.q.shape[:3], device=call.q.device)
    return lambda: launch.backward(call, only, call.q, lse, lse)


def window_call(tensors: Sequence[Tensor], pattern: Pattern) -> Call:
    """Return the call of a window that has nothing besides."""
    q, k, v = tensors
    return Call(q, k, v, pattern.lowered, None, None, None, q.shape[-1] ** -0.5, None, 0.0, None)


def _write(found: list[TilesRow]) -> None:
    """New rows replace those for the same calls; with one for all versions of Triton, theirs too.

    What was measured gives way to measurements alone.
    """
    measured = {row[:6] for row in tuning.table() if row.origin.startswith("measured")}
    found = [row for row in found if row.origin.startswith("measured") or row[:6] not in measured]
    new = {(row[:6], row.version) for row in found}
    kept = [row for row in tuning.table() if new.isdisjoint({(row[:6], None), (row[:6], row.version)})]
    rows = sorted([*kept, *found], key=_place)
    lines = ",\n".join("  " + json.dumps(_data(row)) for row in rows)
    TABLE.write_text(f"[\n{lines}\n]\n", "utf8")


def _place(row: TilesRow) -> tuple[Any, ...]:
    return str(row.arch), row.kernel, row.breadth, row.version or ()


def _data(row: TilesRow) -> dict[str, Any]:
    sizes = row.tiles if row.tiles.registers else row.tiles[:4]
    return {name: value for name, value in {**row._asdict(), "tiles": sizes}.items() if value is not None}


if __name__ == "__main__":
    main()
