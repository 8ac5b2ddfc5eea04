"""Shipped sparse patterns against their papers' rules in plain Python, and named terms as text and data."""

import pickle
from itertools import product

import pytest
import torch

import lf_backend as lf
from lf_backend import PatternError, sparsity
from lf_backend.pattern import named

HEADS = 4


def document(position, edges=(0, 5, 5, 30)):
    return sum(position >= edge for edge in edges)


def kept(head, i, j, segment, step):
    return i // segment == j // segment and i % segment % step == j % segment % step == head % step


EXPECTED = {
    "block_local(5)": lambda h, i, j: i // 5 == j // 5,
    "block_local(4, reach=2)": lambda h, i, j: abs(i // 4 - j // 4) <= 2,
    "strided(6)": lambda h, i, j: j <= i and (i - j <= 6 or (i - j) % 6 == 0),
    "fixed(7, summary=2)": lambda h, i, j: j <= i and (i // 7 == j // 7 or j % 7 in (5, 6)),
    "documents([0, 5, 5, 30])": lambda h, i, j: document(i) == document(j),
    "prefix_lm(9)": lambda h, i, j: j <= i or (i < 9 and j < 9),
    "streaming(5, sinks=2)": lambda h, i, j: j <= i and (i - j < 5 or j < 2),
    "longnet([8, 20], [1, 3])": lambda h, i, j: kept(h, i, j, 8, 1) or kept(h, i, j, 20, 3),
    "neighbourhood(5, 7, reach=1)": lambda h, i, j: (
        max(i, j) < 35 and abs(i // 7 - j // 7) <= 1 and abs(i % 7 - j % 7) <= 1
    ),
}


@pytest.mark.parametrize("text", EXPECTED)
@pytest.mark.parametrize("n", [3, 40, 70])
def test_shows_what_the_paper_says(text, n):
    mask, rule = lf.parse(text).mask(n, heads=HEADS), EXPECTED[text]
    for head, query, key in product(range(HEADS), range(n), range(n)):
        assert mask[head, query, key] == rule(head, query, key), (head, query, key)


def test_random_blocks_are_whole_distinct_and_seeded():
    pattern = sparsity.random_blocks(80, 8, 3, seed=1, heads=2)
    mask = pattern.mask(80, heads=HEADS)
    blocks = mask.view(HEADS, 10, 8, 10, 8)
    assert torch.equal(blocks.all(4).all(2), blocks.any(4).any(2))
    assert (blocks.any(4).any(2).sum(-1) == 3).all()
    assert torch.equal(mask[0], mask[2]) and not torch.equal(mask[0], mask[1])
    assert torch.equal(sparsity.random_blocks(80, 8, 3, seed=1, heads=2).mask(80, heads=HEADS), mask)
    assert not torch.equal(sparsity.random_blocks(80, 8, 3, seed=2, heads=2).mask(80, heads=HEADS), mask)


def test_big_bird_is_window_random_and_global():
    blocks = sparsity.big_bird(160, block=8).mask(160).view(1, 20, 8, 20, 8)
    assert torch.equal(blocks.all(4).all(2), blocks.any(4).any(2))
    seen = blocks.any(4).any(2)[0]
    assert seen[:2].all() and seen[:, :2].all()
    assert all(seen[i, max(i - 1, 0) : i + 2].all() for i in range(20))
    assert (seen[3:-1].sum(1) <= 8).all() and (seen[3:-1].sum(1) >= 5).all()


ALL = [*EXPECTED, "random_blocks(70, block=8, heads=2)", "big_bird(70, block=8, globals=1)"]


def test_every_shipped_term_is_tested():
    assert {text.split("(")[0] for text in ALL} >= {n for n in named.names() if hasattr(sparsity, n)}


@pytest.mark.parametrize("text", [*ALL, "documents([0, 5, 30]) & causal() | window(1, 1)"])
def test_bounds_hold(text):
    lf.parse(text).check(70, heads=HEADS)
    lf.parse(text).check(50, 70, heads=HEADS)


@pytest.mark.parametrize("text", ALL)
def test_reads_and_writes(text):
    pattern = lf.parse(text)
    assert str(pattern) == text
    assert lf.from_json(lf.to_json(pattern)) == pattern == pickle.loads(pickle.dumps(pattern))
    assert hash(lf.from_dict(lf.to_dict(pattern))) == hash(pattern)


@pytest.mark.parametrize("text", ALL)
def test_draws(text):
    assert str(lf.draw(text, 48, heads=2)).startswith(text)


def test_equal_terms_share_what_is_derived():
    one, two = (sparsity.documents(torch.tensor([0, 5, 30])) for _ in range(2))
    assert one == two == sparsity.documents([0, 5, 30]) and one.made is two.made
    assert one != sparsity.documents([0, 5, 31])


def test_strided_and_streaming_need_no_predicate():
    for pattern in (sparsity.strided(6), sparsity.streaming(5)):
        assert not pattern.lowered.others


@pytest.mark.parametrize("text", ALL)
@pytest.mark.parametrize("causal", [False, True])
def test_attention_is_dense_attention_under_the_mask(text, causal):
    pattern = lf.parse(text) & lf.Causal() if causal else lf.parse(text)
    q, k, v = (torch.randn(2, HEADS, 70, 8, dtype=torch.float64, requires_grad=True) for _ in "qkv")
    mask = pattern.mask(70, heads=HEADS)
    seen = mask.any(-1)[..., None]
    wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v, mask | ~seen) * seen
    out = lf.attention(q, k, v, pattern)
    torch.testing.assert_close(out, wanted)
    grads = (torch.autograd.grad(x.sin().sum(), (q, k, v)) for x in (out, wanted))
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sparsity.block_local(0), r"block >= 1 wanted, got 0"),
        (lambda: sparsity.strided(1.5), r"stride: an int wanted, got 1.5"),
        (lambda: sparsity.fixed(4, 5), r"summary in \[1, 5\) wanted, got 5"),
        (lambda: sparsity.documents([1, 5]), r"boundaries: ascending ints from 0 wanted, got \[1, 5\]"),
        (lambda: sparsity.documents([0, 5, 3]), r"boundaries: ascending ints from 0 wanted"),
        (lambda: sparsity.longnet([8], [1, 2]), r"dilations: one for each of 1 > 0 segments wanted"),
        (lambda: sparsity.big_bird(64, window=2), r"window: an odd number of blocks wanted, got 2"),
        (lambda: lf.parse("block_local(reach=1)"), r"column 1 of .*: missing a required argument: 'block'"),
        (lambda: lf.parse("block_local(0)"), r"column 1 of .*: block >= 1 wanted, got 0"),
        (lambda: lf.from_dict({"term": "documents"}), r"pattern: keys \['boundaries'\] wanted, missing"),
        (lambda: lf.from_dict({"term": "streaming", "window": 0}), r"pattern: n >= 1 wanted, got 0"),
    ],
)
def test_errors(make, message):
    with pytest.raises(PatternError, match=message):
        make()


@pytest.fixture
def own(monkeypatch):
    """The register of names, put back afterwards."""
    monkeypatch.setattr(named, "_registered", dict(named._registered))


def test_a_predicate_with_a_name_reads_and_writes(own):
    @lf.term
    def every(step: int, at: int | None = None) -> lf.Pattern:
        return lf.Predicate(lambda head, query, key: key % step == (at or 0))

    pattern = lf.Window(2, 2) | every(4, at=1)
    assert str(pattern) == "window(2, 2) | every(4, at=1)"
    assert lf.parse(str(pattern)) == lf.from_json(lf.to_json(pattern)) == pattern
    assert str(every(4, None)) == "every(4)"
    q = torch.randn(1, 1, 30, 8)
    assert torch.equal(lf.attention(q, q, q, str(pattern)), lf.attention(q, q, q, pattern))


def test_a_cell_of_a_notebook_may_run_again_unchanged(own):
    cell = "def again(step: int):\n    return lf.Window(step, {})\n"
    for body in (0, 0):
        exec(cell.format(body), scope := {"lf": lf})
        lf.term(scope["again"])
    exec(cell.format(1), scope)
    with pytest.raises(PatternError, match="another name than 'again' wanted, which is taken by other code"):
        lf.term(scope["again"])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def window(n): ...", r"a lower-case name besides .* wanted, got 'window'"),
        ("def Every(n): ...", r"a lower-case name besides .* wanted, got 'Every'"),
        ("def every(*n): ...", r"named parameters, none of them 'term', wanted, got every\(\*n\)"),
        ("def every(term): ...", r"named parameters, none of them 'term', wanted, got every\(term\)"),
    ],
)
def test_names_that_text_cannot_hold(own, source, message):
    exec(source, scope := {})
    with pytest.raises(PatternError, match=message):
        lf.term(next(value for value in scope.values() if callable(value)))


def test_what_a_named_term_takes_and_gives(own):
    @lf.term
    def nothing(n: int) -> lf.Pattern:
        return n

    with pytest.raises(PatternError, match="nothing: a function that returns a pattern wanted, got 3"):
        nothing(3)
    with pytest.raises(PatternError, match=r"n: an int wanted, got 0\.5"):
        nothing(0.5)


def test_a_name_that_is_not_known_here():
    with pytest.raises(PatternError, match=r"term: one of \['window', .*\] wanted, got 'elsewhere'; import"):
        named.Named("elsewhere", ())
