"""One model as it is and through this library: the answers, time and memory, at growing lengths."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lf_backend.measure import Timing, interleaved, peak_bytes

REPEATS = 3


@dataclass(frozen=True)
class Row:
    """What was found at one length.

    Attributes:
        length: number of tokens.
        difference: the largest between the two outputs, divided by the largest output.
        stock, ours: seconds of one forward pass.
        stock_bytes, our_bytes: the most memory of one forward pass, without weights and inputs.
    """

    length: int
    difference: float
    stock: Timing
    ours: Timing
    stock_bytes: int
    our_bytes: int


def twin(model: nn.Module) -> nn.Module:
    """The same model once more, over the same weights."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)


def lengths(shortest: int, longest: int) -> list[int]:
    """Lengths that double from `shortest`, and `longest`."""
    found = []
    while shortest < longest:
        found.append(shortest)
        shortest *= 2
    return [*found, longest]


def compare(stock: nn.Module, ours: nn.Module, tokens: Tensor, length: int) -> Iterator[str | Row]:
    """Compare at one length; yields the name of each step when it begins, then the row.

    The first token is global, as in classification.

    Args:
        tokens: int64 [at least `length`].
    """
    inputs = tokens[None, :length]
    first = torch.zeros_like(inputs).index_fill(1, torch.tensor([0], device=inputs.device), 1)

    @torch.no_grad()
    def run(model: nn.Module) -> Tensor:
        output: Tensor = model(input_ids=inputs, global_attention_mask=first).last_hidden_state
        return output

    yield "answers"
    wanted, got = run(stock), run(ours)
    difference = float((wanted - got).abs().max() / wanted.abs().max())
    yield "time"
    seconds = interleaved({"stock": lambda: run(stock), "ours": lambda: run(ours)}, REPEATS, warmup=0)
    yield "memory"
    peaks = [peak_bytes(lambda model=model: run(model), inputs.device) for model in (stock, ours)]  # type: ignore[misc]
    yield Row(length, difference, seconds["stock"], seconds["ours"], *peaks)
