"""`global_mask` means what `pattern | Global(the same positions)` means, example by example."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lf_backend as lf
from lf_backend import Causal, Global, Window
from lf_backend.dispatch import registry
from lf_backend.errors import UnsupportedError
from lf_backend.testing.strategies import patterns

LENGTH, HEADS = 12, 2

every_backend = pytest.mark.parametrize("backend", list(registry.working()))


def results(pattern, backend, drawn, mask=None):
    """Output, log-sum-exp and gradients of one example."""
    q, k, v = (x.clone().requires_grad_() for x in drawn)
    out, lse = lf.attention(q, k, v, pattern, global_mask=mask, return_lse=True, backend=backend)
    weight = torch.linspace(-1, 1, out.numel()).view(out.shape)
    total = (out * weight).sum() + lse.masked_fill(lse.isinf(), 0).sin().sum()
    return out, lse, *torch.autograd.grad(total, (q, k, v))


def check(pattern, positions, backend, seed=0, queries=LENGTH):
    """One example with the positions as a mask, and as the pattern's own."""
    generator = torch.Generator().manual_seed(seed)
    lengths = (queries, LENGTH, LENGTH)
    drawn = [torch.randn(1, HEADS, n, 4, generator=generator, dtype=torch.float64) for n in lengths]
    mask = torch.zeros(1, LENGTH, dtype=torch.bool)
    mask[0, positions] = True
    joined = pattern | Global(*positions)
    if pattern.is_causal:
        joined = joined & Causal()
    try:
        found = results(pattern, backend, drawn, mask)
        wanted = results(joined, backend, drawn)
    except UnsupportedError:
        return False
    for got, like in zip(found, wanted, strict=True):
        torch.testing.assert_close(got, like, rtol=1e-9, atol=1e-9)
    dense = joined.mask(queries, LENGTH, HEADS)
    torch.testing.assert_close(found[0], eager(drawn, dense), rtol=1e-6, atol=1e-6)
    return True


def eager(drawn, seen):
    q, k, v = drawn
    scores = (q @ k.mT * q.shape[3] ** -0.5).masked_fill(~seen, -torch.inf)
    return (scores.softmax(-1).nan_to_num(0)) @ v


@every_backend
@pytest.mark.parametrize(
    "text",
    [
        "window(5, 0)",
        "window(0, 0)",
        "window(none, 0)",
        "window(5, 0) & causal()",
        "causal()",
        "(window(3, 3) | global(1)) & causal()",
        "window(3, 0) | global(2) & causal()",
        "window(3, 0, dilation=2) | window(1, 0)",
        "block_local(4) & causal()",
    ],
)
def test_a_mask_means_its_positions(backend, text):
    check(lf.parse(text), [2, 7], backend)
    check(lf.parse(text), [0, 9], backend, queries=5)


@every_backend
@settings(deadline=None, max_examples=60)
@given(patterns(HEADS, LENGTH), st.sets(st.integers(0, LENGTH - 1), max_size=4), st.integers(1, LENGTH))
def test_any_mask_means_its_positions(backend, pattern, positions, queries):
    check(pattern, sorted(positions), backend, queries=queries)


def test_a_window_that_ends_at_the_query_cuts_no_global_token():
    """`Window.causal(n)` says nothing of global tokens; `Causal()` does."""
    assert not (Window.causal(3) | Global(0)).is_causal and not Window.causal(3).is_causal
    assert (Window.causal(3) & Causal()).is_causal and Causal().is_causal
    assert not Window.causal(3).looks_ahead and (Window.causal(3) | Global(0)).looks_ahead


def test_causal_stays_when_it_joins_a_window():
    """The text and the data of `Window & Causal()` keep what it says of a call's global tokens."""
    pattern = Window(3, 3) & Causal()
    assert pattern == Window(3, 0) & Causal() != Window(3, 0)
    assert str(pattern) == "window(3, 0) & causal()"
    assert lf.parse(str(pattern)) == lf.from_json(lf.to_json(pattern)) == pattern
    assert pattern.lowered == Window(3, 0).lowered
