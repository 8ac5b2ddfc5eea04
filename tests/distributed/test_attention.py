"""The answer of ranks is the answer of one process, gradients included."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lf_backend import Causal, Global, Pattern, Predicate, Window
from lf_backend.distributed.parts import SHORT
from lf_backend.pattern.lowered import Tokens
from lf_backend.testing import oracle
from lf_backend.testing.case import Case
from tests.distributed import jobs
from tests.distributed.ranks import SIZE, Ranks


def same_block(head: Any, query: Any, key: Any) -> Any:
    """Blocks of 7 positions."""
    return query // 7 == key // 7


def block(head: int, first: int, last: int, m: int) -> list[tuple[int, int]]:
    """Return the keys of the blocks of some queries."""
    return [(first // 7 * 7, (last // 7 + 1) * 7)]


def by_head(head: Any, query: Any, key: Any) -> Any:
    """Every second or third position, counted from the start of the row."""
    return (query + key) % (head + 2) == 0


@st.composite
def patterns(draw: st.DrawFn, heads: int, length: int) -> Pattern:
    """Windows with limits, some longer than a slice or than all, and global tokens; causal or not."""
    reach = st.one_of(st.integers(0, 6), st.integers(0, length + 5))
    step = st.integers(1, 4)
    terms: list[Pattern] = []
    for _ in range(draw(st.sampled_from((1, 1, 1, 2, 0)))):
        dilation = draw(st.one_of(step, st.tuples(*[step] * heads)))
        terms.append(Window(draw(reach), draw(reach), dilation))
    rule = draw(st.integers(0, 7))
    if rule == 0:
        terms.append(Predicate(same_block, block))
    elif rule == 1:
        terms.append(Predicate(by_head) & Window(draw(st.integers(0, 20)), draw(st.integers(0, 20))))
    if not terms or draw(st.booleans()):
        terms.append(Global(*draw(st.lists(st.integers(0, length - 1), max_size=3))))
    pattern = terms[0]
    for term in terms[1:]:
        pattern = pattern | term
    return pattern & Causal() if draw(st.integers(0, 3)) == 0 else pattern


@st.composite
def cases(draw: st.DrawFn) -> tuple[Case, tuple[int, ...]]:
    """A call, and how many positions each rank has of it."""
    group, kv_heads, batch = draw(st.integers(1, 2)), draw(st.integers(1, 2)), draw(st.integers(1, 3))
    heads, length = group * kv_heads, draw(st.integers(1, 60))
    size = draw(st.integers(1, SIZE))
    cuts = sorted(draw(st.lists(st.integers(0, length), min_size=size - 1, max_size=size - 1)))
    sizes = tuple(b - a for a, b in zip([0, *cuts], [*cuts, length], strict=True))
    pattern = draw(patterns(heads, length))
    tokens = draw(st.one_of(st.none(), st.integers(0, 4)))
    some = st.integers(0, 2).map(lambda x: x == 0)
    bias = len(pattern.lowered.bands) == 1 and draw(some)
    case = Case(
        pattern,
        batch,
        heads,
        kv_heads,
        length,
        head_dim=4,
        value_dim=draw(st.sampled_from((None, 3))),
        padding=draw(st.sampled_from(("", "right", "left", "middle", "all"))),
        globals=tokens,
        listed=draw(st.booleans()),
        documents=draw(st.sampled_from((0, 1, 3, 9))),
        separate=(tokens is not None or bool(pattern.lowered.positions)) and draw(st.booleans()),
        bias=draw(st.sampled_from((1, batch))) if bias else 0,
        sinks=draw(some),
        scale=draw(st.sampled_from((None, 1.3))),
        softcap=draw(st.sampled_from((None, None, 2.0))),
        dropout_p=draw(st.sampled_from((0.0, 0.0, 0.3))),
        transposed=draw(st.booleans()),
        seed=draw(st.integers(0, 2**16)),
    )
    return case, sizes


@settings(max_examples=60)
@given(cases(), st.sampled_from((1, 1, SHORT)))
def test_ranks_agree_with_one_process(ranks: Ranks, drawn: tuple[Case, tuple[int, ...]], short: int) -> None:
    case, sizes = drawn
    if not refused(case):
        check(ranks, case, sizes, torch.float64, 1e-10, short)


@settings(max_examples=15)
@given(cases(), st.sampled_from((1, SHORT)))
def test_float32(ranks: Ranks, drawn: tuple[Case, tuple[int, ...]], short: int) -> None:
    case, sizes = drawn
    if not refused(case):
        check(ranks, case, sizes, torch.float32, 2e-4, short)


@pytest.mark.parametrize("tokens", [None, 2])
def test_rules_count_in_documents_that_cross_ranks(ranks: Ranks, tokens: int | None) -> None:
    """Of three documents in each row, most begin in one slice and end in another."""
    rules = Predicate(same_block, block) | Predicate(by_head) & Window(4, 9)
    case = Case(rules, 2, 2, 1, 57, head_dim=4, padding="middle", globals=tokens, documents=3, dropout_p=0.3)
    for sizes in ((57,), (20, 37), (9, 0, 30, 18), (19, 19, 19)):
        check(ranks, case, sizes, torch.float64, 1e-10, SHORT)


def refused(case: Case) -> bool:
    """Whether a test of its own says that the case is refused."""
    rules = [part for rule in case.pattern.lowered.others for part in rule.parts]
    return any(isinstance(part, Tokens) for part in rules)


def check(
    ranks: Ranks, case: Case, sizes: tuple[int, ...], dtype: torch.dtype, tolerance: float, short: int
) -> None:
    tensors = case.tensors(torch.float64, torch.device("cpu"))
    torch.manual_seed(case.seed)
    seed = torch.randint(2**62, (1,)) if case.dropout_p else None  # what `attention` draws
    out, lse = oracle.attention(pattern=case.pattern, seed=seed, **case.options(), **tensors.named())
    loss = jobs.upstream(case, out, lse, 0, case.queries)
    grads = torch.autograd.grad(loss, list(tensors.leaves().values()), materialize_grads=True)
    found = ranks.run(len(sizes), jobs.attend, case, sizes, dtype, short)
    for each in found:
        if isinstance(each, Exception):
            raise each
    close = {"rtol": tolerance, "atol": tolerance, "check_dtype": False}
    for name, wanted in (("out", out), ("lse", lse)):
        got = torch.cat([torch.from_numpy(each[name]) for each in found], 2)
        torch.testing.assert_close(got, wanted.detach(), **close, msg=lambda text, n=name: f"{n}: {text}")
    for name, wanted in zip(tensors.leaves(), grads, strict=True):
        got = sum(torch.from_numpy(each["grads"][name]) for each in found)
        torch.testing.assert_close(got, wanted, **close, msg=lambda text, n=name: f"grad of {n}: {text}")
