"""Bands taken apart show the same pairs, each once."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from lf_backend.pattern.bands import Band
from lf_backend.pattern.disjoint import disjoint

M = 24
reach = st.one_of(st.none(), st.integers(0, 9))


@st.composite
def bands(draw: st.DrawFn) -> tuple[Band, ...]:
    heads = draw(st.sampled_from([1, 2]))
    dilations = st.lists(st.integers(1, 4), min_size=heads, max_size=heads).map(tuple)
    count = draw(st.integers(1, 3))
    return tuple(Band(draw(reach), draw(reach), draw(dilations)) for _ in range(count))


def counts(found: tuple[Band, ...]) -> torch.Tensor:
    """How many of the bands show each pair, [2, M, M]."""
    at = torch.arange(M)
    return sum(
        torch.stack([band.at(head).sees(0, at[:, None], at) for head in range(2)]).int() for band in found
    )


@given(bands())
def test_every_pair_once(given_bands: tuple[Band, ...]) -> None:
    found = disjoint(given_bands)
    if found is not None:
        assert torch.equal(counts(found), counts(given_bands).clamp(max=1))


def test_which_bands_can_be_taken_disjoint() -> None:
    strided = disjoint((Band(8, 0, (1,)), Band(None, 0, (8,))))
    assert strided == (Band(8, 0, (1,)), Band(None, -2, (8,)))
    assert disjoint((Band(6, 0, (1,)), Band(2, 2, (1,)))) == (Band(6, 0, (1,)), Band(-1, 2, (1,)))
    assert disjoint((Band(9, 9, (1,)), Band(2, 2, (3,)))) == (Band(9, 9, (1,)),)
    assert disjoint((Band(4, 4, (2,)), Band(4, 4, (3,)))) is None
    assert disjoint((Band(4, 4, (1,)), Band(4, 4, (2, 8)))) is None
    assert disjoint((Band(1, 1, (1, 2)), Band(9, 5, (2, 4)))) == (
        Band(1, 1, (1, 2)),
        Band(9, -1, (2, 4)),
        Band(-1, 5, (2, 4)),
    )
    assert disjoint(()) == ()
