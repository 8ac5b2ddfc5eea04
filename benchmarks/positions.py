"""The cost of relative positions beside the window alone: `python -m benchmarks.positions`.

The attention of one layer of the paper's character models (8 heads x 64, the top layer's window of phase 1),
float32, forward and backward. The position scores of a window are as large as its content scores; in
blocks they are computed twice and never kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import lf_backend as lf
from benchmarks import record
from benchmarks.record import Row
from lf_backend.measure import interleaved, peak_bytes
from lf_fairseq.attention import relative

HEADS, HEAD_DIM, WINDOW, BLOCK = 8, 64, 512, 1024
LENGTHS = (2048, 8192)
QUICK = {"HEADS": 2, "HEAD_DIM": 16, "WINDOW": 32, "BLOCK": 64, "LENGTHS": (128, 256)}


def main() -> None:
    options = record.parsed(record.parser(__doc__, SECTIONS, repeats=3), globals(), QUICK)
    record.report(options, SECTIONS, lambda section: section(options.repeats))


def layer(repeats: int) -> Iterator[Row]:
    """Attention of one layer, window 512, forward and backward."""
    for length in LENGTHS:
        runs = _runs(length)
        times = interleaved(runs, repeats)
        for name, run in runs.items():
            yield {
                "work": f"N {length:,}",
                "name": name,
                "ms": times[name].median * 1e3,
                "time / window": times[name].median / times["window alone"].median,
                "peak MiB": peak_bytes(run) / 2**20,
            }


def _runs(length: int) -> dict[str, Callable[[], Tensor]]:
    generator = torch.Generator().manual_seed(0)
    width, pattern = HEADS * HEAD_DIM, lf.Window.causal(WINDOW)
    shapes = 3 * [(1, HEADS, length, HEAD_DIM)] + [(width, width)] + 2 * [(HEADS, HEAD_DIM)]
    leaves = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]

    def both(attend: Callable[..., Tensor], *inputs: Tensor, **options: Any) -> Callable[[], Tensor]:
        def run() -> Tensor:
            out = attend(*inputs[:3], pattern, *inputs[3:], **options)
            torch.autograd.grad(out, inputs, out.detach())
            return out.detach()

        return run

    found = {
        "window alone": both(lf.attention, *leaves[:3]),
        "positions": both(relative.attention, *leaves),
        f"positions in blocks of {BLOCK:,}": both(relative.attention, *leaves, block=BLOCK),
    }
    _, one, two = (run() for run in found.values())
    torch.testing.assert_close(one, two)
    return found


SECTIONS = {"layer": layer}

if __name__ == "__main__":
    main()
