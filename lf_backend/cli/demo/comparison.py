"""One model as it is and through this library: the answers, time and memory, at growing lengths."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch
from torch import Tensor, nn
from torch.utils.benchmark import timer

from lf_backend.measure import Timing, interleaved, peak_bytes

REPEATS, ENOUGH = 3, 6.0  # rounds at a length, and seconds after which no further one begins


@dataclass(frozen=True)
class Cost:
    """The cost of one forward pass.

    Attributes:
        seconds: of the whole model.
        attention: the median of the seconds spent in its attention modules, without their linear layers,
            which are the same in both models.
        bytes: the most memory at any moment, without weights and inputs.
    """

    seconds: Timing
    attention: float
    bytes: int


@dataclass(frozen=True)
class Compared:
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
) -> Iterator[str | Compared]:
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

    models = {"stock": stock, "ours": ours}
    yield "answers and memory"
    answers: dict[str, Tensor] = {}

    def answer(name: str) -> None:
        answers[name] = run(models[name])

    peaks = {name: peak_bytes(partial(answer, name), inputs.device) for name in models}
    difference = float((answers["stock"] - answers["ours"]).abs().max() / answers["stock"].abs().max())
    yield "time"
    with _stopwatch(stock, attention) as of_stock, _stopwatch(ours, attention) as of_ours:
        runs = {name: partial(run, model) for name, model in models.items()}
        seconds = interleaved(runs, REPEATS, warmup=0, enough=ENOUGH)
    laps = {"stock": of_stock, "ours": of_ours}
    costs = {name: Cost(seconds[name], _per_pass(laps[name], len(attention)), peaks[name]) for name in models}
    yield Compared(length, difference, **costs)


@contextmanager
def _stopwatch(model: nn.Module, names: Sequence[str]) -> Iterator[list[float]]:
    """Within the block, every call of these modules adds its seconds to the list, linear layers apart."""
    laps: list[float] = []
    starts: list[float] = []  # of the module, and within it of a linear layer
    apart: list[float] = []

    def start(*_: object) -> None:
        starts.append(timer())

    def stop_linear(*_: object) -> None:
        apart.append(timer() - starts.pop())

    def stop(*_: object) -> None:
        laps.append(timer() - starts.pop() - sum(apart))
        apart.clear()

    hooks = []
    for module in (model.get_submodule(name) for name in names):
        hooks += [module.register_forward_pre_hook(start), module.register_forward_hook(stop)]
        for linear in (x for x in module.modules() if isinstance(x, nn.Linear)):
            hooks += [linear.register_forward_pre_hook(start), linear.register_forward_hook(stop_linear)]
    try:
        yield laps
    finally:
        for hook in hooks:
            hook.remove()


def _per_pass(laps: list[float], modules: int) -> float:
    return median(sum(laps[at : at + modules]) for at in range(0, len(laps), modules))
