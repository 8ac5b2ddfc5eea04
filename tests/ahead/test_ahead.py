"""Every configuration that ships, compiled for devices that need not be here."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lf_backend.backends.triton import forward
from lf_backend.backends.triton.ahead import SHARED_BYTES, Target, compiled, example
from lf_backend.backends.triton.tuning import Row, Wanted, row_for, table

ARCHS = (80, 90, 100, "gfx942")
KERNELS = ("forward", "grad_queries", "grad_keys", "grad_columns")
CALLS = ((64, 2), (128, 2), (256, 2), (64, 4), (128, 4))  # head dimensions, bytes of an element
DTYPES = {2: torch.bfloat16, 4: torch.float32}


def shipped() -> list[tuple[Row, int | str]]:
    """Every row with every target that it sizes a call for."""
    found = {
        (row_for(arch, Wanted(kernel, dims, size, reach, extras)), arch): None
        for arch in ARCHS for kernel in KERNELS for dims, size in CALLS for extras in (False, True)
        for reach in sorted({row.reach for row in table()})
    }  # fmt: skip
    return list(found)


@pytest.mark.parametrize(
    ("row", "arch"),
    [pytest.param(row, arch, id=f"{arch}-{row.kernel}-{row.dims}-{row.bytes}-{row.extras}")
     for row, arch in shipped()],
)  # fmt: skip
def test_builds_fits_and_spills_nothing(row: Row, arch: int | str) -> None:
    call = example(DTYPES[row.bytes], row.dims, 512, row.extras, "cpu", 1024)
    (found,) = compiled(call, Target.named(arch, {row.kernel: row.tiles}, row.kernel))
    assert found.tiles == row.tiles
    assert found.spills == 0
    assert found.shared <= SHARED_BYTES[arch], "bytes of shared memory"


@pytest.mark.parametrize("arch", ARCHS)
def test_parts_are_joined_without_spills(arch: int | str) -> None:
    """Of one new query: the keys are split among programs, and `combine` joins what these found."""
    call = example(torch.bfloat16, 256, 512, False, "cpu", 1024)
    target = Target.named(arch, {}, "combine")
    (found,) = compiled(replace(call, q=call.q[:, :, -1:]), target)
    assert found.kernel == "combine" and found.spills == 0


def test_no_row_is_idle() -> None:
    """Every row of the table is one of those that were compiled."""
    assert {row for row, _ in shipped()} == {row for row in table() if row.arch != "interpreter"}


@pytest.mark.parametrize("arch", [*ARCHS, 75, 89, 120])
@pytest.mark.parametrize("kernel", KERNELS)
def test_every_call_finds_sizes(arch: int | str, kernel: str) -> None:
    for dims, size in [(16, 2), (16, 4), *CALLS]:
        for extras in (False, True):
            assert row_for(arch, Wanted(kernel, dims, size, 10**9, extras)).dims >= dims


def test_a_call_beyond_the_table_says_so() -> None:
    with pytest.raises(LookupError, match=r"fits Wanted\(kernel='forward', dims=512"):
        row_for(90, Wanted("forward", 512, 2, 100, False))


def test_new_lengths_compile_nothing_new() -> None:
    """Odd, even, multiples of 16, and whatever batch: one forward kernel."""
    target = Target.named(90, {}, "forward")
    before = _variants()
    for length in (1024, 1023, 1008, 4097):
        compiled(example(torch.bfloat16, 64, 128, False, "cpu", length), target)
    assert _variants() == before + 1


def _variants() -> int:
    return sum(len(cache[0]) for cache in forward.forward.device_caches.values())
