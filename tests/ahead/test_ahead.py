"""Every configuration that ships, compiled for devices that need not be here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

import lf_backend as lf
from lf_backend.backend import Call, Columns
from lf_backend.backends.triton import forward, tuning
from lf_backend.backends.triton.ahead import (
    CALLS,
    KERNELS,
    SHARED_BYTES,
    TENSOR_COLUMNS,
    Shipped,
    Target,
    built,
    compiled,
    example,
    shipped,
)
from lf_backend.backends.triton.tuning import INSTALLED, LIKE, Tiles, TilesRow, Wanted, row_for, table
from lf_backend.ops.documents import boundaries
from lf_backend.pattern.bands import EVERYTHING
from lf_backend.pattern.lowered import Lowered
from tests.ahead.compiled import hardest, title, used

FEW_LOCAL = 12
ARCHS = [arch for arch in SHARED_BYTES if arch not in LIKE]


@pytest.mark.parametrize("kernel", [pytest.param(kernel, id=title(kernel)) for kernel in hardest()])
def test_builds_fits_and_loops_in_registers(kernel: Shipped) -> None:
    found = used(kernel)
    assert found.looped == 0, f"loads and stores of local memory in loops: {found}"
    assert found.shared <= SHARED_BYTES[kernel.arch], f"bytes of shared memory: {found}"


def test_local_memory_in_loops_is_seen() -> None:
    """Of one warp that has a tile for eight."""
    row = row_for(80, Wanted("grad_queries", 64, 2, 512, False))
    found = built(row._replace(tiles=Tiles(64, 64, 1, 1)), 80, False)
    assert found.spills and found.looped and not found.fits(80)


@pytest.mark.parametrize("arch", ARCHS)
def test_parts_are_joined_in_registers(arch: int | str) -> None:
    """Of one new query: the keys are split among programs, and `combine` joins what these found."""
    call = example(torch.bfloat16, 256, 512, False, "cpu", 1024)
    target = Target.named(arch, {}, "combine")
    (found,) = compiled(replace(call, q=call.q[:, :, -1:]), target)
    assert found.kernel == "combine" and found.spills == 0


@pytest.mark.parametrize("arch", ARCHS)
def test_packed_documents_and_padding_build_and_fit(arch: int | str) -> None:
    """Boundaries and padding are tensors: the same kernels, with a few numbers more for each block."""
    call = example(torch.bfloat16, 64, 512, False, "cpu", 1024)
    documents = boundaries(lf.document_ids([0, 100, 1024]))
    padding = torch.zeros(1, 1024, dtype=torch.bool)
    for found in compiled(replace(call, documents=documents, key_padding=padding), Target.named(arch)):
        assert found.fits(arch), found


def _padded(dims: int) -> Call:
    """A call with padding and one global token, whose gradients are found with those of the queries."""
    call = example(torch.bfloat16, dims, 512, False, "cpu", 1024)
    at = torch.zeros(1, 1, dtype=torch.int64)
    return replace(
        call, columns=Columns(at, at >= 0, False), key_padding=torch.zeros(1, 1024, dtype=torch.bool)
    )


def _packed(dims: int) -> Call:
    """Heads in fours that share keys, a narrow window."""
    call = example(torch.bfloat16, dims, 512, False, "cpu", 1024)
    return replace(call, k=call.k[:, ::4], v=call.v[:, ::4], lowered=lf.Window(127, 0).lowered)


def _row(dims: int) -> Call:
    """A row of a global token."""
    call = replace(_padded(dims), columns=None, positions=torch.zeros(1, 1, dtype=torch.int64))
    return replace(call, lowered=Lowered((EVERYTHING,), (), False, ()))


@pytest.mark.parametrize(("arch", "dims"), [(80, 128), (90, 64), (90, 128), (100, 64)])
@pytest.mark.parametrize("make", [_padded, _packed, _row])
def test_other_calls_of_the_same_rows(arch: int, dims: int, make: Callable[[int], Call]) -> None:
    """Those with padding touch local memory a few times, besides in the loop for holes; by the model other
    sizes would be slower. Loops over rows run once."""
    found = compiled(make(dims), Target.named(arch))
    assert {"forward", "grad_keys"} <= {one.kernel for one in found}
    for one in found:
        assert one.shared <= SHARED_BYTES[arch] and one.tensor <= TENSOR_COLUMNS, one
        local = [sum(x.local for x in one.code.inside(loop)) for loop in one.code.tile_loops]
        if make is _packed:
            assert not any(local), one
        elif make is _padded and one.kernel in ("forward", "grad_queries", "grad_keys"):
            assert len(local) >= 3 and sum(local) - local[2] <= FEW_LOCAL, one


@pytest.mark.parametrize("arch", LIKE)
def test_devices_that_take_the_rows_of_others(arch: int) -> None:
    """Windows in half precision, the rows that are made for the others."""
    call = replace(example(torch.bfloat16, 64, 512, False, "cpu", 1024), columns=None)
    for found in compiled(call, Target.named(arch, {}, "forward", "grad_queries", "grad_keys")):
        assert found.tiles == row_for(LIKE[arch], Wanted(found.kernel, 64, 2, 512, False)).tiles
        assert found.fits(arch), found


@pytest.mark.parametrize("dims", [72, 80])
def test_head_dimensions_between_powers_of_two(dims: int) -> None:
    for found in compiled(example(torch.bfloat16, dims, 512, False, "cpu", 1024), Target.named(90)):
        assert found.fits(90), found


def test_no_row_is_idle() -> None:
    """Every row sizes some call for some target, with some version of Triton."""
    versions = {INSTALLED, *(row.version for row in table() if row.version)}
    assert {kernel.row for version in versions for kernel in shipped(version)} == set(table())


def test_the_narrowest_row_sizes_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls count before devices: a device's sizes for float32 are not for its bfloat16."""
    tiles = Tiles(16, 16, 4, 1)
    for_all = TilesRow("any", "forward", 64, 2, 512, True, tiles, "")
    float32 = TilesRow(100, "forward", 128, 4, 512, True, tiles, "")
    old = TilesRow(100, "forward", 64, 2, 512, True, tiles, "", version=(3, 6))
    monkeypatch.setattr(tuning, "table", lambda: (float32, old, for_all))
    find = row_for.__wrapped__  # no cache
    half, full = Wanted("forward", 64, 2, 512, False), Wanted("forward", 64, 4, 512, False)
    assert find(100, half, (3, 9)) == for_all and find(90, half, (3, 6)) == for_all
    assert find(100, half, (3, 6)) == old
    assert find(100, full, (3, 6)) == float32


@pytest.mark.parametrize("arch", [*SHARED_BYTES, 75])
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
    compiled(example(torch.bfloat16, 64, 128, False, "cpu", 1024), target)
    before = _variants()
    for length in (1023, 1008, 4097):
        compiled(example(torch.bfloat16, 64, 128, False, "cpu", length), target)
    assert _variants() == before > 0


def _variants() -> int:
    return sum(len(cache[0]) for cache in forward.forward.device_caches.values())
