"""Time and memory against length, the paper's figure 1 of today: `python -m benchmarks.lengths`.

Longformer-base's attention (window 512, 12 heads x 64, one example, float32, forward + backward), and what it
replaces: full attention as it is written down, with all scores in memory; full attention by PyTorch's fused
kernel; Hugging Face's Longformer layer. Then the forward of every backend. At each length all run in turn in
one process. `--save NAME` writes the rows and a picture of each section, NAME.svg if it is the only one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

import lf_backend as lf
from benchmarks import peers, record
from benchmarks.record import Row
from lf_backend._optional import optional
from lf_backend.measure import interleaved, peak_bytes

WINDOW, HEADS, HEAD_DIM = 512, 12, 64
LENGTHS = (512, 1024, 2048, 4096, 8192, 16384, 32768)
OURS, STOCK = "lf_backend", "Hugging Face's Longformer"
FUSED, WRITTEN = "full attention, fused (SDPA)", "full attention, as written"
MOST = {OURS: 32768, STOCK: 16384, FUSED: 8192, WRITTEN: 4096}  # the longest that is measured
SHORT_AND_LONG = (64, 256, 1024, 4096, 16384, 65536)
QUICK = {
    "WINDOW": 32, "HEADS": 2, "HEAD_DIM": 16, "LENGTHS": (64, 128), "SHORT_AND_LONG": (64, 256),
}  # fmt: skip
PATIENCE = 8.0  # seconds of a call: a backend that would take longer at a length is not asked


def main() -> None:
    options = record.parsed(record.parser(__doc__, SECTIONS, repeats=3), globals(), QUICK)

    def run(section: record.Section) -> Iterable[Row]:
        rows = list(section(options.repeats))
        if options.save:
            alone = len(options.only or SECTIONS) == 1
            picture = options.save if alone else f"{options.save}-{section.__name__}"
            draw(rows).savefig(record.RESULTS / f"{picture}.svg")
        return rows

    record.report(options, SECTIONS, run)


def lengths(repeats: int) -> Iterator[Row]:
    """Forward + backward of attention alone."""
    pattern = lf.conventions.huggingface(WINDOW)
    ways: dict[str, peers.Attention] = {
        OURS: lambda q, k, v: lf.attention(q, k, v, pattern),
        STOCK: peers.longformer_attention(WINDOW, HEADS, HEAD_DIM),
        FUSED: torch.nn.functional.scaled_dot_product_attention,
        WRITTEN: lambda q, k, v: (q @ k.mT * HEAD_DIM**-0.5).softmax(-1) @ v,
    }
    for length in LENGTHS:
        runs = {name: _both(way, length) for name, way in ways.items() if length <= MOST[name]}
        times = interleaved(runs, repeats, warmup=1)
        for name, time in times.items():
            mib = peak_bytes(runs[name]) / 2**20
            yield {
                "work": "forward + backward",
                "name": name,
                "length": length,
                **record.timed(time),
                "MiB": mib,
            }


def backends(repeats: int) -> Iterator[Row]:
    """Forward by every backend that can run it here, and the power of the length by which its time grows."""
    pattern = lf.conventions.huggingface(WINDOW)
    found: dict[str, dict[int, float]] = {}
    for length in SHORT_AND_LONG:
        q, k, v = _inputs(length)
        runs: dict[str, Callable[[], Tensor]] = {}
        for verdict in lf.explain(q, k, v, pattern).verdicts:
            times = found.setdefault(verdict.backend, {})
            bearable = not times or list(times.values())[-1] * (length / max(times)) ** 2 < PATIENCE
            if not verdict.reasons and bearable and len(times) == SHORT_AND_LONG.index(length):
                runs[verdict.backend] = partial(lf.attention, q, k, v, pattern, backend=verdict.backend)
        with torch.no_grad():
            for name, time in interleaved(runs, repeats, warmup=1).items():
                found[name][length] = time.median
                yield {"work": "forward", "name": name, "length": length, **record.timed(time)}
    for name, times in found.items():
        if len(times) > 1:
            *_, shorter, longer = times
            power = math.log(times[longer] / times[shorter], longer / shorter)
            yield {"work": f"power of N, {shorter} to {longer}", "name": name, "value": power}


SECTIONS: dict[str, record.Section] = {"lengths": lengths, "backends": backends}
PANELS = {"ms": "ms", "MiB": "peak memory, MiB"}


def draw(rows: list[Row]) -> Any:
    """The rows as a picture: time, and memory beside it where it was taken."""
    rows = [row for row in rows if "length" in row]
    panels = [column for column in PANELS if column in rows[0]]
    size = (5 * len(panels), 4.5)
    figure = optional("matplotlib.figure", "plots").Figure(figsize=size, layout="constrained")
    lengths = sorted({row["length"] for row in rows})
    for place, column in enumerate(panels, 1):
        axes = figure.add_subplot(1, len(panels), place)
        for name in dict.fromkeys(row["name"] for row in rows):
            own = [row for row in rows if row["name"] == name]
            axes.loglog([row["length"] for row in own], [row[column] for row in own], "o-", label=name)
        axes.set(
            xlabel="tokens",
            ylabel=f"{rows[0]['work']}, {PANELS[column]}" if column == "ms" else PANELS[column],
        )
        axes.set_xticks(lengths, [str(length) for length in lengths], rotation=45)
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    handles = figure.axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=2, frameon=False)
    return figure


def _inputs(length: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (1, length, HEADS, HEAD_DIM)
    return [torch.randn(shape, generator=generator).transpose(1, 2) for _ in "qkv"]


def _both(way: peers.Attention, length: int) -> Callable[[], Tensor]:
    inputs = [x.requires_grad_() for x in _inputs(length)]

    def both() -> Tensor:
        return torch.cat([x.flatten() for x in torch.autograd.grad(way(*inputs).sum(), inputs)])

    return both


if __name__ == "__main__":
    main()
