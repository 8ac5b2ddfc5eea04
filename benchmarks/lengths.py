"""Time and memory against length, the paper's figure 1 of today: `python -m benchmarks.lengths`.

Longformer-base's attention (window 512, 12 heads x 64, one example, float32, forward + backward), and what it
replaces: full attention as it is written down, with all scores in memory; full attention by PyTorch's fused
kernel; Hugging Face's Longformer layer. At each length all run in turn in one process. `--save NAME` writes
the rows and the picture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
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
PANELS = (("ms", "forward + backward, ms"), ("MiB", "peak memory, MiB"))


def main() -> None:
    parser = record.parser(__doc__, {"lengths": lengths}, repeats=3)
    options = parser.parse_args()
    rows: list[Row] = []

    def run(section: record.Section) -> Iterable[Row]:
        rows.extend(section(options.repeats))
        return rows

    record.report(options, {"lengths": lengths}, run)
    if options.save:
        draw(rows).savefig(record.RESULTS / f"{options.save}.svg", bbox_inches="tight")


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
            yield {"work": "attention", "name": name, "length": length, "ms": time.median * 1e3, "MiB": mib}


def draw(rows: list[Row]) -> Any:
    """The rows as a picture, time beside memory."""
    figure = optional("matplotlib.figure", "plots").Figure(figsize=(10, 4))
    for place, (column, label) in enumerate(PANELS, 1):
        axes = figure.add_subplot(1, 2, place)
        for name in dict.fromkeys(row["name"] for row in rows):
            own = [row for row in rows if row["name"] == name]
            axes.loglog([row["length"] for row in own], [row[column] for row in own], "o-", label=name)
        axes.set(xlabel="tokens", ylabel=label)
        axes.set_xticks(LENGTHS, [str(length) for length in LENGTHS], rotation=45)
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    figure.axes[0].legend(frameon=False)
    return figure


def _both(way: peers.Attention, length: int) -> Callable[[], Tensor]:
    generator = torch.Generator().manual_seed(0)
    inputs = [
        torch.randn(1, length, HEADS, HEAD_DIM, generator=generator).transpose(1, 2).requires_grad_()
        for _ in "qkv"
    ]

    def both() -> Tensor:
        return torch.cat([x.flatten() for x in torch.autograd.grad(way(*inputs).sum(), inputs)])

    return both


if __name__ == "__main__":
    main()
