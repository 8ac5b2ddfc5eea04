"""The native backend against the machine: `python -m benchmarks.native`.

Longformer-base's attention (N 4,096, W 512, 12 heads x 64, one example) on one thread, as shares of the rate
of a large float32 matrix product, and variants as ratios to it. All of it runs in turn, and each time is the
least of several, of processor time, which leaves out waiting for a core on a busy machine.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import lf_backend as lf
from benchmarks import record

LENGTH, HEADS, HEAD_DIM, MATRIX = 4096, 12, 64, 2048
QUICK = {"LENGTH": 256, "HEADS": 2, "HEAD_DIM": 16, "MATRIX": 64}
BASE = lf.Window(256, 256)

Work = Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--backend", default="native")
    options = record.parsed(parser, globals(), QUICK)
    torch.set_num_threads(1)
    times = least({name: run for name, run in works(options.backend).items()}, options.repeats)
    rate = 2 * MATRIX**3 / times["matrix product"]
    table = Table("work", "ms", "share of the matrix rate", "time / plain", title=f"{rate / 1e9:.1f} GFLOP/s")
    for name, spent in times.items():
        kind = "both" if name.endswith("both") else "forward"
        flops = (14 if kind == "both" else 4) * HEAD_DIM * BASE.pairs(LENGTH, heads=HEADS)
        share = f"{flops / spent / rate:.2f}" if name.startswith("plain") else ""
        ratio = f"{spent / times[f'plain, {kind}']:.2f}" if name.endswith(("forward", "both")) else ""
        table.add_row(name, f"{spent * 1e3:.3g}", share, ratio)
    Console().print(table)


def works(backend: str) -> dict[str, Work]:
    """Everything that is timed, by name."""
    a, b = torch.randn(2, MATRIX, MATRIX)
    holes = torch.rand(1, LENGTH, generator=torch.Generator().manual_seed(2)) < 0.5
    variants: dict[str, tuple[lf.Pattern, torch.dtype, dict[str, Any]]] = {
        "plain": (BASE, torch.float32, {}),
        "bfloat16": (BASE, torch.bfloat16, {}),
        "16 global tokens": (BASE | lf.Global(*range(16)), torch.float32, {}),
        "dilation 2": (lf.Window(256, 256, dilation=2), torch.float32, {}),
        "half of the keys padded": (BASE, torch.float32, {"key_padding": holes}),
    }
    found: dict[str, Work] = {"matrix product": lambda: a @ b}
    for name, (pattern, dtype, options) in variants.items():
        found[f"{name}, forward"] = forward(pattern, dtype, backend, options)
        found[f"{name}, both"] = both(pattern, dtype, backend, options)
    q, k, v = (x.detach() for x in inputs(torch.float32))
    near, one, last = slice(LENGTH - LENGTH // 4, LENGTH), q[:, :, -1:], lf.Window.causal(LENGTH // 4)
    found["decoding, 1 of a quarter"] = lambda: lf.attention(one, k, v, last, backend=backend)
    found["decoding, sdpa on the slice"] = lambda: torch.nn.functional.scaled_dot_product_attention(
        one, k[:, :, near], v[:, :, near]
    )
    return found


def inputs(dtype: torch.dtype) -> list[Tensor]:
    """q, k, v [1, H, N, D] as models have them: views of [1, N, H, D]."""
    generator = torch.Generator().manual_seed(0)
    drawn = (torch.randn(1, LENGTH, HEADS, HEAD_DIM, generator=generator) for _ in range(3))
    return [x.to(dtype).transpose(1, 2).requires_grad_() for x in drawn]


def forward(pattern: lf.Pattern, dtype: torch.dtype, backend: str, options: dict[str, Any]) -> Work:
    q, k, v = (x.detach() for x in inputs(dtype))
    return lambda: lf.attention(q, k, v, pattern, backend=backend, **options)


def both(pattern: lf.Pattern, dtype: torch.dtype, backend: str, options: dict[str, Any]) -> Work:
    q, k, v = leaves = inputs(dtype)
    upstream = torch.randn(q.shape).to(dtype)
    return lambda: torch.autograd.grad(
        lf.attention(q, k, v, pattern, backend=backend, **options), leaves, upstream
    )


def least(works: dict[str, Work], repeats: int) -> dict[str, float]:
    """The least processor time of each, in seconds; all in turn."""
    times = dict.fromkeys(works, float("inf"))
    for _ in range(repeats + 1):
        for name, work in works.items():
            start = time.process_time()
            work()
            times[name] = min(times[name], time.process_time() - start)
    return times


if __name__ == "__main__":
    main()
