"""One model as it is and through this library: the answers, time and memory, at growing lengths."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.benchmark import timer

from lf_backend.measure import Timing, interleaved, peak_bytes

REPEATS = 3


@dataclass(frozen=True)
class Cost:
    """The cost of one forward pass.

    Attributes:
        seconds: of the whole model.
        attention: the median of the seconds spent in its attention modules, projections included.
        bytes: the most memory at any moment, without weights and inputs.
    """

    seconds: Timing
    attention: float
    bytes: int


@dataclass(frozen=True)
class Row:
    """The findings at one length.

    Attributes:
        length: number of tokens.
        difference: the largest between the two outputs, divided by the largest output.
        stock, ours: what the two models take.
    """

    length: int
    difference: float
    stock: Cost
    ours: Cost


def twin(model: nn.Module) -> nn.Module:
    """Copy a model over the same weights."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)


def lengths(shortest: int, longest: int) -> list[int]:
    """Lengths that double from `shortest`, and `longest`."""
    found = []
    while shortest < longest:
        found.append(shortest)
        shortest *= 2
    return [*found, longest]


def compare(
    stock: nn.Module, ours: nn.Module, attention: Sequence[str], tokens: Tensor, length: int
) -> Iterator[str | Row]:
    """Compare at one length; yields the name of each step when it begins, then the row.

    The first token is global, as in classification.

    Args:
        attention: names of the attention modules, the same in both models.
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
    models = {"stock": stock, "ours": ours}
    with _stopwatch(stock, attention) as of_stock, _stopwatch(ours, attention) as of_ours:
        runs = {name: partial(run, model) for name, model in models.items()}
        seconds = interleaved(runs, REPEATS, warmup=0)
    yield "memory"
    peaks = {name: peak_bytes(partial(run, model), inputs.device) for name, model in models.items()}
    laps = {"stock": of_stock, "ours": of_ours}
    costs = {name: Cost(seconds[name], _per_pass(laps[name]), peaks[name]) for name in models}
    yield Row(length, difference, **costs)


@contextmanager
def _stopwatch(model: nn.Module, names: Sequence[str]) -> Iterator[list[float]]:
    """Within the block, every call of these modules adds its seconds to the list."""
    laps: list[float] = []
    starts: list[float] = []
    modules = [model.get_submodule(name) for name in names]
    hooks = [m.register_forward_pre_hook(lambda *_: starts.append(timer())) for m in modules]
    hooks += [m.register_forward_hook(lambda *_: laps.append(timer() - starts.pop())) for m in modules]
    try:
        yield laps
    finally:
        for hook in hooks:
            hook.remove()


def _per_pass(laps: list[float]) -> float:
    return float(torch.tensor(laps).view(REPEATS, -1).sum(1).median())
