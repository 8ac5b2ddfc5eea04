"""Pictures: exact where a cell is a pair, complete where it is many, small in memory, and as files."""

import sys

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

import lf_backend as lf
from lf_backend.measure import peak_bytes
from lf_backend.pattern.picture import SAMPLES, Kind
from tests.pattern.trees import HEADS, trees

LENGTH = 11


@given(trees(LENGTH), st.integers(1, LENGTH))
def test_a_cell_of_one_pair_is_the_mask(tree, n):
    picture = lf.draw(tree.pattern(), n, LENGTH, HEADS)
    assert sorted(head for panel in picture.panels for head in panel.heads) == list(range(HEADS))
    for panel in picture.panels:
        for head in panel.heads:
            seen = panel.cells != Kind.UNSEEN
            assert torch.equal(seen, tree.pattern().mask(n, LENGTH, HEADS)[head])


@given(trees(LENGTH), st.integers(1, LENGTH), st.integers(1, 5))
def test_a_cell_is_filled_if_any_of_its_pairs_is_visible(tree, n, cells):
    pattern = tree.pattern()
    picture = lf.draw(pattern, n, LENGTH, HEADS, cells)
    assume(picture.step <= SAMPLES or not pattern.lowered.others)  # beyond that, rules are sampled
    for panel in picture.panels:
        mask = pattern.mask(n, LENGTH, HEADS)[panel.heads[0]]
        for row, queries in enumerate(mask.split(picture.step)):
            for column, block in enumerate(queries.split(picture.step, dim=1)):
                assert (panel.cells[row, column] != Kind.UNSEEN) == block.any()


def test_text():
    assert str(lf.draw("window(1, 1) | global(0)", 4)).splitlines() == [
        "window(1, 1) | global(0)",
        "4 queries (down) x 4 keys (right), a cell is one pair",
        "████████",
        "██▒▒▒▒ ·",
        "██▒▒▒▒▒▒",
        "██ ·▒▒▒▒",
        "██ global   ▒▒ window",
    ]
    drawn = lf.draw("window(1, 0, dilation=[1, 1, 2]) | global(1) & causal()", 4).text(ascii=True)
    assert drawn.isascii()
    assert drawn.splitlines()[2:] == [
        "heads 0-1", " # . . .", " + + . .", " . + # .", " . + # #",
        "head 2", " # . . .", " + + . .", " # + # .", " . + . #",
        "+ global   # window",
    ]  # fmt: skip


def test_a_rule_has_its_own_glyph():
    drawn = lf.draw(lf.Predicate(lambda head, query, key: key == query + 1), 2).text(ascii=True)
    assert drawn.splitlines()[2:] == [" . ?", " . .", "? other rule"]


def test_a_long_sequence_takes_no_memory():
    pattern = (
        lf.Window(256, 256) | lf.Global(0, 50_000) | lf.Predicate(lambda h, q, k: q // 9000 == k // 9000)
    )
    assert peak_bytes(lambda: lf.draw(pattern, 100_000)) < 4 << 20


def test_png(tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "picture.png"
    lf.draw("window(2, 2, dilation=[1, 2]) | global(0)", 12).save(path)
    assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 5000
    with pytest.raises(OSError, match="no_such"):
        lf.draw("causal()", 4).save(tmp_path / "no_such" / "picture.png")


def test_png_without_matplotlib(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(lf.LFError, match=r"matplotlib is not installed: .* 'lf-backend\[plots\]'"):
        lf.draw("causal()", 4).save(tmp_path / "picture.png")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: lf.draw("causal()", 0), r"n >= 1 wanted, got 0"),
        (lambda: lf.draw("causal()", 4, cells=0), r"cells >= 1 wanted, got 0"),
        (lambda: lf.draw("global(4)", 4), r"global position < 4 .* wanted, got 4"),
        (lambda: lf.draw("causal(", 4), r"column 8 of"),
    ],
)
def test_errors(make, message):
    with pytest.raises(lf.PatternError, match=message):
        make()
