"""Hypothesis strategies for patterns and whole cases; shrinking finds the smallest call that fails."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from lf_backend.pattern.predicate import Predicate
from lf_backend.pattern.terms import Causal, Global, Pattern, Window
from lf_backend.testing.case import Case

DTYPES = ("float64", "float32", "bfloat16", "float16")


@st.composite
def windows(draw: st.DrawFn, heads: int, length: int) -> Window:
    """Windows of all shapes, from one key to longer than the sequence, dilated per head or not."""
    reach = st.one_of(st.integers(0, 8), st.integers(0, length + 5), st.none())
    step = st.integers(1, 4)
    dilation = draw(st.one_of(step, st.lists(step, min_size=heads, max_size=heads)))
    return Window(draw(reach), draw(reach), dilation)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Scattered:
    """A rule: blocks of positions see `share` thirteenths of all blocks, others in each head or not."""

    block: int
    share: int
    per_head: bool

    def __call__(self, head: Any, query: Any, key: Any) -> Any:
        return self._shows(head, query // self.block, key // self.block)

    def bounds(self, head: int, first: int, last: int, m: int) -> list[tuple[int, int, bool]]:
        """Exact."""
        rows, block = range(first // self.block, last // self.block + 1), self.block
        columns = [(at, [self._shows(head, row, at) for row in rows]) for at in range(-(-m // block))]
        return [(at * block, (at + 1) * block, all(shown)) for at, shown in columns if any(shown)]

    def _shows(self, head: Any, row: Any, column: Any) -> Any:
        mixed = row * 5 + column * 7 + row * column * 3 + (head * 11 if self.per_head else 0)
        return mixed % 13 < self.share


@st.composite
def rules(draw: st.DrawFn) -> Pattern:
    """Predicates, with and without bounds, of single pairs and of blocks, that may show nothing to a row."""
    size = st.one_of(st.just(1), st.integers(1, 70))
    rule = Scattered(draw(size), draw(st.integers(0, 13)), draw(st.booleans()))
    return Predicate(rule, rule.bounds) if draw(st.booleans()) else Predicate(rule)


@st.composite
def patterns(draw: st.DrawFn, heads: int, length: int) -> Pattern:
    """Unions of windows and global tokens, in one of four with rules as well, causal or not."""
    window = windows(heads, length)
    tokens = st.lists(st.integers(0, length - 1), max_size=4).map(lambda at: Global(*at))
    choices: list[st.SearchStrategy[Any]] = [window, window, tokens]
    if draw(st.integers(0, 3)) == 3:
        choices += [rules(), st.tuples(rules(), window).map(lambda both: both[0] & both[1])]
    terms = draw(st.lists(st.one_of(choices), min_size=1, max_size=3))
    pattern: Pattern = terms[0]
    for term in terms[1:]:
        pattern = pattern | term
    return pattern & Causal() if draw(st.integers(0, 3)) == 0 else pattern


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Calls within what `lf_backend.attention` takes; a few in eight have each of the rarer features."""
    group, kv_heads = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    heads = group * kv_heads
    keys = draw(st.one_of(st.integers(1, 40), st.integers(1, 300)))
    queries = draw(st.one_of(st.just(keys), st.integers(1, keys)))
    pattern = draw(patterns(heads, keys))
    some = st.integers(0, 3).map(lambda x: x == 0)
    bands = pattern.lowered.bands
    limited = len(bands) == 1 and bands[0].taps() is not None
    tokens = draw(st.integers(0, 5)) if draw(some) else None
    batch = draw(st.integers(1, 3))
    return Case(
        pattern=pattern,
        batch=batch,
        heads=heads,
        kv_heads=kv_heads,
        queries=queries,
        keys=keys,
        head_dim=draw(st.sampled_from((1, 4, 16, 40))),
        value_dim=draw(st.sampled_from((None, None, None, 3, 24))),
        padding=draw(st.sampled_from(("", "", "right", "left", "middle", "all"))),
        globals=tokens,
        listed=draw(st.booleans()),
        documents=draw(st.sampled_from((0, 0, 0, 1, 3, 20))),
        separate=(tokens is not None or bool(pattern.lowered.positions)) and draw(st.booleans()),
        sinks=draw(some),
        bias=draw(st.sampled_from((1, batch))) if limited and draw(some) else 0,
        scale=draw(st.sampled_from((None, None, 0.0, 1.3))),
        softcap=draw(st.sampled_from((None, None, None, 2.0))),
        dropout_p=draw(st.sampled_from((0.0, 0.0, 0.0, 0.3))),
        transposed=draw(st.booleans()),
        spread=draw(st.sampled_from((1.0, 1.0, 20.0))),
        seed=draw(st.integers(0, 2**16)),
    )
