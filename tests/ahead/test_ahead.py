"""Every configuration that ships, compiled for devices that need not be here."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lf_backend.backends.triton import forward, tuning
from lf_backend.backends.triton.ahead import (
    CALLS,
    KERNELS,
    SHARED_BYTES,
    Shipped,
    Target,
    built,
    compiled,
    example,
    shipped,
)
from lf_backend.backends.triton.tuning import INSTALLED, Row, Tiles, Wanted, row_for, table


def _title(used: Shipped) -> str:
    """A test's name; rows for the installed version of Triton alone are its own."""
    row = used.row
    words = [used.arch, row.kernel, row.dims, row.bytes, "extras" if used.extras else "plain"]
    return "-".join(map(str, [*words, "own"] if row.version else words))


@pytest.mark.parametrize(
    ("row", "arch", "extras"),
    [pytest.param(*used, id=_title(used)) for used in shipped()],
)
def test_builds_fits_and_spills_nothing(row: Row, arch: int | str, extras: bool) -> None:
    found = built(row, arch, extras)
    assert found.tiles == row.tiles
    assert found.spills == 0
    assert found.shared <= SHARED_BYTES[arch], "bytes of shared memory"


@pytest.mark.parametrize("arch", SHARED_BYTES)
def test_parts_are_joined_without_spills(arch: int | str) -> None:
    """Of one new query: the keys are split among programs, and `combine` joins what these found."""
    call = example(torch.bfloat16, 256, 512, False, "cpu", 1024)
    target = Target.named(arch, {}, "combine")
    (found,) = compiled(replace(call, q=call.q[:, :, -1:]), target)
    assert found.kernel == "combine" and found.spills == 0


def test_no_row_is_idle() -> None:
    """Every row sizes some call for some target, with some version of Triton."""
    versions = {INSTALLED, *(row.version for row in table() if row.version)}
    assert {used.row for version in versions for used in shipped(version)} == set(table())


def test_the_narrowest_row_sizes_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls count before devices: a device's sizes for float32 are not for its bfloat16."""
    tiles = Tiles(16, 16, 4, 1)
    for_all = Row("any", "forward", 64, 2, 512, True, tiles, "")
    float32 = Row(100, "forward", 128, 4, 512, True, tiles, "")
    old = Row(100, "forward", 64, 2, 512, True, tiles, "", version=(3, 6))
    monkeypatch.setattr(tuning, "table", lambda: (float32, old, for_all))
    find = row_for.__wrapped__  # no cache
    half, full = Wanted("forward", 64, 2, 512, False), Wanted("forward", 64, 4, 512, False)
    assert find(100, half, (3, 9)) == for_all and find(90, half, (3, 6)) == for_all
    assert find(100, half, (3, 6)) == old
    assert find(100, full, (3, 6)) == float32


@pytest.mark.parametrize("arch", [*SHARED_BYTES, 75, 89, 120])
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
