"""Patterns as masks of other engines: equal to the drawn mask, or an error that says what is lost."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

import lf_backend as lf
from lf_backend import PatternError
from lf_backend.pattern.interchange import BLOCK
from lf_backend.testing.strategies import patterns


@given(st.data(), st.integers(1, 30))
@settings(max_examples=200)
def test_mask_mod_is_the_mask(data, m):
    n, pattern = data.draw(st.integers(1, m)), data.draw(patterns(2, m))
    mod = pattern.to_mask_mod(offset=m - n)
    head, query, key = torch.arange(2)[:, None, None], torch.arange(n)[:, None], torch.arange(m)
    shown = mod(torch.tensor(0), head, query, key)
    assert torch.equal(shown.expand(2, n, m), pattern.mask(n, m, 2))


@given(st.data(), st.integers(1, 900))
@settings(max_examples=60)
def test_block_mask_touches_every_visible_pair_and_no_full_block_hides_one(data, m):
    n, pattern = data.draw(st.integers(1, m)), data.draw(patterns(2, m))
    found = pattern.to_block_mask(n, m)
    mask = pattern.mask(n, m, pattern.heads)
    rows, columns = found.kv_indices.shape[2:]
    wide = torch.zeros(len(mask), rows * BLOCK, columns * BLOCK, dtype=torch.bool)
    wide[:, :n, :m] = mask
    blocks = wide.view(len(mask), rows, BLOCK, columns, BLOCK)
    inside = torch.ones(n, m, dtype=torch.bool)
    heads = found.kv_indices.shape[1]
    for head in range(len(mask)):
        for row in range(rows):
            own = (0, min(head, heads - 1), row)
            some = set(found.kv_indices[own][: found.kv_num_blocks[own]].tolist())
            full = set(found.full_kv_indices[own][: found.full_kv_num_blocks[own]].tolist())
            seen = set(blocks[head, row].any(2).any(0).nonzero()[:, 0].tolist())
            assert seen <= some | full and not some & full
            for column in full:
                box = slice(row * BLOCK, (row + 1) * BLOCK), slice(column * BLOCK, (column + 1) * BLOCK)
                assert torch.equal(wide[head][box][: n - row * BLOCK], inside[box])


def test_block_mask_of_a_window_is_create_block_mask():
    pattern = lf.Window(300, 40) | lf.Global(700)
    ours = pattern.to_block_mask(1000)
    theirs = create_block_mask(pattern.to_mask_mod(), None, None, 1000, 1000, device="cpu")
    assert torch.equal(ours.to_dense(), theirs.to_dense())


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # torch's own, of its compiler
@pytest.mark.parametrize("text", ["window(200, 100) | global(3)", "documents([0, 130, 400])"])
def test_compiled_flex_attention_gives_our_answer(text):
    q, k, v = torch.randn(3, 1, 2, 500, 16)
    compiled = torch.compile(flex_attention, fullgraph=True)
    out = compiled(q, k, v, block_mask=lf.parse(text).to_block_mask(500))
    torch.testing.assert_close(out, lf.attention(q, k, v, text))


@pytest.mark.parametrize(
    ("text", "window"),
    [
        ("window(3, 2)", (3, 2)),
        ("window(none, 2)", (-1, 2)),
        ("window(3, none) & window(none, 4)", (3, 4)),
        ("causal()", (-1, 0)),
        ("window(none, none)", (-1, -1)),
    ],
)
def test_flash_window(text, window):
    pattern = lf.parse(text)
    assert pattern.to_flash_window() == window
    assert lf.conventions.flash_attn(window).lowered == pattern.lowered


LOST = [
    ("window(3, 2) | global(0)", "it cannot say global tokens"),
    ("window(3, 2, dilation=2)", "it cannot say dilation"),
    ("window(3, 2, dilation=[1, 2])", "it cannot say dilation"),
    ("window(3, 2) | window(1, 1, dilation=5)", "it cannot say a union of windows, dilation"),
    ("big_bird(64, block=8)", "it cannot say global tokens, predicates"),
    ("global()", "it cannot say that nothing is visible"),
]


@pytest.mark.parametrize(("text", "message"), LOST)
@pytest.mark.parametrize("method", ["to_flash_window", "to_xformers_bias"])
def test_what_would_be_lost_is_named(method, text, message):
    with pytest.raises(PatternError, match=f"{method}: one window without dilation wanted; {message}"):
        getattr(lf.parse(text), method)()


@pytest.mark.parametrize(
    "text", ["window(3, 2)", "window(4, 0)", "window(none, 2)", "window(3, none)", "causal()", "window(0, 0)"]
)
def test_xformers_bias_is_the_mask(text):
    pytest.importorskip("xformers")
    pattern = lf.parse(text)
    for n, m in ((12, 12), (5, 12), (1, 12)):
        mask = pattern.to_xformers_bias().materialize((1, n, m))
        assert torch.equal(mask == 0, pattern.mask(n, m))


def test_xformers_needs_no_bias_where_everything_is_seen():
    pytest.importorskip("xformers")
    assert lf.Window(None, None).to_xformers_bias() is None
