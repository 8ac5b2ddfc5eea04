"""Relative positions in a window, against the dense formula of Transformer-XL written out pair by pair."""

import math

import pytest
import torch

import lf_backend as lf
from lf_backend.errors import PatternError, ShapeError
from lf_backend.measure import peak_bytes
from lf_fairseq.attention import relative

NAMES = ("q", "k", "v", "weight", "content_bias", "position_bias")


def inputs(heads=4, n=37, m=37, head_dim=8, batch=2, width=12, dtype=torch.float64):
    generator = torch.Generator().manual_seed(n)
    shapes = {
        "q": (batch, heads, n, head_dim),
        "k": (batch, heads, m, head_dim),
        "v": (batch, heads, m, head_dim),
        "weight": (heads * head_dim, width),
        "content_bias": (heads, head_dim),
        "position_bias": (heads, head_dim),
    }
    return {
        name: torch.randn(shape, generator=generator, dtype=dtype).requires_grad_()
        for name, shape in shapes.items()
    }


def wave(distance, width):
    """One row of R: sines of all frequencies, then cosines."""
    rates = [1 / 10000 ** (2 * pair / width) for pair in range(width // 2)]
    return [math.sin(distance * rate) for rate in rates] + [math.cos(distance * rate) for rate in rates]


def dense(visible, q, k, v, weight, content_bias, position_bias, padding=None):
    """softmax(((q + u) k + (q + v) W R[i - j]) / sqrt(D)) v with all N x M pairs; visible [H, N, M]."""
    heads, n, head_dim = q.shape[1:]
    m, width = k.shape[2], weight.shape[1]
    table = [[wave(query + m - n - key, width) for key in range(m)] for query in range(n)]
    distance = torch.tensor(table, dtype=q.dtype)  # [N, M, C]
    per_head = weight.reshape(heads, head_dim, width)
    content = torch.einsum("bhnd,bhmd->bhnm", q + content_bias[:, None], k)
    position = torch.einsum("bhnd,hdc,nmc->bhnm", q + position_bias[:, None], per_head, distance)
    scores = (content + position) / math.sqrt(head_dim)
    scores = scores.masked_fill(~visible, -math.inf)
    if padding is not None:
        scores = scores.masked_fill(padding[:, None, None], -math.inf)
    out = torch.nan_to_num(scores.softmax(-1)) @ v
    return out if padding is None else out * ~padding[:, None, m - n :, None]


def check(pattern, given, padding=None, **options):
    heads, n, m = given["q"].shape[1], given["q"].shape[2], given["k"].shape[2]
    got = relative.attention(pattern=pattern, key_padding=padding, **given, **options)
    want = dense(pattern.mask(n, m, heads), **given, padding=padding)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
    upstream = torch.randn(want.shape, dtype=want.dtype)
    leaves = list(given.values())
    grads = zip(
        NAMES,
        torch.autograd.grad(got, leaves, upstream),
        torch.autograd.grad(want, leaves, upstream),
        strict=True,
    )
    for name, ours, theirs in grads:
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("block", [0, 8, 64])
@pytest.mark.parametrize(
    "pattern",
    [
        lf.Window.causal(5),
        lf.Window.causal(1),
        lf.Window.causal(64),
        lf.Window.causal(4, dilation=3),
        lf.Window.causal(6, dilation=(3, 3, 1, 1)),
        lf.Window.causal(3, dilation=(4, 2, 1, 3)),
        lf.schedules.longformer_ablation("increasing")[0] & lf.Causal(),
    ],
    ids=str,
)
def test_exact(pattern, block):
    check(pattern, inputs(), block=block)


@pytest.mark.parametrize("block", [0, 4])
def test_exact_with_longer_keys_and_padding(block):
    """Queries are the last positions; padded keys in front, within and behind count for nothing."""
    padding = torch.zeros(2, 33, dtype=torch.bool)
    padding[0, :5], padding[1, 12], padding[1, 30:] = True, True, True
    check(lf.Window.causal(7, dilation=(1, 2, 1, 2)), inputs(n=11, m=33), padding, block=block)


def test_two_sided_windows_have_negative_distances():
    check(lf.Window(3, 2, dilation=(1, 2, 1, 1)), inputs())


def test_distances_are_those_of_the_pattern():
    """At every tap the distance is the one at which the pattern shows a key."""
    pattern = lf.Window(4, 1, dilation=(3, 1))
    for head, dilation in enumerate(pattern.dilation):
        query = 40
        shown = [key for key in range(80) if pattern.visible(query, key, head)]
        assert [query - key for key in shown] == list(relative.distances(pattern, dilation))


def test_order_matters():
    """What content alone cannot tell, positions do: swapped keys give another output."""
    given = inputs(n=9, m=9)
    swapped = {
        **given,
        "k": given["k"][:, :, [1, 0, *range(2, 9)]],
        "v": given["v"][:, :, [1, 0, *range(2, 9)]],
    }
    one, two = (relative.attention(pattern=lf.Window.causal(9), **some) for some in (given, swapped))
    assert (one[:, :, -1] - two[:, :, -1]).abs().max() > 1e-3


def test_far_distances_of_float32_are_those_of_float64():
    """At the paper's longest reach, 8,192 keys dilated by 4, angles still have four digits."""
    far = torch.tensor([8191.0 * 4])
    difference = relative.sinusoids(far, 512) - relative.sinusoids(far.double(), 512)
    assert difference.abs().max() < 4e-3


def test_blocks_bound_memory():
    """With blocks the position scores are not kept: the peak is a fraction, and linear in N."""
    pattern = lf.Window.causal(256)

    def peak(length, block):
        given = inputs(heads=2, n=length, m=length, batch=1, dtype=torch.float32)

        def run():
            relative.attention(pattern=pattern, **given, block=block).sum().backward()

        run()
        return peak_bytes(run)

    whole, half, blocks = peak(4096, 0), peak(2048, 256), peak(4096, 256)
    rectangle = 2 * 4096 * 256 * 4
    assert whole > 2 * rectangle  # the scores and their gradient
    assert blocks < 0.5 * whole
    assert blocks < 2.2 * half


@pytest.mark.parametrize(
    "pattern",
    [
        lf.Window.causal(4) | lf.Global(0),
        lf.Window(None, 0),
        lf.Window(3, 0) | lf.Window(2, 0, 4),
        lf.Global(),
    ],
    ids=str,
)
def test_what_has_no_taps_is_refused(pattern):
    with pytest.raises(PatternError, match="relative positions: a pattern of one limited window wanted, got"):
        relative.attention(pattern=pattern, **inputs())


def test_blocks_want_a_causal_window():
    with pytest.raises(PatternError, match=r"block: a causal window wanted .* got window\(3, 2\)"):
        relative.attention(pattern=lf.Window(3, 2), **inputs(), block=8)


def test_other_bad_input():
    with pytest.raises(PatternError, match="one int per head wanted, 4 heads, got 2 values"):
        relative.attention(pattern=lf.Window.causal(3, dilation=(1, 2)), **inputs())
    with pytest.raises(ShapeError, match="width: an even number wanted, got 7"):
        relative.sinusoids(torch.arange(3), 7)
