"""Everything to be known about the Triton backend on a GPU: `python -m benchmarks.gpu --out DIR`.

Sections come in the order of their worth, for a GPU that may be gone at any minute. First the conformance
kit's cases of the main path on the device, each case twice and bit-equal, in memory filled with NaN. Then
each kernel alone, in the sizes that ship and in others, beside what the model says of it (`gpu_model`), which
no GPU has calibrated yet. Then the tables, against what is installed of FlexAttention, FlashAttention-2's
window (torch's own operator), xformers, dense SDPA, cuDNN and Hugging Face's layer, in turn in one process,
and no time before the results are equal. A section is kept as DIR/SECTION.json and skipped when it is there,
so that a run that was cut goes on. With `--toy`, and TRITON_INTERPRET=1, the same code runs on a CPU, small
and without meaning.

TFLOP/s count visible pairs only, 4 D forward and 10 D backward per pair and head; `share` is of a large
product of matrices in bfloat16, or for decoding of a copy.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

import lf_backend as lf
from benchmarks import peers, record
from benchmarks.gpu_model import NARROW, PRODUCTS, WINDOWS, modelled
from benchmarks.record import Row
from benchmarks.tune import MODELLED, run_of, window_call
from lf_backend.backends.triton import devices
from lf_backend.backends.triton.tuning import Tiles, TilesRow, Wanted
from lf_backend.errors import BuildError
from lf_backend.measure import Timing, interleaved, peak_bytes

Maker = Callable[[lf.Pattern, int, torch.device], peers.Attention]
PEERS: Mapping[str, Maker] = {
    "FlexAttention": peers.flex, "FlashAttention-2": peers.flash, "xformers": peers.xformers,
}  # fmt: skip
DENSE: Mapping[str, Maker] = {"SDPA, dense": peers.dense, "cuDNN, dense": peers.cudnn}
CALLS = 10  # in one measurement, so that waiting for the device costs nothing
Run = Callable[[], Any]


@dataclass(frozen=True)
class Work:
    """One problem: shape, pattern, dtype. Layout [B, N, H, D] seen as [B, H, N, D], as models have it."""

    pattern: lf.Pattern
    batch: int = 4
    heads: int = 12
    kv_heads: int = 12
    length: int = 16384
    head_dim: int = 64
    dtype: torch.dtype = torch.bfloat16

    def tensors(self, device: torch.device, grad: bool) -> list[Tensor]:
        """q, k, v, fresh and the same every time."""
        generator = torch.Generator(device).manual_seed(0)
        made = []
        for heads in (self.heads, self.kv_heads, self.kv_heads):
            shape = (self.batch, self.length, heads, self.head_dim)
            made.append(torch.randn(shape, generator=generator, device=device).to(self.dtype).transpose(1, 2))
        return [x.requires_grad_(grad) for x in made]

    def flops(self, per_pair: int) -> float:
        """Useful ones of a pass."""
        pairs = self.pattern.pairs(self.length, heads=self.heads)
        return float(per_pair) * self.head_dim * self.batch * pairs


@dataclass(frozen=True)
class Bench:
    """The device of the sections, and how often they measure."""

    device: torch.device
    toy: bool
    repeats: int

    def scaled(self, work: Work) -> Work:
        """The work itself, or a tiny one of the same kind."""
        if not self.toy:
            return work
        dilations = work.pattern.lowered.bands[0].dilations
        heads = work.heads if len(dilations) > 1 else min(2, work.heads // work.kv_heads)
        return replace(work, batch=1, heads=heads, kv_heads=1, length=40, head_dim=16,
                       dtype=torch.float32, pattern=_small(work.pattern))  # fmt: skip

    def compare(self, work: Work, others: Mapping[str, peers.Attention], equal: bool = True) -> Iterator[Row]:
        """Rows of forward and backward: ours, then others; `equal` others must give our result."""
        ours = partial(_ours, pattern=work.pattern)
        found, rows = dict[str, peers.Attention]({"lf_backend": ours}), []
        wanted = _forward(ours, work, self.device)()
        for name, run in others.items():
            try:
                got = _forward(run, work, self.device)()
                if equal:
                    _close(name, got, wanted)
            except (RuntimeError, ImportError, NotImplementedError, ValueError) as error:
                rows.append({"name": name, "not measured": f"{type(error).__name__}: {str(error)[:120]}"})
            else:
                found[name] = run
        forward = {name: _forward(run, work, self.device) for name, run in found.items()}
        backward = {}
        for name, run in found.items():
            try:
                backward[name] = _backward(run, work, self.device)
                backward[name]()
            except (RuntimeError, NotImplementedError) as error:
                backward.pop(name, None)
                rows.append({"work": "backward", "name": name, "not measured": str(error)[:120]})
        yield from self._rows("forward", self.time(forward), work.flops(4))
        yield from self._rows("backward", self.time(backward), work.flops(10))
        yield from rows

    def time(self, runs: Mapping[str, Run]) -> dict[str, Timing]:
        """Seconds of one call."""
        many = {name: partial(_many, run, 1 if self.toy else CALLS) for name, run in runs.items()}
        timings = interleaved(many, 1 if self.toy else self.repeats, warmup=1)
        count = 1 if self.toy else CALLS
        return {
            n: Timing(t.median / count, t.p20 / count, t.p80 / count, t.drift) for n, t in timings.items()
        }

    def product(self) -> float:
        """FLOP/s of a large matrix product in bfloat16."""
        size = 64 if self.toy else 8192
        a, b = torch.randn(2, size, size, device=self.device, dtype=torch.bfloat16)
        return float(2 * size**3 / self.time({"product": lambda: a @ b})["product"].median)

    def copy(self) -> float:
        """Bytes read per second by a large copy; it writes as many."""
        x = torch.empty(1 << (16 if self.toy else 30), dtype=torch.uint8, device=self.device)
        y = torch.empty_like(x)
        return float(x.numel() / self.time({"copy": lambda: y.copy_(x)})["copy"].median)

    def _rows(self, word: str, times: Mapping[str, Timing], flops: float) -> Iterator[Row]:
        rate = self.product()
        for name, time in times.items():
            yield {
                "work": word, "name": name, **record.timed(time), "TFLOP/s": flops / time.median / 1e12,
                "share": flops / time.median / rate,
                "times as long": time.median / times["lf_backend"].median,
            }  # fmt: skip


def main_path(bench: Bench) -> Iterator[Row]:
    """The kit's windows, padding and global tokens on the device, in bfloat16."""
    cases = "window or causal or padding or projections or (global and tokens)"
    yield from _kit(bench, f"test_case and triton and cuda and bfloat16 and ({cases})")


def conformance(bench: Bench) -> Iterator[Row]:
    """The kit on the device, in all dtypes that the backend claims there, and what only a GPU can show."""
    yield from _kit(bench, "(triton and cuda) or test_gpu")


def _kit(bench: Bench, chosen: str) -> Iterator[Row]:
    tests = str(Path(__file__).parents[1] / "tests" / "gpu")
    chosen = chosen if bench.device.type == "cuda" else "window-float32-cpu-triton"
    command = [sys.executable, "-m", "pytest", "-q", "--tb=line", tests, "--pyargs", "lf_backend.testing"]
    command += ["-k", chosen, "--hypothesis-profile=few"]  # each random case is compiled
    if bench.device.type == "cuda" and importlib.util.find_spec("xdist"):  # hundreds of kernels to compile
        command += ["-n", str(min(12, os.cpu_count() or 1))]
    done = subprocess.run(command, capture_output=True, text=True)
    yield {"passed": done.returncode == 0, "said": done.stdout.strip().splitlines()[-1]}
    if done.returncode:
        raise SystemExit(done.stdout[-8000:])


def sizes(bench: Bench) -> Iterator[Row]:
    """Kernels alone, for windows of 128 to 1,024 keys: sizes that ship, others, and the model."""
    device = devices.of(bench.device)
    for (left, right), dims, kernel in product((*WINDOWS, *NARROW), (64, 128), PRODUCTS):
        work = bench.scaled(Work(lf.Window(left, right), batch=1, head_dim=dims))
        wanted = Wanted(kernel, work.head_dim, work.dtype.itemsize, left + right, False)
        ships = device.tiles(wanted)
        call = window_call(work.tensors(bench.device, False), work.pattern)
        tried = dict.fromkeys([ships, *([] if bench.toy else map(Tiles._make, MODELLED[kernel]))])
        runs = {tiles: run_of(call, device, kernel, tiles) for tiles in tried}
        able = {tiles: run for tiles, run in runs.items() if _runs(run)}
        times = bench.time({str(tiles): run for tiles, run in able.items()})
        for tiles in able:
            seconds = times[str(tiles)].median
            row = TilesRow(device.arch, kernel, dims, 2, left + right, False, tiles, "")
            said = None if bench.toy else modelled(row, (left, right))
            measured = work.flops(2 * PRODUCTS[kernel]) / seconds / 1e12
            title = f"{kernel} {tuple(tiles)}{' ships' if tiles == ships else ''}"
            yield {
                "work": f"{left} + {right}, D {dims}", "name": title, "TFLOP/s": measured, "modelled": said,
                "over the model": said and measured / said,
            }  # fmt: skip


def _runs(run: Run) -> bool:
    try:
        run()
    except BuildError:
        return False
    return True


def causal(bench: Bench) -> Iterator[Row]:
    """Causal windows of 1,024 keys and of 128, 64 heads that share 8, as large models have it."""
    for keys, length in product((1024, 128), (4096, 8192, 16384, 32768)):
        work = Work(lf.Window.causal(keys), batch=2, heads=64, kv_heads=8, length=length)
        yield from _named(f"{keys} keys, N {length}", bench, work, PEERS)


def two_sided(bench: Bench) -> Iterator[Row]:
    """Windows of both sides with one global token; FlashAttention-2 has no global tokens."""
    for reach, head_dim in ((256, 64), (256, 128), (64, 64)):
        work = Work(lf.Window(reach, reach) | lf.Global(0), head_dim=head_dim)
        title = f"{reach} + {reach}, D {head_dim}"
        yield from _named(title, bench, work, ("FlexAttention",))
        window = Work(lf.Window(reach, reach), head_dim=head_dim)
        yield from _named(f"{title}, no global", bench, window, (*PEERS, *DENSE))


def globals_(bench: Bench) -> Iterator[Row]:
    """Time calls with global tokens; figures are ratios to none."""
    yield from _relative(
        bench,
        {
            f"{count} global tokens": Work(lf.Window(256, 256) | lf.Global(*range(count)), batch=1)
            for count in (0, 1, 16, 64)
        },
    )


def dilation(bench: Bench) -> Iterator[Row]:
    """Time dilated windows, 256 + 256; figures are ratios to an undilated one."""
    yield from _relative(
        bench,
        {
            "none": Work(lf.Window(256, 256)),
            "4, all heads": Work(lf.Window(256, 256, dilation=4)),
            "4, 2 of 12 heads": Work(lf.Window(256, 256, dilation=(1,) * 10 + (4,) * 2)),
        },
    )


def layer(bench: Bench) -> Iterator[Row]:
    """Longformer-base's attention, N 4,096, 8 examples, float32 and bfloat16, against Hugging Face's."""
    for dtype in (torch.float32, torch.bfloat16):
        work = bench.scaled(Work(lf.conventions.huggingface(512), batch=8, length=4096, dtype=dtype))
        both: dict[str, peers.Attention] = {"lf_backend": partial(_ours, pattern=work.pattern)}
        if not bench.toy:
            both["Hugging Face"] = peers.longformer_attention(512, work.heads, work.head_dim)
        for row in bench.compare(work, {name: run for name, run in both.items() if name != "lf_backend"}):
            yield {"dtype": str(dtype), **row}
        for name, run in both.items() if not bench.toy else ():
            peak = peak_bytes(_both(run, work, bench.device), bench.device)
            yield {"dtype": str(dtype), "work": "peak memory", "name": name, "MiB": peak / 2**20}


def decode(bench: Bench) -> Iterator[Row]:
    """One new token, window 4,096 of 131,072 cached: bytes of the window over those that a copy reads."""
    work = bench.scaled(
        Work(lf.Window.causal(4096), batch=32, heads=32, kv_heads=8, head_dim=128, length=131072)
    )
    shape = (work.batch, work.length, work.kv_heads, work.head_dim)
    drawn = (torch.empty(shape, device=bench.device, dtype=work.dtype).normal_() for _ in "kv")
    k, v = (x.transpose(1, 2) for x in drawn)
    q = torch.randn(work.batch, work.heads, 1, work.head_dim, device=bench.device, dtype=work.dtype)
    keys = work.pattern.lowered.bands[0].taps() or 0
    with torch.no_grad():
        time = bench.time({"lf_backend": lambda: _ours(q, k, v, work.pattern)})["lf_backend"]
    read = 2 * work.batch * work.kv_heads * keys * work.head_dim * k.element_size()
    rate = read / time.median
    yield {
        "work": "1 query",
        "name": "lf_backend",
        "us": time.median * 1e6,
        "share": rate / (2 * bench.copy()),
    }


def long(bench: Bench) -> Iterator[Row]:
    """Forward and backward up to 1,048,576 tokens: time over that of linear growth from 65,536."""
    first = 0.0
    for length in (65536, 262144, 1048576):
        work = bench.scaled(Work(lf.Window(256, 256), batch=1, length=length))
        run = _both(partial(_ours, pattern=work.pattern), work, bench.device)
        seconds = bench.time({"run": run})["run"].median
        first = first or seconds / length
        yield {
            "work": f"N {length}",
            "name": "lf_backend",
            "ms": seconds * 1e3,
            "over linear": seconds / length / first,
        }


SECTIONS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "main-path": main_path, "sizes": sizes, "layer": layer, "causal": causal, "two-sided": two_sided,
    "decode": decode, "globals": globals_, "dilation": dilation, "conformance": conformance, "long": long,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--only", choices=SECTIONS, nargs="+", default=list(SECTIONS), help="sections")
    parser.add_argument("--repeats", type=int, default=10, help="timed rounds")
    parser.add_argument("--toy", action="store_true", help="tiny, on a CPU, by the interpreter")
    options = parser.parse_args()
    if not options.toy and not torch.cuda.is_available():
        parser.error("a GPU wanted, found none; --toy runs by Triton's interpreter")
    device = torch.device("cpu") if options.toy else torch.device("cuda", torch.cuda.current_device())
    bench, console = Bench(device, options.toy, options.repeats), Console(width=140)
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.only:
        path = options.out / f"{name}.json"
        if path.exists():
            console.print(f"{name}: kept from {path}")
            continue
        rows = list(SECTIONS[name](bench))
        record.save(name, rows, options.out)
        console.print(record.table(f"{name}: {(SECTIONS[name].__doc__ or '').strip()}", rows))


def _named(title: str, bench: Bench, work: Work, others: Iterable[str]) -> Iterator[Row]:
    """Comparison with peers by their names, those of dense attention apart: their answer is another."""
    work = bench.scaled(work)
    for makers, equal in ((PEERS, True), (DENSE, False)):
        chosen = [] if bench.toy else [name for name in others if name in makers]
        made = {name: makers[name](work.pattern, work.length, bench.device) for name in chosen}
        if made or equal:  # ours is measured with or without peers
            for row in bench.compare(work, made, equal):
                yield {"shape": title, **row}


def _relative(bench: Bench, works: Mapping[str, Work]) -> Iterator[Row]:
    """Times of patterns over that of the first."""
    works = {name: bench.scaled(work) for name, work in works.items()}
    for word, kind in (("forward", _forward), ("forward + backward", _both)):
        runs = {n: kind(partial(_ours, pattern=w.pattern), w, bench.device) for n, w in works.items()}
        times = bench.time(runs)
        plain = next(iter(times.values())).median
        for name, time in times.items():
            yield {"work": word, "name": name, "ms": time.median * 1e3, "over the first": time.median / plain}


def _small(pattern: lf.Pattern) -> lf.Pattern:
    """A pattern of the same kind for 40 positions."""
    (band,) = pattern.lowered.bands
    left, right = (min(reach or 0, 9) for reach in (band.left, band.right))
    window = lf.Window.of(replace(band, left=left, right=right))
    positions = [position for position in pattern.lowered.positions if position < 40]
    return window | lf.Global(*positions) if positions else window


def _ours(q: Tensor, k: Tensor, v: Tensor, pattern: lf.Pattern) -> Tensor:
    return lf.attention(q, k, v, pattern, backend="triton")


def _forward(run: peers.Attention, work: Work, device: torch.device) -> Callable[[], Tensor]:
    inputs = work.tensors(device, False)

    def forward() -> Tensor:
        with torch.no_grad():
            return run(*inputs)

    return forward


def _backward(run: peers.Attention, work: Work, device: torch.device) -> Run:
    inputs = work.tensors(device, True)
    out = run(*inputs)
    upstream = torch.randn_like(out)
    return lambda: torch.autograd.grad(out, inputs, upstream, retain_graph=True)


def _both(run: peers.Attention, work: Work, device: torch.device) -> Run:
    inputs = work.tensors(device, True)
    upstream = torch.randn_like(inputs[0])
    return lambda: torch.autograd.grad(run(*inputs), inputs, upstream)


def _many(run: Run, count: int) -> None:
    for _ in range(count):
        run()


def _close(name: str, got: Tensor, wanted: Tensor) -> None:
    difference = ((got.float() - wanted.float()).abs().max() / wanted.abs().max()).item()
    if not difference < 2e-2:  # a few units of bfloat16's rounding at the largest value
        raise ValueError(f"differs by {difference:.2g} of the largest value")


if __name__ == "__main__":
    main()
