"""Patterns as text, dict and JSON: every form reads back, every malformed one says where."""

import json
import subprocess
import sys

import pytest
from hypothesis import given, settings

import lf_backend as lf
from lf_backend import Causal, Global, PatternError, Predicate, Window
from tests.pattern.trees import trees


@given(trees(9))
@settings(max_examples=300)
def test_round_trips(tree):
    pattern = tree.pattern()
    assert lf.parse(str(pattern)) == pattern
    assert lf.from_dict(lf.to_dict(pattern)) == pattern
    assert lf.from_json(lf.to_json(pattern)) == pattern


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("window(256, 256, dilation=2) | global(0)", Window(256, 256, 2) | Global(0)),
        ("window( left=1,right = none )", Window(1, None)),
        ("window(None, 0)", Window(None, 0)),
        ("window(1, 2, [1, 2])", Window(1, 2, (1, 2))),
        ("(window(1, 1) | global()) & causal()", (Window(1, 1) | Global()) & Causal()),
        ("window(1, 1) & causal()", Window(1, 0) & Causal()),
        ("((global(3, 1)))", Global(1, 3)),
        ("window(1,1)|global(0)&causal()", Window(1, 1) | (Global(0) & Causal())),
    ],
)
def test_text(text, pattern):
    assert lf.parse(text) == pattern


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"column 1 of '': window, global, causal, .* or '\(' wanted, got the end"),
        ("window", r"column 7 of 'window': '\(' wanted, got the end"),
        ("windows(1, 2)", r"column 1 of .* wanted, got 'windows'"),
        ("window(1, 2", r"column 12 of .*: '\)' or ',' wanted, got the end"),
        ("(window(1, 2)", r"column 14 of .* or '\)' .*wanted, got the end"),
        ("window(1, 2) global(0)", r"column 14 of .*: the end or '&' or '\|' wanted, got 'global'"),
        ("window(1, 2) | ", r"column 16 of .* wanted, got the end"),
        ("window(1, 2) ; 3", r"column 14 of .*: the end or '&' or '\|' wanted, got ';'"),
        ("window(1.5, 2)", r"column 9 of .*: '\)' or ',' wanted, got '.'"),
        ("window(1, x)", r"column 12 of .*: '=' wanted, got '\)'"),
        ("window(left=1, 2)", r"column 16 of .*: a name wanted, got '2'"),
        ("global(99999999999999999999)", r"column 8 of .* wanted, got '9+'"),
        ("__import__('os').system('true')", r"column 1 of .* wanted, got '__import__'"),
        ("window(1)", r"column 1 of .*: missing a required argument: 'right'"),
        ("window(1, 2, width=3)", r"column 1 of .*: got an unexpected keyword argument 'width'"),
        ("causal(1)", r"column 1 of .*: too many positional arguments"),
        ("global(0) | window(1, 2, dilation=1, dilation=2)", r"column 13 of .*: dilation given twice"),
        ("global(0) | window(-1, 2)", r"column 13 of .*: left >= 0 wanted, got -1"),
        ("window(1, 2, dilation=[])", r"column 1 of .*: dilation: at least one value wanted"),
        ("window(1, 1, [1]) | window(1, 1, [1, 2])", r"one number of heads .* wanted, got \[1, 2\]"),
        (3, r"pattern: a string wanted, got 3"),
    ],
)
def test_malformed_text(text, message):
    with pytest.raises(PatternError, match=message):
        lf.parse(text)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (3, r"pattern: a mapping wanted, got 3"),
        ({"term": "windows"}, r"pattern.term: one of \['big_bird', .*'causal', .*\] wanted, got 'windows'"),
        ({"term": ["window"]}, r"pattern.term: one of .* wanted, got \['window'\]"),
        ({"term": "window", "left": 1}, r"pattern: keys \['left', 'right'\] wanted, missing \['right'\]"),
        ({"term": "causal", "left": 1}, r"pattern: keys \[\] wanted, got unknown \['left'\]"),
        ({"term": "window", "left": 1, "right": -1}, r"pattern: right >= 0 wanted, got -1"),
        ({"term": "window", "left": "1", "right": 1}, r"pattern: left: an int wanted, got '1'"),
        ({"term": "global", "positions": 3}, r"pattern: positions: a list wanted, got 3"),
        ({"term": "union", "terms": []}, r"pattern.terms: a list of at least one wanted, got \[\]"),
        (
            {"term": "union", "terms": [{"term": "causal"}, {"term": "global"}]},
            r"pattern.terms\[1\]: keys \['positions'\] wanted, missing \['positions'\]",
        ),
        (
            {
                "term": "union",
                "terms": [{"term": "window", "left": 1, "right": 1, "dilation": d} for d in ([1], [1, 1])],
            },
            r"pattern.terms: dilation: one number of heads in all terms wanted, got \[1, 2\]",
        ),
    ],
)
def test_malformed_data(data, message):
    with pytest.raises(PatternError, match=message):
        lf.from_dict(data)
    with pytest.raises(PatternError, match=message):
        lf.from_json(json.dumps(data))


@pytest.mark.parametrize("text", ["{", None])
def test_malformed_json(text):
    with pytest.raises(PatternError, match=r"pattern: JSON wanted, got"):
        lf.from_json(text)


def test_a_predicate_cannot_be_written():
    pattern = Window(1, 1) | Predicate(lambda head, query, key: query == key)
    for write in (lf.to_dict, lf.to_json):
        message = "a predicate is code and cannot be written as data: .*; put @lf.term before a function"
        with pytest.raises(PatternError, match=message):
            write(pattern)


def test_long_and_deep_text():
    assert len(lf.parse(" | ".join(["causal()"] * 3000)).terms) == 3000
    assert lf.parse("(" * 3000 + "causal()" + ")" * 3000) == Causal()


def test_the_parser_is_loaded_by_the_first_string_only():
    code = "import sys, lf_backend as lf; str(lf.Window(1, 1)); print('lark' in sys.modules);"
    code += "lf.parse('causal()'); print('lark' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout.split() == ["False", "True"]


def test_a_misspelt_term_suggests_the_right_one() -> None:
    with pytest.raises(lf.PatternError, match=r"got 'windw'; did you mean window\?"):
        lf.parse("windw(3, 3)")
    with pytest.raises(lf.PatternError, match=r"got 'globl'; did you mean global\?"):
        lf.parse("window(3, 3) | globl(0)")
    with pytest.raises(lf.PatternError, match=r"got 'casual'; did you mean causal\?"):
        lf.from_dict({"term": "casual"})
