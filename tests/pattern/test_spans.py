"""Spans and block maps: upper bounds of the mask, exact where they say so, and linear in cost."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lf_backend as lf
from lf_backend.pattern import block_map as module
from lf_backend.pattern.block_map import block_map
from lf_backend.pattern.spans import Span, bridged, common, united
from lf_backend.testing.strategies import patterns

M = 30
spans = st.lists(st.builds(Span, st.integers(-5, M), st.integers(0, M + 5), st.booleans()), max_size=6)


def states(found, m=M):
    """0 unseen, 1 some, 2 full, for each key."""
    state = torch.zeros(m, dtype=torch.int64)
    for start, stop, full in found:
        for key in range(max(start, 0), min(stop, m)):
            state[key] = max(state[key], 1 + full)
    return state


@given(spans, spans)
def test_union_and_intersection_key_by_key(one, two):
    assert torch.equal(states(united([*one, *two], M)), states([*one, *two]))
    parts = united(one, M), united(two, M)
    assert torch.equal(states(common(parts, M)), torch.minimum(*map(states, parts)))


@given(spans)
def test_spans_are_disjoint_sorted_and_few(one):
    found = united(one, M)
    for left, right in pairwise(found):
        assert left.stop < right.start or (left.stop == right.start and left.full != right.full)
    assert all(0 <= start < stop <= M for start, stop, _ in found)


def test_bridges_join_what_is_near():
    near = Span(0, 2, True), Span(4, 5), Span(20, 22, True), Span(22, 30)
    assert bridged(near, 3) == (Span(0, 5), Span(20, 22, True), Span(22, 30))


@given(st.data(), st.integers(1, 40), st.integers(1, 9))
@settings(max_examples=300)
def test_block_map_bounds_the_mask(data, m, rows):
    n, pattern = data.draw(st.integers(1, m)), data.draw(patterns(2, m))
    lowered = pattern.lowered
    for head in range(2):
        seen = torch.zeros(n, m, dtype=torch.bool)
        for form in (*lowered.bands, *lowered.others):
            seen |= form.sees(torch.tensor(head), torch.arange(m - n, m)[:, None], torch.arange(m))
        found = block_map((*lowered.bands, *lowered.others), head, n, m, rows)
        assert len(found) == -(-n // rows)
        for block, row in zip(found, seen.split(rows), strict=True):
            state = states(block, m)
            assert not row[:, state == 0].any() and row[:, state == 2].all()


def test_without_bounds_a_map_is_found_by_evaluation_in_chunks(monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 50)
    rule = lf.Predicate(lambda head, query, key: (key >= 20) & (key < 25) | (key // 10 == query // 10))
    assert block_map((rule,), 0, 40, 40, 10)[0] == (Span(0, 10, True), Span(20, 25, True))


def test_with_bounds_no_pair_is_evaluated():
    def fail(head, query, key):
        raise AssertionError("asked")

    rule = lf.Predicate(fail, lambda head, first, last, m: [(first - 5, last + 5)])
    assert len(block_map((rule,), 0, 1 << 20, 1 << 20, 64)) == 1 << 14


def test_a_window_bounds_a_rule_without_bounds():
    asked = []

    def rule(head, query, key):
        asked.append(torch.broadcast_shapes(query.shape, key.shape).numel())
        return key % 2 == 0

    pattern = lf.Predicate(rule) & lf.Window(8, 8)
    block_map(pattern.lowered.others, 0, 6400, 6400, 64)
    assert sum(asked) == pytest.approx(6400 * (64 + 16), rel=0.01)
