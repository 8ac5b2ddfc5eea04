"""Dropout: keyed by position, replayed, and fair."""

import pytest
import torch

import lf_backend as lf
from lf_backend.numerics import dropout


def mask(p: float, seed: int = 1, heads: int = 2, queries: int = 300, keys: int = 400) -> torch.Tensor:
    head, query, key = (torch.arange(n) for n in (heads, queries, keys))
    return dropout.keep(torch.tensor([seed]), 0, head, query, key, p, torch.float64)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_drops_the_share_that_was_asked_for(p: float) -> None:
    keep = mask(p)
    count = keep.numel()
    dropped = (keep == 0).sum().item()
    assert abs(dropped - p * count) < 5 * (p * (1 - p) * count) ** 0.5
    assert keep.max().item() == pytest.approx(1 / (1 - p))


@pytest.mark.parametrize("shift", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1)])
def test_neighbours_are_independent(shift: tuple[int, int, int]) -> None:
    dropped = mask(0.5) == 0
    both = (dropped & dropped.roll(shift, (0, 1, 2))).double().mean().item()
    assert abs(both - 0.25) < 0.01


def test_depends_on_every_index_and_on_both_halves_of_the_seed() -> None:
    one = mask(0.5)
    assert not torch.equal(one, mask(0.5, seed=2))
    assert not torch.equal(one, mask(0.5, seed=1 + 2**32))
    part = dropout.keep(
        torch.tensor([1]),
        0,
        torch.tensor([1]),
        torch.arange(7, 20),
        torch.tensor([399, 3]),
        0.5,
        torch.float64,
    )
    assert torch.equal(part[0], one[1, 7:20][:, [399, 3]])


def test_follows_manual_seed_and_differs_between_calls() -> None:
    q, k, v = torch.randn(3, 1, 2, 30, 8)

    def run() -> torch.Tensor:
        return lf.attention(q, k, v, lf.Window(5, 5), dropout_p=0.5)

    torch.manual_seed(0)
    one, two = run(), run()
    torch.manual_seed(0)
    assert torch.equal(one, run()) and not torch.equal(one, two)


def test_without_dropout_no_random_number_is_drawn() -> None:
    q, k, v = torch.randn(3, 1, 2, 30, 8)
    before = torch.get_rng_state()
    lf.attention(q, k, v, lf.Window(5, 5))
    assert torch.equal(before, torch.get_rng_state())


def test_next_to_one_almost_everything_is_dropped() -> None:
    """The threshold is a word of 32 bits, or a comparison with it would wrap and keep everything."""
    p = 1 - 2**-40
    assert dropout.threshold(p) == 2**31 - 1
    at = torch.arange(300)
    kept = dropout.keep(torch.tensor([3]), 0, torch.arange(1), at, at, p, torch.float64)
    assert kept.count_nonzero() <= 1
