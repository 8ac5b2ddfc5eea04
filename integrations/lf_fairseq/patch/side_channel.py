"""How global tokens of a batch reach a stack of layers, around signatures that have no room for them.

What a batch says of its global tokens is given to a model and read by a stack of layers somewhere inside.
Between the two are signatures of fairseq; it takes the way around them, addressed to one stack and gone
when the call returns.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor, nn


@contextmanager
def addressed(stack: nn.Module, global_mask: Tensor | None) -> Iterator[None]:
    """Within, `stack` finds the batch's global tokens, bool [B, T] or None, by `received`."""
    token = _mail.set((stack, global_mask))
    try:
        yield
    finally:
        _mail.reset(token)


def received(stack: nn.Module) -> Tensor | None:
    """Return the mask that was addressed to this stack."""
    addressee, global_mask = _mail.get()
    return global_mask if addressee is stack else None


@contextmanager
def carried(layers: nn.Module, mask: Tensor | None) -> Iterator[None]:
    """Within, a list of layers calls each of them with this mask; None leaves the layers their own."""
    token = _cargo.set((layers, mask))
    try:
        yield
    finally:
        _cargo.reset(token)


def cargo(layers: nn.Module) -> Tensor | None:
    """The mask that this list of layers carries now."""
    carrier, mask = _cargo.get()
    return mask if carrier is layers else None


Sent = tuple[nn.Module | None, Tensor | None]
_mail: ContextVar[Sent] = ContextVar("lf_fairseq_mail", default=(None, None))
_cargo: ContextVar[Sent] = ContextVar("lf_fairseq_cargo", default=(None, None))
