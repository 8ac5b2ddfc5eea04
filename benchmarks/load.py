"""Our attention and Hugging Face's on a machine that others use too: `python -m benchmarks.load`.

A thread that waits for another one, which does not run, waits for as long as the other programs please; code
with many short parallel regions waits often. Each situation is a process of its own, and both run there in
turn; report ratios.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

import lf_backend as lf
from benchmarks import peers, record
from benchmarks.record import Row
from lf_backend.measure import interleaved

LENGTH, WINDOW, HEADS, HEAD_DIM = 4096, 512, 12, 64
MORE: tuple[str, ...] = ()  # options of the processes


@dataclass(frozen=True)
class Situation:
    """A way to be short of processors.

    Attributes:
        threads: threads that torch is told to use.
        neighbours: processes beside this one that compute all the time.
        processors: processors that this process may use, None for all.
    """

    threads: int
    neighbours: int = 0
    processors: int | None = None


SITUATIONS = {
    "alone": Situation(2),
    "beside two busy processes": Situation(2, neighbours=2),
    "8 threads": Situation(8),
    "2 threads on 1 processor": Situation(2, processors=1),
}
QUICK = {
    "LENGTH": 256, "WINDOW": 64, "HEADS": 2, "HEAD_DIM": 16, "MORE": ("--quick",),
    "SITUATIONS": {"beside a busy process on 1 processor": Situation(1, neighbours=1, processors=1)},
}  # fmt: skip


def main() -> None:
    parser = record.parser(__doc__, SECTIONS, repeats=5)
    parser.add_argument("--here", action="store_true", help="in this process alone, rows as JSON")
    options = record.parsed(parser, globals(), QUICK)
    if options.here:
        print(json.dumps(list(_here(options.threads, options.repeats))))
    else:
        record.report(options, SECTIONS, lambda section: section(options.repeats))


def load(repeats: int) -> Iterator[Row]:
    """Longformer-base's attention (N 4,096, W 512, 12 heads x 64) without projections, float32."""
    for name, situation in SITUATIONS.items():
        with _neighbours(situation.neighbours):
            own = ["--here", "--threads", str(situation.threads), "--repeats", str(repeats), *MORE]
            command = [sys.executable, "-m", "benchmarks.load", *own]
            if situation.processors is not None:
                allowed = sorted(os.sched_getaffinity(0))[: situation.processors]
                command = ["taskset", "--cpu-list", ",".join(map(str, allowed)), *command]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        for row in json.loads(done.stdout):
            yield {"situation": name, **row}


@contextmanager
def _neighbours(count: int) -> Iterator[None]:
    """Within the block, so many processes compute."""
    spinning = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in spinning:
            process.kill()
            process.wait()


def _here(threads: int, repeats: int) -> Iterator[Row]:
    torch.set_num_threads(threads)
    pattern = lf.conventions.huggingface(WINDOW)
    works: dict[str, peers.Attention] = {
        "lf_backend": lambda q, k, v: lf.attention(q, k, v, pattern),
        "Hugging Face": peers.longformer_attention(WINDOW, HEADS, HEAD_DIM),
    }
    inputs = [torch.randn(1, LENGTH, HEADS, HEAD_DIM).transpose(1, 2).requires_grad_() for _ in range(3)]
    upstream = torch.randn(inputs[0].shape)

    def forward(name: str) -> Any:
        with torch.no_grad():
            return works[name](*inputs)

    def both(name: str) -> Any:
        return torch.autograd.grad(works[name](*inputs), inputs, upstream)

    torch.testing.assert_close(forward("lf_backend"), forward("Hugging Face"), rtol=1e-3, atol=1e-4)
    for work, run in (("forward", forward), ("forward + backward", both)):
        times = interleaved({name: partial(run, name) for name in works}, repeats, warmup=1)
        yield from record.compared(work, times, "lf_backend")


SECTIONS = {"load": load}

if __name__ == "__main__":
    main()
