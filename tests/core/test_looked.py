"""What is made of tensors is made once for each state of them, and goes with them."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import Tensor

from lf_backend._looked import MOST, anew, once


class Made:
    """Counts how often it makes something."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self, *parts: object) -> Tensor:
        self.times += 1
        return torch.full((2,), self.times)


@pytest.fixture
def make() -> Made:
    return Made()


def test_each_state_of_each_part_is_asked_for_once(make: Made) -> None:
    x, y = torch.zeros(3), torch.zeros(3)
    first = once(make, x, y, 7)
    assert once(make, x, y, 7) is first
    assert once(make, x, y, 8) is not first and once(make, y, x, 7) is not first
    assert once(make, x, y, 7) is first and make.times == 3
    y.add_(1)
    assert once(make, x, y, 7) is not first


def test_a_part_may_be_missing(make: Made) -> None:
    x = torch.zeros(3)
    assert once(make, None, x) is once(make, None, x)
    assert once(make, 1, None) is not once(make, 1, None), "of nothing there is no state"


def test_another_tensor_in_the_place_of_one_that_is_gone(make: Made) -> None:
    x = torch.zeros(3)
    found = [once(make, x, torch.zeros(1)) for _ in range(3 * MOST)]
    assert len({id(one) for one in found}) == make.times == 3 * MOST


def test_nothing_is_kept_of_what_says_nothing_of_being_written_to(make: Made) -> None:
    x = torch.zeros(3)
    with torch.inference_mode():
        unsaid = torch.zeros(3)
    assert once(make, unsaid) is not once(make, unsaid)
    with anew():
        assert once(make, x) is not once(make, x)
    assert once(make, x) is once(make, x)


def test_what_is_made_goes_with_the_tensor(make: Made) -> None:
    x = torch.zeros(3)
    found = weakref.ref(once(make, x))
    assert found() is not None
    del x
    gc.collect()
    assert found() is None
