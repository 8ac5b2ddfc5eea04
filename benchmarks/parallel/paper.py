"""A model: time of a layer over ranks, from the rate of kernels and of links. Nothing here is measured.

Of one layer of attention, forward and backward, with the keys of a window that reaches W to both sides:

- *kernels*: 4 x 3.5 x H x D x (2 W + 1) operations for each position of a rank (a product of queries and keys
  and one with values; a backward costs 2.5 forwards), at one rate for all sizes.
- *neighbours*: 2 x 2 W x Hkv x D elements into a rank, and as many back out in the backward, in two messages
  each; as many more ranks as the window needs where a slice is shorter than W. Nothing overlaps.
- *all-gather*: k and v of all other ranks into a rank, and their gradients back, nothing overlaps.
- *ring*: the same bytes in P - 1 messages of one shard, each overlapped with its share of the kernels.
- A message takes its latency and its bytes over the link. Links are alike, and nobody shares them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from benchmarks import record
from benchmarks.record import Row
from lf_backend._optional import optional

HEADS, KV_HEADS, HEAD_DIM, ELEMENT = 32, 8, 128, 2
REACH = 512
RANKS = tuple(2**n for n in range(11))
LENGTHS = (131_072, 1_000_000, 10_000_000)


class Machine(NamedTuple):
    """Operations a second of the kernels, bytes a second into a rank, seconds of a message."""

    rate: float
    link: float
    latency: float


def report(out: Path, tflops: float, link: float, latency: float) -> None:
    """Print the table, save it and its picture."""
    machine = Machine(tflops * 1e12, link * 1e9, latency * 1e-6)
    rows = [row for length in LENGTHS for ranks in RANKS for row in layer(machine, length, ranks)]
    given: Row = {"tflops": tflops, "GB/s": link, "us": latency}
    shape = {"heads": HEADS, "kv heads": KV_HEADS, "head_dim": HEAD_DIM, "bytes": ELEMENT, "reach": REACH}
    console = Console(width=120)
    console.print(__doc__)
    console.print({**given, **shape})
    console.print(record.table("a model: ms of a layer, forward and backward", rows))
    saved = record.save("parallel-model", [{"section": "given", **given, **shape}, *rows], out)
    _draw(rows).savefig(out / "parallel-model.svg", bbox_inches="tight")
    console.print(f"saved {saved} and its picture")


def layer(machine: Machine, length: int, ranks: int) -> list[Row]:
    """Return the time of each way, for one length and number of ranks."""
    own = -(-length // ranks)
    kernels = 4 * 3.5 * HEADS * HEAD_DIM * (2 * REACH + 1) * own / machine.rate
    key = 2 * KV_HEADS * HEAD_DIM * ELEMENT  # k and v of a position
    sides = min(2, ranks - 1)
    near = min(REACH, length - own) * sides
    hops = sides * min(max(1, ranks - 1), -(-REACH // own))
    shard = own * key
    neighbours = 2 * (hops * machine.latency + near * key / machine.link)
    gather = 2 * (ranks - 1) * (machine.latency + shard / machine.link)
    step = max(machine.latency + shard / machine.link, kernels / (2 * ranks))
    times = {
        "neighbours": kernels + neighbours,
        "all-gather": kernels + gather,
        "ring": kernels / ranks + 2 * (ranks - 1) * step,
    }
    return [
        {"N": length, "ranks": ranks, "name": name, "ms": time * 1e3, "of kernels": time / kernels}
        for name, time in times.items()
    ]


def _draw(rows: list[Row]) -> Any:
    """Time against ranks, a panel for each length."""
    figure = optional("matplotlib.figure", "plots").Figure(figsize=(12, 4))
    panels = figure.subplots(1, len(LENGTHS), sharey=True)
    for panel, length in zip(panels, LENGTHS, strict=True):
        for name in ("all-gather", "ring", "neighbours"):
            some = [row for row in rows if row["N"] == length and row["name"] == name]
            panel.plot([row["ranks"] for row in some], [row["ms"] for row in some], label=name)
        panel.set(xscale="log", yscale="log", xlabel="ranks", title=f"{length:,} positions, a model")
    panels[0].set_ylabel("ms of a layer, forward and backward")
    panels[0].legend()
    return figure
