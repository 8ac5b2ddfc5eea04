"""What ranks measure: correctness first, then weak and strong scaling, beside an all-gather and torch's."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import process_time
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.benchmark import timer

import lf_backend as lf
from benchmarks import record
from benchmarks.parallel.peers import PEERS, Run, reason_against
from benchmarks.record import Row
from lf_backend import distributed
from lf_backend.distributed import parts
from lf_backend.distributed.exchange import Parcel, exchange
from lf_backend.distributed.group import Group
from lf_backend.distributed.slices import gathering


@dataclass(frozen=True)
class Sizes:
    """Positions of a rank in weak scaling and of all of them in strong, and the shape of a layer."""

    length: int
    reach: int
    heads: int
    head_dim: int

    @property
    def pattern(self) -> lf.Pattern:
        """The window that is measured."""
        return lf.Window(self.reach, self.reach)


def report(out: Path, sizes: Sizes, repeats: int) -> None:
    """Check and measure; the first rank prints tables and saves all rows.

    Raises:
        LFError: without a process group's environment, which torchrun gives.
    """
    if "WORLD_SIZE" not in os.environ:
        raise lf.LFError("ranks: torchrun --nproc-per-node 2 -m benchmarks.parallel wanted")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    here = record.environment()  # before this process and the others keep the machine busy
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    mesh = dist.device_mesh.init_device_mesh(device, (dist.get_world_size(),))
    rows = [{"section": name, **row} for name, run in SECTIONS.items() for row in run(mesh, sizes, repeats)]
    if dist.get_rank() == 0:
        console = Console(width=150)
        console.print(here)
        for name, run in SECTIONS.items():
            found = [{k: row[k] for k in row if k != "section"} for row in rows if row["section"] == name]
            console.print(record.table(f"{name}: {(run.__doc__ or '').strip()}", found))
        name = f"parallel-{dist.get_world_size()}-ranks-{device}"
        console.print(f"saved {record.save(name, rows, out, here)}")
    dist.destroy_process_group()


def correct(mesh: Any, sizes: Sizes, repeats: int) -> Iterator[Row]:
    """The largest error of a rank's output and gradients against the whole row on one device."""
    length = max(64, min(sizes.length, 2048))
    causal, tokens = lf.Window(8, 0, 3) & lf.Causal(), lf.Global(0, length // 2)
    for pattern in (sizes.pattern, causal, sizes.pattern | tokens):
        whole = _inputs(mesh, replace(sizes, length=length), seed=1)
        own = [_slice(mesh, x).detach().clone().requires_grad_() for x in whole]
        wanted = _alone(whole, pattern)
        out = _shared(own, pattern, mesh)
        exact = [wanted, *torch.autograd.grad(wanted.square().sum(), whole)]
        found = [out, *torch.autograd.grad(out.square().sum(), own)]
        errors = [(_slice(mesh, x) - y).abs().max() for x, y in zip(exact, found, strict=True)]
        worst = torch.stack([x.detach() for x in errors]).max()
        dist.all_reduce(worst, dist.ReduceOp.MAX)
        scale = max(float(x.detach().abs().max()) for x in exact)
        if not float(worst) <= 1e-4 * max(1.0, scale):
            raise lf.LFError(f"ranks: the answer of one device wanted for {pattern}, off by {float(worst)}")
        yield {"work": str(pattern), "error": float(worst), "of": scale}


def weak(mesh: Any, sizes: Sizes, repeats: int) -> Iterator[Row]:
    """As many positions on every rank: each alone with its own row, against all of them with one row."""
    own = _inputs(mesh, sizes, seed=mesh.get_local_rank())
    runs = {
        "alone": lambda: _alone(own, sizes.pattern),
        "neighbours": lambda: _shared(own, sizes.pattern, mesh),
        "neighbours, in one part": lambda: _in_one_part(own, sizes.pattern, mesh),
        "all-gather of keys": lambda: _by_gathering(mesh, own, sizes),
    }
    yield from _compared(mesh, f"{sizes.length:,} positions on each rank", runs, own, repeats, "alone")
    yield _bytes(mesh, own, sizes)


def tokens(mesh: Any, sizes: Sizes, repeats: int) -> Iterator[Row]:
    """Weak scaling with two global tokens, which the first rank has."""
    own, pattern = _inputs(mesh, sizes, seed=mesh.get_local_rank()), sizes.pattern | lf.Global(0, 5)
    runs = {
        "alone": lambda: _alone(own, pattern),
        "neighbours": lambda: _shared(own, pattern, mesh),
    }
    yield from _compared(mesh, f"{sizes.length:,} positions on each rank", runs, own, repeats, "alone")


def strong(mesh: Any, sizes: Sizes, repeats: int) -> Iterator[Row]:
    """One row on the first rank while others wait, against the same row over all ranks."""
    whole = _inputs(mesh, replace(sizes, length=sizes.length * mesh.size()), seed=1)
    own = [_slice(mesh, x).detach().clone().requires_grad_() for x in whole]
    first = mesh.get_local_rank() == 0

    def one() -> Tensor | None:
        return _alone(whole, sizes.pattern) if first else None

    runs = {
        "one rank": one,
        "neighbours": lambda: _shared(own, sizes.pattern, mesh),
        "all-gather of keys": lambda: _by_gathering(mesh, own, sizes),
    }
    yield from _compared(mesh, f"{whole[0].shape[2]:,} positions", runs, own, repeats, "one rank")


def peers(mesh: Any, sizes: Sizes, repeats: int) -> Iterator[Row]:
    """torch's own context parallelism beside ours, where torch gives the answer of one device."""
    own, length = _inputs(mesh, sizes, seed=mesh.get_local_rank()), sizes.length * mesh.size()
    runs: dict[str, Callable[[], Tensor | None]] = {"neighbours": lambda: _shared(own, sizes.pattern, mesh)}
    for name, (make, everything) in PEERS.items():
        if (reason := reason_against(mesh, make, everything)) is not None:
            yield {"name": name, "not run": reason}
            continue
        runs[name] = partial(_without_answer, make(mesh, length, sizes.reach), own)
    if len(runs) > 1:
        yield from _compared(
            mesh, f"{sizes.length:,} positions on each rank", runs, own, repeats, "neighbours"
        )


def _without_answer(run: Run, own: list[Tensor]) -> None:
    """Run forward and backward."""
    run(own)


SECTIONS: dict[str, Callable[[Any, Sizes, int], Iterator[Row]]] = {
    "correct": correct, "weak": weak, "tokens": tokens, "strong": strong, "peers": peers,
}  # fmt: skip


def _inputs(mesh: Any, sizes: Sizes, seed: int) -> list[Tensor]:
    torch.manual_seed(seed)
    shape = (3, 1, sizes.heads, sizes.length, sizes.head_dim)
    return [x.clone().requires_grad_() for x in torch.randn(shape, device=mesh.device_type)]


def _alone(inputs: list[Tensor], pattern: lf.Pattern) -> Tensor:
    q, k, v = inputs
    return lf.attention(q, k, v, pattern)


def _shared(inputs: list[Tensor], pattern: lf.Pattern, mesh: Any) -> Tensor:
    q, k, v = inputs
    return distributed.attention(q, k, v, pattern, mesh=mesh)


def _in_one_part(inputs: list[Tensor], pattern: lf.Pattern, mesh: Any) -> Tensor:
    """Return the same output by the way of short slices, which wait for the halo and copy it all."""
    short = parts.SHORT
    try:
        parts.SHORT = sys.maxsize
        return _shared(inputs, pattern, mesh)
    finally:
        parts.SHORT = short


def _slice(mesh: Any, x: Tensor) -> Tensor:
    found: Tensor = x.tensor_split(mesh.size(), 2)[mesh.get_local_rank()]
    return found


def _by_gathering(mesh: Any, own: list[Tensor], sizes: Sizes) -> Tensor:
    """Return the same output from the keys and values of all ranks, of which the window's are used."""
    group = Group.of(mesh)
    q, *keys = own
    count = q.shape[2]
    route = gathering((count,) * group.size, group.rank)
    k, v = exchange(group, [Parcel(x, route) for x in keys])
    first = max(0, group.rank * count - sizes.reach)
    last = min(k.shape[2], (group.rank + 1) * count + sizes.reach)
    ahead = last - (group.rank + 1) * count
    out = lf.attention(pad(q, (0, 0, 0, ahead)), k[:, :, first:last], v[:, :, first:last], sizes.pattern)
    return out[:, :, :count]


Runs = Mapping[str, Callable[[], Tensor | None]]


def _compared(mesh: Any, work: str, runs: Runs, own: list[Tensor], repeats: int, unit: str) -> Iterator[Row]:
    """Forward and backward, round after round: of each the slowest rank's time, and the most processor time.

    Processor time leaves out what ranks wait, for each other and for processes of others on their cores.
    """
    rounds: dict[str, list[Tensor]] = {name: [] for name in runs}
    for step in range(repeats + 1):
        for name, run in runs.items():
            dist.barrier()
            start = torch.tensor([timer(), process_time()], dtype=torch.float64)
            out = run()
            if out is not None:
                torch.autograd.backward(out.sum())
            end = torch.tensor([timer(), process_time()], dtype=torch.float64)
            spent = (end - start).to(mesh.device_type)
            dist.all_reduce(spent, dist.ReduceOp.MAX)
            if step:
                rounds[name].append(spent.cpu())
            for x in own:
                x.grad = None
    for name, found in rounds.items():
        wall, processor = torch.stack(found).median(0).values.tolist()
        ratios = [x / y for x, y in zip(found, rounds[unit], strict=True)]
        longer, more = torch.stack(ratios).median(0).values.tolist()
        yield {
            "work": work, "name": name, "ms": wall * 1e3, "times as long": longer,
            "processor ms": processor * 1e3, "times as much": more,
        }  # fmt: skip


def _bytes(mesh: Any, own: list[Tensor], sizes: Sizes) -> Row:
    q, k, v = own
    told = distributed.explain(q, k, v, sizes.pattern, mesh=mesh)
    return {
        "work": "bytes of a layer, forward and backward, into the rank that gets most",
        "name": "neighbours",
        "bytes": max(map(sum, zip(told.forward_received, told.backward_received, strict=True))),
        "of an all-gather": told.share,
    }
