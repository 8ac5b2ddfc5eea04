"""A slice is computed in parts that together are what one call would have computed."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from lf_backend.distributed import parts
from lf_backend.distributed.slices import Slices


@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=4),
    st.integers(0, 3),
    st.integers(0, 6),
    st.integers(0, 6),
)
def test_parts_answer_every_query_once_from_all_its_keys(
    sizes: list[int], rank: int, back: int, ahead: int
) -> None:
    slices = Slices(tuple(sizes))
    own, rank = slices.range_of(rank % len(sizes)), rank % len(sizes)
    reach = slices.reach_of(rank, back, ahead)
    found = parts.parts_of(own, reach, (back, ahead))
    assert sorted(query for part in found for query in part.used) == list(own)
    for part in found:
        assert part.rows.stop == part.keys.stop and len(part.rows) <= len(part.keys)
        for query in part.used:
            seen = range(max(0, query - back), min(slices.length, query + ahead + 1))
            assert query in part.rows and seen[0] in part.keys and seen[-1] in part.keys


def test_a_long_slice_has_an_interior_that_copies_nothing() -> None:
    own = range(1000, 3000)
    interior, *edges = parts.parts_of(own, range(900, 3050), (100, 50))
    assert interior.keys == interior.rows == own and interior.used == range(1100, 2950)
    assert [len(part.keys) for part in edges] == [100 + 100 + 50, 100 + 50 + 50]
    x = torch.randn(1, 2, len(own), 4)
    assert parts.cut([(own, x)], interior.keys).data_ptr() == x.data_ptr()


def test_a_short_slice_is_one_part() -> None:
    own, reach = range(1000, 1100), range(900, 1150)
    assert parts.parts_of(own, reach, (100, 50)) == [parts.Part(own, range(1000, 1150), reach)]
