"""Every configuration that ships, compiled for devices that need not be here."""

from __future__ import annotations

import pytest
import torch

from benchmarks.tune import example
from lf_backend.backends.triton import forward
from lf_backend.backends.triton.ahead import SHARED_BYTES, Target, compiled
from lf_backend.backends.triton.tuning import Row, Tiles, Wanted, table, tiles

ARCHS = (80, 90, 100, "gfx942")
KERNELS = ("forward", "grad_queries", "grad_keys", "grad_columns")
DTYPES = {2: torch.bfloat16, 4: torch.float32}


def shipped() -> list[tuple[Row, int | str]]:
    """Rows for a device, and those for any on all targets."""
    real = [row for row in table() if row.arch != "interpreter"]
    return [(row, arch) for row in real for arch in ((row.arch,) if row.arch != "any" else ARCHS)]


@pytest.mark.parametrize(
    ("row", "arch"),
    [pytest.param(*pair, id=f"{pair[0].kernel}-{pair[0].dims}-{pair[0].bytes}-{pair[1]}-{i}")
     for i, pair in enumerate(shipped())],
)  # fmt: skip
def test_builds_fits_and_spills_nothing(row: Row, arch: int | str) -> None:
    call = example(DTYPES[row.bytes], row.dims, min(row.reach, 512), row.extras, "cpu", 1024)
    (found,) = compiled(call, Target.named(arch, {row.kernel: row.tiles}, row.kernel))
    assert found.tiles == row.tiles
    assert found.spills == 0
    assert found.shared <= SHARED_BYTES[arch], "bytes of shared memory"


@pytest.mark.parametrize("arch", [*ARCHS, 75, 89, 120])
@pytest.mark.parametrize("kernel", KERNELS)
def test_every_call_finds_sizes(arch: int | str, kernel: str) -> None:
    for dims in (16, 32, 64, 128, 256):
        for size in (2, 4):
            for extras in (False, True):
                assert isinstance(tiles(arch, Wanted(kernel, dims, size, 10**9, extras)), Tiles)


def test_a_call_beyond_the_table_says_so() -> None:
    with pytest.raises(LookupError, match=r"fits Wanted\(kernel='forward', dims=512"):
        tiles(90, Wanted("forward", 512, 2, 100, False))


def test_new_lengths_compile_nothing_new() -> None:
    """Odd, even, multiples of 16, and whatever batch: one forward kernel."""
    target = Target.named(90, {}, "forward")
    before = _variants()
    for length in (1024, 1023, 1008, 4097):
        compiled(example(torch.bfloat16, 64, 128, False, "cpu", length), target)
    assert _variants() == before + 1


def _variants() -> int:
    return sum(len(cache[0]) for cache in forward.forward.device_caches.values())
