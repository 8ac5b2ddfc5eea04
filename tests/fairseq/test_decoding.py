"""Decoding in a bounded buffer: the same answers, and never more keys than the pattern reaches."""

import pytest
import torch

import lf_backend as lf
from lf_backend.errors import UnsupportedError
from lf_fairseq import set_global_tokens
from lf_fairseq.attention.decoding_buffer import Buffer
from tests.fairseq.zoo import build, dictionary, tokens

PAD = dictionary().pad()
LENGTH = 40


def decoder(**changes):
    """Without positional embeddings: those of fairseq count padding in single steps, and not elsewhere."""
    return build("transformer_lm", no_token_positional_embeddings=True, **changes)


def steps(model, ids, state, start=0):
    return [
        model.decoder(ids[:, : t + 1], incremental_state=state)[0] for t in range(start, ids.shape[1])
    ]  # fmt: skip


def buffers(state):
    return [kept for kept in state.values() if isinstance(kept, Buffer)]


PATTERNS = {
    "window(5, 0)": 5,
    "window(5, 0, dilation=2)": 10,
    "window(3, 0, dilation=[1, 1, 2, 4])": 12,
    "window(4, 0) | window(2, 0, dilation=4)": 8,
    "window(5, 0) | global(0)": 6,
    "window(2, 0, dilation=[1, 2, 3, 1]) | global(0, 9)": 9,
    "window(2, 0) | global(0, 1, 17)": 18,
    "window(0, 0)": 0,
    "global(0)": 1,
}


@pytest.mark.parametrize("pads", [(), (0, 6, 13)])
@pytest.mark.parametrize("pattern", [*PATTERNS, "causal()", "strided(4)", "window(none, 0) | global(3)"])
def test_steps_are_rows_of_the_whole(pattern, pads):
    model = decoder()
    ids = tokens(3, LENGTH, pads, left=True)
    with lf.patch(model, pattern):
        whole = model(ids)[0]
        got = torch.cat(steps(model, ids, {}), dim=1)
    torch.testing.assert_close(got[ids != PAD], whole[ids != PAD], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_buffer_stays_as_small_as_the_pattern(pattern):
    model = decoder()
    ids = tokens(2, 60)
    with lf.patch(model, pattern):
        sizes, state = [], {}
        for t in range(60):
            model.decoder(ids[:, : t + 1], incremental_state=state)
            sizes.append({kept.keys.shape[2] for kept in buffers(state)})
    assert max(max(size) for size in sizes) <= PATTERNS[pattern] + 1
    assert len(buffers(state)) == 2 and sizes[-1] == sizes[40]


def test_a_trimmed_buffer_holds_no_more_memory_than_it_shows():
    model = decoder()
    ids = tokens(1, 30)
    with lf.patch(model, "window(3, 0) | global(0)"):
        state = {}
        steps(model, ids, state)
    for kept in buffers(state):
        assert kept.keys.untyped_storage().nbytes() <= 2 * kept.keys.nbytes


def test_pads_that_come_late():
    model = decoder()
    ids = tokens(3, LENGTH)
    ids[1, 20:24] = PAD
    with lf.patch(model, "window(3, 0) | global(0, 2)"):
        whole = model(ids)[0]
        got = torch.cat(steps(model, ids, {}), dim=1)
    torch.testing.assert_close(got[ids != PAD], whole[ids != PAD], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("pattern", ["window(3, 0)", "window(2, 0, dilation=2) | global(0)"])
@pytest.mark.parametrize("pads", [(), (0, 3, 1)])
def test_beams_are_reordered(pattern, pads):
    model = decoder()
    ids = tokens(3, 24, pads, left=True)
    order = torch.tensor([2, 0, 0])
    with lf.patch(model, pattern):
        state = {}
        steps(model, ids[:, :14], state)
        model.decoder.reorder_incremental_state_scripting(state, order)
        mixed = torch.cat([ids[order, :14], tokens(3, 10)], dim=1)
        got = torch.cat(steps(model, mixed, state, start=14), dim=1)
        wanted = model(mixed)[0][:, 14:]
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("chunks", [(9, 1, 1, 9, 4), (24,), (1, 23)])
@pytest.mark.parametrize("pattern", ["window(3, 0)", "window(2, 0, dilation=[1, 2, 1, 3]) | global(0, 1)"])
def test_several_tokens_in_one_step(chunks, pattern):
    """What the attention itself takes; fairseq's decoder passes one at a time."""
    model = decoder(decoder_layers=1)
    with lf.patch(model, pattern):
        attention = model.decoder.layers[0].self_attn
        x = torch.randn(24, 2, 32, dtype=torch.float64)
        whole = attention(x, x, x, need_weights=False)[0]
        state, got = {}, []
        for part in x.split(chunks):
            got.append(attention(part, part, part, incremental_state=state, need_weights=False)[0])
    torch.testing.assert_close(torch.cat(got), whole, rtol=1e-9, atol=1e-9)


def test_tokens_global_by_id_are_kept():
    model = decoder()
    words = dictionary()
    ids = tokens(2, LENGTH)
    ids[0, 1] = ids[1, 3] = words.index("<mask>")  # within the window of 6, so that their rows lose nothing
    with lf.patch(model, "window(6, 0)"):
        set_global_tokens(model, [words.index("<mask>")])
        whole = model(ids)[0]
        state = {}
        got = torch.cat(steps(model, ids, state), dim=1)
        assert [kept.kept for kept in buffers(state)] == [(1, 3)] * 2
        torch.testing.assert_close(got, whole, rtol=1e-9, atol=1e-9)
        plain = ids.masked_fill(ids == words.index("<mask>"), 7)
        assert not torch.allclose(model(plain)[0][:, -1], whole[:, -1])


def test_a_global_token_that_comes_too_late_is_an_error():
    model = decoder()
    ids = tokens(2, LENGTH)
    ids[0, 20] = dictionary().index("<mask>")
    with lf.patch(model, "window(6, 0)"):
        set_global_tokens(model, [dictionary().index("<mask>")])
        with pytest.raises(
            UnsupportedError, match=r"no global token after 20 positions wanted, got one: it sees all"
        ):
            steps(model, ids, {})


@pytest.mark.parametrize(
    ("pattern", "reach"),
    [("window(3, 0, dilation=[1, 4])", 12), ("causal()", None), ("strided(4)", None), ("global(1)", 0)],
)
def test_reach(pattern, reach):
    assert (lf.parse(pattern) & lf.Causal()).lowered.reach == reach
