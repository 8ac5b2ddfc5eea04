"""Predicates: what is kept of them, runs of keys by blocks of 64 queries, and keys in rounds of the cache."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch

import lf_backend as lf
from lf_backend.backend import Call
from lf_backend.backends.native import arguments, rules
from lf_backend.pattern.block_map import block_map
from lf_backend.testing import Case, check

pytestmark = pytest.mark.usefixtures("compiled")


def _scattered(head: Any, query: Any, key: Any) -> Any:
    return (query * 7919 + key * 104729 + query * key) % 5 < 2


def _per_head(head: Any, query: Any, key: Any) -> Any:
    return (query + key * 3 + head * 5) % 4 < 2


PATTERNS: dict[str, lf.Pattern] = {
    "pairs anywhere": lf.Predicate(_scattered),
    "beside windows": lf.Predicate(_scattered) | lf.Window(9, 4) | lf.Window(2, 30),
    "heads that differ": lf.Predicate(_per_head) | lf.Global(0, 7),
    "causal": (lf.Predicate(_scattered) | lf.Global(0, 3)) & lf.Causal(),
    "a prefix": lf.sparsity.prefix_lm(70),
    "blocks": lf.sparsity.big_bird(2000, block=16, random=2, globals=1),
    "an image": lf.sparsity.neighbourhood(50, 40, reach=3),
}
CALLS: dict[str, dict[str, Any]] = {
    "whole blocks": {"queries": 128},
    "the last queries": {"queries": 70, "keys": 230},
    "one query": {"queries": 1, "keys": 200},
    "grouped heads": {"queries": 150, "heads": 4, "padding": "middle", "globals": 3},
    "several segments": {"queries": 1100, "batch": 1, "padding": "right"},
    "dropout, softcap, sinks": {"queries": 100, "dropout_p": 0.3, "softcap": 2.0, "sinks": True},
}


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_rules(pattern: str, call: str, dtype: torch.dtype) -> None:
    check(replace(Case(PATTERNS[pattern], head_dim=24), **CALLS[call]), "native", dtype)


@pytest.mark.parametrize("pattern", ["pairs anywhere", "beside windows", "blocks"])
def test_more_keys_than_a_round_takes(pattern: str) -> None:
    case = Case(PATTERNS[pattern], batch=1, kv_heads=1, queries=2000, head_dim=256, padding="middle")
    check(case, "native", torch.float32)


def test_documents_do_not_go_together() -> None:
    q = torch.zeros(1, 2, 30, 8)
    ids = torch.zeros(1, 30, dtype=torch.int64)
    with pytest.raises(
        lf.UnsupportedError, match="no predicates beside packed documents wanted, call has both"
    ):
        lf.attention(q, q, q, lf.Predicate(_scattered), documents=ids, backend="native")


@pytest.mark.parametrize("beside", [lf.Window(3, 3, dilation=2), lf.Window(3, 3, dilation=(1, 2))], ids=str)
def test_dilations_do_not_go_together(beside: lf.Pattern) -> None:
    q = torch.zeros(1, 2, 30, 8)
    said = "no predicates beside dilation wanted, call has both"
    with pytest.raises(lf.UnsupportedError, match=said):
        lf.attention(q, q, q, lf.Predicate(_scattered) | beside, backend="native")


def test_a_rule_is_asked_once() -> None:
    asked = 0

    def rule(head: Any, query: Any, key: Any) -> Any:
        nonlocal asked
        asked += 1
        return key % 3 != query % 2

    q, pattern = torch.randn(1, 2, 200, 8), lf.Predicate(rule)
    first = lf.attention(q, q, q, pattern, backend="native")
    before = asked
    assert before > 0
    assert torch.equal(lf.attention(q, q, q, pattern, backend="native"), first)
    assert asked == before


def test_runs_live_as_long_as_they_are_read() -> None:
    """Another thread may have put others in their place meanwhile, or a fifth length have driven them out."""
    q, pattern = torch.randn(1, 2, 200, 8), lf.Predicate(lambda head, query, key: key % 3 != query % 2)
    call = Call(q, q, q, pattern.lowered, None, None, None, 1.0, None, 0.0, None)
    packed = arguments.packed(call, arguments.Forward(torch.empty_like(q), torch.empty(1, 2, 200)))
    first = weakref.ref(rules.runs_of(call))
    for length in range(100, 110):
        rules._runs(pattern.lowered.others, 1, length, length)
    gc.collect()
    assert rules.runs_of(call) is not first() is not None
    del packed
    gc.collect()
    assert first() is None


def test_of_too_many_runs_the_next_backend_takes_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "MOST", 100)
    q, pattern = torch.randn(1, 2, 190, 8), lf.Predicate(lambda head, query, key: (query * key) % 7 < 3)
    found = lf.attention(q, q, q, pattern)
    torch.testing.assert_close(found, lf.attention(q, q, q, pattern, backend="reference"))
    explained = lf.explain(q, q, q, pattern)
    assert explained.chosen == "blocked"
    assert "rules of at most 100 runs of keys wanted, these have more" in str(explained)


def test_runs_say_what_the_mask_says() -> None:
    n, m = 130, 200
    pattern = PATTERNS["pairs anywhere"]
    found = rules._runs(pattern.lowered.others, 1, n, m)
    mask = torch.zeros(n, m, dtype=torch.bool)
    for block in range(3):
        for run in range(int(found.first[block]), int(found.first[block + 1])):
            for query in range(64 * block, min(64 * block + 64, n)):
                if int(found.queries[run]) >> (query % 64) & 1:
                    mask[query, int(found.start[run]) : int(found.stop[run])] = True
    assert torch.equal(mask, pattern.mask(n, m)[0])
    assert len(found.first) == 1 + len(block_map(pattern.lowered.others, 0, n, m, 64))
