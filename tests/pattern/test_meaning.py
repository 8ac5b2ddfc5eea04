"""The definition of visibility against a scalar one, and everything derived from it against the mask."""

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lf_backend as lf
from lf_backend import Causal, Global, PatternError, Predicate, Window
from lf_backend.pattern import terms as pattern_module
from tests.pattern.trees import HEADS, trees, windows

LENGTH = 9


@given(trees(LENGTH))
def test_mask_is_the_scalar_definition(tree):
    mask = tree.pattern().mask(LENGTH, heads=HEADS)
    for head in range(HEADS):
        for query in range(LENGTH):
            for key in range(LENGTH):
                wanted = tree.sees(head, query, key)
                assert mask[head, query, key] == wanted
                assert tree.pattern().visible(query, key, head) is wanted


@given(trees(LENGTH), st.integers(0, LENGTH))
def test_queries_are_the_last_positions(tree, n):
    pattern = tree.pattern()
    assert torch.equal(pattern.mask(n, LENGTH, HEADS), pattern.mask(LENGTH, heads=HEADS)[:, LENGTH - n :])


@given(trees(LENGTH))
@settings(max_examples=300)
def test_lowering_is_exact(tree):
    pattern = tree.pattern()
    lowered = pattern.lowered
    head = torch.arange(HEADS)[:, None, None]
    query, key = torch.arange(LENGTH)[None, :, None], torch.arange(LENGTH)[None, None]
    seen = torch.zeros(HEADS, LENGTH, LENGTH, dtype=torch.bool)
    for form in lowered.forms:
        seen |= form.sees(head, query, key)
    for token in lowered.positions:
        cross = (query == token) | (key == token)
        seen |= cross & (key <= query) if lowered.causal_globals else cross
    assert torch.equal(seen, pattern.mask(LENGTH, heads=HEADS))


@given(trees(LENGTH))
def test_causal_global_rows_may_see_exactly_the_past(tree):
    """What lets a backend compute such a row as the past, without looking at the rest of the pattern."""
    pattern = tree.pattern()
    if pattern.lowered.causal_globals:
        for token in pattern.lowered.positions:
            row = pattern.mask(LENGTH, heads=HEADS)[:, token]
            assert torch.equal(row, (torch.arange(LENGTH) <= token).expand(HEADS, -1))


@given(trees(LENGTH))
def test_what_does_not_look_ahead_shows_nothing_ahead(tree):
    pattern = tree.pattern()
    if not pattern.looks_ahead:
        assert not pattern.mask(LENGTH, heads=HEADS).triu(1).any()
    assert not (pattern.is_causal and pattern.looks_ahead)


@pytest.mark.parametrize(
    ("text", "causal"),
    [
        ("window(3, 0)", False),
        ("window(3, 0) & causal()", True),
        ("window(3, 0) & causal() | window(1, 0)", False),
        ("window(3, 1)", False),
        ("window(3, 0) | global(0)", False),
        ("window(3, 0) | global()", False),
        ("(window(3, 3) | global(0)) & causal()", True),
        ("causal()", True),
        ("global(0)", False),
    ],
)
def test_is_causal(text, causal):
    assert lf.parse(text).is_causal is causal


def test_causal_globals_besides_a_place_holder_for_others_are_a_rule():
    """The place-holder's tokens look ahead, so one flag for all columns would be wrong."""
    pattern = lf.parse("window(2, 0) | global(0) & causal() | global()")
    assert not pattern.is_causal and not pattern.lowered.positions and len(pattern.lowered.others) == 1


@given(trees(LENGTH), st.integers(0, LENGTH))
@settings(max_examples=300)
def test_pairs_is_the_sum_of_the_mask(tree, n):
    pattern = tree.pattern()
    assert pattern.pairs(n, LENGTH, HEADS) == int(pattern.mask(n, LENGTH, HEADS).sum())


def test_pairs_with_a_predicate_in_several_blocks(monkeypatch):
    pattern = Window(1, 0) | Predicate(lambda head, query, key: query // 4 == key // 4)
    wanted = int(pattern.mask(20, 23, 2).sum())
    monkeypatch.setattr(pattern_module, "BLOCK", 100)
    assert pattern.pairs(20, 23, 2) == wanted


@given(windows(), st.integers(1, 20))
def test_ranges_are_rows_and_columns_of_the_mask(window, m):
    mask = window.mask(m, heads=HEADS)
    for head in range(HEADS):
        for position in range(m):
            assert list(window.key_range(position, m, head)) == mask[head, position].nonzero()[:, 0].tolist()
            assert (
                list(window.query_range(position, m, head))
                == mask[head, :, position].nonzero()[:, 0].tolist()
            )


@given(st.lists(windows(), min_size=2, max_size=3))
def test_windows_intersect_to_one_band_wherever_the_heads_agree(terms):
    pattern = terms[0]
    for term in terms[1:]:
        pattern = pattern & term
    if all(isinstance(term.dilation, int) for term in terms):
        assert len(pattern.lowered.bands) == 1 and not pattern.lowered.others


def test_causal_is_taken_into_a_window_and_stays():
    assert Window(3, 3) & Causal() == Causal() & Window(3, 3) == Window(3, 0) & Causal()
    assert (Window(3, 3) & Causal()).lowered == Window(3, 0).lowered
    assert Causal() & Causal() == Causal()
    assert Causal() & Global(0) & Window(2, 2) == Global(0) & Window(2, 0) & Causal()


def test_window_causal_counts_itself():
    assert Window.causal(3) == Window(2, 0)
    assert Window.causal(1).mask(3)[0].tolist() == torch.eye(3, dtype=torch.bool).tolist()


def test_patterns_are_values():
    one, two = (Window(2, 1, [1, 2]) | Global(3, 0, 3) for _ in range(2))
    assert one == two and hash(one) == hash(two) and one.lowered == two.lowered
    assert one != Window(2, 1, [1, 2]) | Global(0)
    assert pickle.loads(pickle.dumps(one)) == copy.deepcopy(one) == one
    assert pickle.loads(pickle.dumps(one)).lowered == one.lowered
    with pytest.raises(AttributeError):
        one.terms = ()


def test_terms_of_several_heads_broadcast():
    pattern = Window(1, 1) | Predicate(lambda head, query, key: (head == 1) & (key == 0))
    assert pattern.mask(4, heads=2).sum(-1).tolist() == [[2, 3, 3, 2], [2, 3, 4, 3]]
    assert pattern.visible(3, 0, head=1) and not pattern.visible(3, 0, head=0)


def test_equal_rules_lower_to_equal_forms():
    fn = lambda head, query, key: query == key  # noqa: E731
    one, two = (Window(1, 1) & Predicate(fn) for _ in range(2))
    assert one == two and one.lowered == two.lowered and hash(one.lowered) == hash(two.lowered)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Window(-1, 0), r"left >= 0 wanted, got -1"),
        (lambda: Window(1, -2), r"right >= 0 wanted, got -2"),
        (lambda: Window(1.5, 0), r"left: an int wanted, got 1.5"),
        (lambda: Window(1, True), r"right: an int wanted, got True"),
        (lambda: Window(1, 1, 0), r"dilation >= 1 wanted, got 0"),
        (lambda: Window(1, 1, [1, 0]), r"dilation >= 1 wanted, got 0"),
        (lambda: Window(1, 1, []), r"dilation: at least one value wanted, got an empty sequence"),
        (lambda: Window(1, 1, "2"), r"dilation: an int wanted, got '2'"),
        (lambda: Window.causal(0), r"n >= 1 wanted, got 0"),
        (lambda: Global(-1), r"global position >= 0 wanted, got -1"),
        (lambda: Global([0, 1]), r"global position: an int wanted, got \[0, 1\]"),
        (lambda: Predicate(3), r"fn\(head, query, key\) wanted, got 3"),
        (lambda: Predicate(lambda h, q, k: q - k).mask(2), r"fn: a bool tensor wanted, got torch.int64"),
        (lambda: Window(1, 1, [1, 2]) | Window(1, 1, [1]), r"one number of heads .* wanted, got \[1, 2\]"),
        (lambda: Window(1, 1, [1, 2]).mask(3, heads=3), r"one int per head wanted, 3 heads, got 2 values"),
        (lambda: Global(5).mask(5), r"global position < 5 \(the number of keys\) wanted, got 5"),
        (lambda: Window(1, 1).mask(4, 3), r"0 <= n <= m wanted .*, got n=4, m=3"),
        (lambda: Window(1, 1).pairs(4, 3), r"0 <= n <= m wanted .*, got n=4, m=3"),
        (lambda: Window(1, 1).key_range(3, 3), r"query in \[0, 3\) wanted, got 3"),
        (lambda: Window(1, 1, [1, 2]).query_range(0, 3, 2), r"head in \[0, 2\) wanted, got 2"),
        (lambda: Window(1, 1).visible(-1, 0), r"query >= 0 wanted, got -1"),
        (lambda: Global(0).key_range(0, 3), r"exactly one window wanted, got 0: global\(0\)"),
    ],
)
def test_errors(make, message):
    with pytest.raises(PatternError, match=message):
        make()


def test_only_patterns_combine():
    with pytest.raises(TypeError):
        Window(1, 1) | 3


def test_patterns_can_be_made_and_read_in_a_compiled_function():
    outside = Window(3, 1) | Global(0)

    def run(x):
        inside = Window(2, 0) | Global(1)
        return x + inside.lowered.bands[0].left * len(inside.text) + outside.lowered.bands[0].left

    compiled = torch.compile(run, fullgraph=True, backend="eager")
    assert compiled(torch.zeros(1)).item() == run(torch.zeros(1)).item() == 2 * 24 + 3
