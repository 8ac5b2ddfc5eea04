"""The kernels' own arithmetic against its one definition in the core."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st

import lf_backend as lf
from lf_backend.backends.triton import launch
from lf_backend.backends.triton.tiles import Band as TritonBand
from lf_backend.backends.triton.tiles import (
    Dropout,
    class_length,
    edge,
    edges,
    in_band,
    keep,
    part_of,
    span,
    tanh,
)
from lf_backend.numerics import dropout
from lf_backend.pattern.bands import Band
from lf_backend.pattern.bands import class_length as core_class_length
from lf_backend.testing.cases import CASES


@triton.jit
def _span(out, first, last, before, after, low, high, part, parts, TILE: tl.constexpr):
    start, stop, inner, outer = span(first, last, before, after, low, high, low, high, TILE)
    start, stop, inner, outer = part_of(start, stop, inner, outer, part, parts, TILE)
    tl.store(out, start)
    tl.store(out + 1, stop)
    tl.store(out + 2, inner)
    tl.store(out + 3, outer)
    count = edges(start, stop, inner, outer, TILE)
    tl.store(out + 4, count)
    for tile in tl.range(0, count):
        tl.store(out + 5 + tile, edge(tile, start, inner, outer, TILE))


reaches = st.integers(0, 40)


@given(reaches, reaches, st.integers(1, 90), st.integers(0, 89), st.integers(1, 32), st.integers(1, 4))
@settings(deadline=None, max_examples=40)
def test_tiles_cover_the_key_range_once(
    left: int, right: int, length: int, first: int, rows: int, parts: int
) -> None:
    """All parts together: every step of the range in one tile; tiles without masks lie in all windows."""
    first = min(first, length - 1)
    last, size = min(first + rows, length) - 1, 16
    begin, end = Band(left, right, (1,)).key_range(first, last + 1, length)
    visited: list[int] = []
    for part in range(parts):
        out = torch.zeros(64, dtype=torch.int32)
        _span[(1,)](out, first, last, left, right, 0, length, part, parts, TILE=size)
        start, stop, inner, outer, count, *starts = out.tolist()
        for at in range(inner, outer, size):
            assert last - left <= at and at + size - 1 <= min(first + right, length - 1)
        tiles = [(at, min(at + size, outer)) for at in range(inner, outer, size)]
        tiles += [(at, min(at + size, stop)) for at in starts[:count]]
        assert all(start <= low < high <= stop for low, high in tiles)
        visited += [step for low, high in tiles for step in range(low, high)]
    assert sorted(visited) == list(range(begin, end))


@triton.jit
def _class_length(out, length, residue, dilation):
    tl.store(out, class_length(length, residue, dilation))


@pytest.mark.parametrize(("length", "residue", "dilation"), [(10, 0, 3), (10, 2, 3), (2, 5, 7), (0, 0, 1)])
def test_class_length(length: int, residue: int, dilation: int) -> None:
    out = torch.zeros(1, dtype=torch.int32)
    _class_length[(1,)](out, length, residue, dilation)
    assert out.item() == core_class_length(length, residue, dilation)


@triton.jit
def _in_band(out, distance, left, right, dilation):
    tl.store(out, in_band(distance, TritonBand(left, right, dilation)))


@pytest.mark.parametrize(
    ("distance", "wanted"),
    [(0, True), (-60_000, True), (60_000, True), (-60_001, False), (120_000, True), (-180_000, False)],
)
def test_reach_of_more_than_32_bits_in_positions(distance: int, wanted: bool) -> None:
    """Two steps back of 60,000 positions, and 50,000 ahead."""
    out = torch.zeros(1, dtype=torch.int32)
    _in_band[(1,)](out, distance, 2, 50_000, 60_000)
    assert bool(out.item()) is wanted
    assert bool(Band(2, 50_000, (60_000,)).sees(0, 0, distance)) is wanted


@triton.jit
def _keep(out, dropped, head, batch, queries, keys):
    rows, columns = tl.arange(0, 16), tl.arange(0, 32)
    found = keep(dropped, batch, head, (queries + rows)[:, None], (keys + columns)[None, :])
    tl.store(out + rows[:, None] * 32 + columns[None, :], found)


@pytest.mark.parametrize("seed", [(0,), (1,), (2**61 + 12345,), (7, 0), (7, 5000)])
def test_dropout_drops_the_same_weights(seed: tuple[int, ...]) -> None:
    given = torch.tensor(seed)
    starts = dropout.starts(given, torch.arange(3))
    out = torch.empty(16, 32)
    _keep[(1,)](out, Dropout(starts, dropout.origin(given), dropout.threshold(0.3), 1 / 0.7), 2, 1, 70, 9)
    queries, keys = torch.arange(70, 86), torch.arange(9, 41)
    wanted = dropout.keep(given, 1, torch.tensor([2]), queries, keys, 0.3, torch.float32)[0]
    assert torch.equal(out, wanted)
    assert 0 < (out == 0).sum() < out.numel()


@triton.jit
def _tanh(x, out, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    tl.store(out + at, tanh(tl.load(x + at)))


def test_tanh_is_exact_to_rounding() -> None:
    x = torch.cat([torch.linspace(-12, 12, 480), torch.logspace(-8, 0, 32)])
    out = torch.empty_like(x)
    _tanh[(1,)](x, out, SIZE=512)
    exact = x.double().tanh()
    assert ((out - exact).abs() / exact.abs().clamp(min=1e-30)).max() < 8 * torch.finfo(torch.float32).eps


def test_offsets_of_64_bits_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors of more than 2^31 elements take the same path with wider numbers."""
    tensors = CASES["dilation per head, grouped"].tensors(torch.float32, torch.device("cpu"))
    leaves = (tensors.q, tensors.k, tensors.v)

    def run() -> list[torch.Tensor]:
        out = lf.attention(*leaves, CASES["dilation per head, grouped"].pattern, backend="triton")
        return [out.detach(), *torch.autograd.grad(out.sum(), leaves)]

    narrow = run()
    monkeypatch.setattr(launch, "view", lambda x: launch.View(x, x.stride(), 1))
    assert all(torch.equal(one, other) for one, other in zip(narrow, run(), strict=True))
