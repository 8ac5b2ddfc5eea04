"""Predicates: what they may be, and what is said of those that are wrong."""

import gc
import pickle

import pytest
import torch

import lf_backend as lf
from lf_backend import PatternError, Predicate


def table_rule(head, query, key, table):
    return table[key] == table[query]


def test_tables_are_data_of_the_pattern():
    one, two = (Predicate(table_rule, tables=((3, 1, 3, 1),)) for _ in range(2))
    assert one == two and hash(one) == hash(two) and one != Predicate(table_rule, tables=((3, 1, 3, 2),))
    assert one.mask(4)[0].tolist() == [[i % 2 == j % 2 for j in range(4)] for i in range(4)]
    assert pickle.loads(pickle.dumps(one)) == one


def test_rules_of_other_tables_do_not_mix():
    """Two calls between which nothing but a table differs, and their gradients."""
    q = torch.randn(1, 1, 4, 8, requires_grad=True)
    patterns = [Predicate(table_rule, tables=(table,)) for table in ((0, 0, 1, 1), (0, 1, 0, 1))]
    outs = [lf.attention(q, q, q, pattern) for pattern in patterns]
    for out, pattern in zip(outs, patterns, strict=True):
        dense = torch.nn.functional.scaled_dot_product_attention(q, q, q, pattern.mask(4))
        torch.testing.assert_close(out, dense)
        grads = (torch.autograd.grad(x.sin().sum(), q, retain_graph=True) for x in (out, dense))
        torch.testing.assert_close(*grads)


def test_whether_heads_differ_is_seen_from_the_answer():
    assert not Predicate(lambda head, query, key: key < query).per_head
    assert Predicate(lambda head, query, key: key % 3 == head % 3).per_head
    assert not (lf.Predicate(lambda h, q, k: k > q) & lf.Window(1, 1, (2, 2))).lowered.others[0].per_head
    assert (lf.Predicate(lambda h, q, k: k > q) & lf.Window(1, 1, (1, 2))).lowered.others[0].per_head


def same_block(head, query, key):
    return query // 4 == key // 4


def test_check_accepts_what_is_right():
    Predicate(same_block, lambda h, first, last, m: [(first // 4 * 4, last // 4 * 4 + 4)]).check(30)
    (lf.Window(3, 3) | lf.Global(0)).check(30)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (
            Predicate(same_block, lambda h, first, last, m: [(first, last)]),
            r"bounds: a key within them wanted, got another for head 0, query ",
        ),
        (
            Predicate(same_block, lambda h, first, last, m: [(0, m, True)]),
            r"bounds: only visible pairs in a full span wanted, got another for head 0, query 0, key 4 ",
        ),
        (Predicate(lambda h, q, k: k < q.max()), r"fn: an answer that depends on the pair alone wanted"),
        (Predicate(lambda h, q, k: torch.rand((q + k).shape) < 0.5), r"depends on the pair alone wanted"),
        (Predicate(lambda h, q, k: k < 0), r"a pattern that shows something wanted, got no pair of 30 x 30"),
        (lf.Global(), r"a pattern that shows something wanted, got no pair of 30 x 30: global\(\)"),
        (Predicate(same_block, lambda h, first, last, m: [first]), r"bounds: \(start, stop\) or .* wanted"),
    ],
)
def test_check_finds_what_is_wrong(pattern, message):
    with pytest.raises(PatternError, match=message):
        pattern.check(30)


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (lambda h, q, k: q - k, r"fn: a bool tensor wanted, got torch.int64 from predicate<"),
        (
            lambda h, q, k: torch.ones(7, dtype=torch.bool),
            r"fn: a shape that broadcasts to .* wanted, got \[7\] from predicate<",
        ),
        (lambda h, q, k: k <= q if q > 3 else k > q, r"branches on values, wanted; .* raised Runtime"),
        (lambda h, q, k: torch.zeros(3, dtype=torch.bool)[k], r"raised IndexError: index"),
        (lambda q, k: q == k, r"raised TypeError"),
    ],
)
@pytest.mark.parametrize("backend", ["blocked", "reference"])
def test_a_call_says_what_is_wrong_with_a_rule(backend, fn, message):
    q = torch.randn(1, 2, 20, 8)
    with pytest.raises(PatternError, match=message):
        lf.attention(q, q, q, Predicate(fn), backend=backend)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((same_block, 3), r"bounds\(head, first, last, m\) or None wanted, got 3"),
        ((same_block, None, [1]), r"tables: a tuple of tuples of ints wanted, got \[1\]"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(PatternError, match=message):
        Predicate(*arguments)


def test_its_text_reads_back_as_long_as_it_lives():
    rule = Predicate(same_block)
    pattern = (rule | lf.Window(2, 2)) & lf.Causal()
    assert lf.parse(str(pattern)) == pattern
    text = Predicate(same_block).text  # nobody holds it
    gc.collect()
    with pytest.raises(PatternError, match=r"lives in this process wanted, got predicate<same_block at 0x"):
        lf.parse(text)
