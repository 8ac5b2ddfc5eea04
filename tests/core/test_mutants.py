"""The conformance kit notices a wrong backend: every mutant of the blocked one is caught."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from lf_backend.backends.blocked import Blocked
from lf_backend.backends.blocked.column_strips import ColumnStrip
from lf_backend.backends.blocked.rule_strips import RuleStrip
from lf_backend.dispatch import registry
from lf_backend.pattern.bands import Band
from lf_backend.testing import CASES, Mismatch, check


class Mutant(Blocked):
    """The blocked backend under a name of its own; its subclasses are wrong in one place each."""

    name = "mutant"
    priority = -1


class ScaleOff(Mutant):
    def forward(self, call):
        return super().forward(replace(call, scale=call.scale * 1.001))


class PaddingInverted(Mutant):
    def forward(self, call):
        padding = None if call.key_padding is None else ~call.key_padding
        return super().forward(replace(call, key_padding=padding))


class PaddingForgotten(Mutant):
    def forward(self, call):
        return super().forward(replace(call, key_padding=None))


class ColumnsForgotten(Mutant):
    def forward(self, call):
        return super().forward(replace(call, columns=None))


class KeyGradientOff(Mutant):
    def backward(self, call, grad_out, out, delta, lse):
        found = super().backward(call, grad_out, out, delta, lse)
        return found._replace(k=found.k * 1.01)


class SinksLeaveBackward(Mutant):
    """Takes lse for the local part's own in the backward."""

    def backward(self, call, grad_out, out, delta, lse):
        own = super().forward(call)[1]
        return super().backward(call, grad_out, out, delta, torch.where(lse.isinf(), lse, own))


class SoftcapLeavesBackward(Mutant):
    def backward(self, call, grad_out, out, delta, lse):
        return super().backward(replace(call, softcap=None), grad_out, out, delta, lse)


class NotDeterministic(Mutant):
    def forward(self, call):
        out, lse = super().forward(call)
        return out * (1 + random.random() * 1e-6), lse


MUTANTS = [
    ScaleOff, PaddingInverted, PaddingForgotten, ColumnsForgotten, KeyGradientOff, SinksLeaveBackward,
    SoftcapLeavesBackward, NotDeterministic,
]  # fmt: skip


def passes(name: str) -> bool:
    try:
        check(CASES[name], "mutant", torch.float32)
    except (Mismatch, IndexError, RuntimeError):  # a wrong range may fit no tensor at all
        return False
    return True


def catcher() -> str | None:
    """The first case that the registered mutant fails; one is proof enough."""
    return next((name for name in CASES if not passes(name)), None)


@contextmanager
def registered(backend: type[Mutant]) -> Iterator[None]:
    registry.register(backend)
    try:
        yield
    finally:
        registry.unregister("mutant")


def assert_caught(
    backend: type[Mutant] = Mutant, change: Callable[[pytest.MonkeyPatch], None] | None = None
) -> None:
    """Some case fails with the change, and that very case passes without it."""
    with registered(backend), pytest.MonkeyPatch.context() as patch:
        if change is not None:
            change(patch)
        found = catcher()
    assert found is not None
    with registered(Mutant):
        assert passes(found)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_mutant_is_caught(mutant: type[Mutant]) -> None:
    assert_caught(mutant)


@pytest.mark.parametrize("low, high", [(1, 0), (0, -1)])
def test_range_off_by_one_is_caught(low: int, high: int) -> None:
    true = Band.key_range

    def wrong(self, start, stop, length):
        first, last = true(self, start, stop, length)
        return min(first + low, last), max(last + high, first + low)

    assert_caught(change=lambda patch: patch.setattr(Band, "key_range", wrong))


@pytest.mark.parametrize("kind", [ColumnStrip, RuleStrip])
def test_a_pair_counted_twice_is_caught(kind: type) -> None:
    true = kind._seen

    def twice(self):
        return true(replace(self, shown=()))

    assert_caught(change=lambda patch: patch.setattr(kind, "_seen", twice))
