"""One sequence over ranks.

    torchrun --nproc-per-node 2 -m benchmarks.parallel --out DIR      # measured, and checked first
    torchrun --nproc-per-node 2 -m benchmarks.parallel --toy --out DIR
    python -m benchmarks.parallel --model                             # on paper, with a picture

Rounds of what is compared follow each other on all ranks; a time is that of the slowest rank. Report ratios.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from benchmarks import record
from benchmarks.parallel import measured, paper


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", action="store_true", help="on paper, in one process")
    parser.add_argument("--out", type=Path, help="folder of the results, benchmarks/results by default")
    parser.add_argument("--toy", action="store_true", help="small sizes, to try the command itself")
    parser.add_argument("--length", type=int, help="positions of a rank in weak, of all in strong scaling")
    parser.add_argument("--reach", type=int, default=256, help="positions of a window on each side")
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5, help="timed rounds")
    parser.add_argument("--tflops", type=float, default=200.0, help="--model: of the kernels, useful ones")
    parser.add_argument("--link", type=float, default=50.0, help="--model: GB/s into a rank")
    parser.add_argument("--latency", type=float, default=20.0, help="--model: us of a message")
    options = parser.parse_args()
    if options.model:
        paper.report(options.out or record.RESULTS, options.tflops, options.link, options.latency)
        return
    torch.set_num_threads(1)
    sizes = measured.Sizes(
        length=options.length or (512 if options.toy else 32768),
        reach=32 if options.toy else options.reach,
        heads=2 if options.toy else options.heads,
        head_dim=16 if options.toy else options.head_dim,
    )
    measured.report(options.out or record.RESULTS, sizes, options.repeats)


if __name__ == "__main__":
    main()
