"""The fastest backend for each kind of call: `python -m benchmarks.select` writes
`lf_backend/measured.json`, by which calls are then given to backends (`lf_backend/measured.py`).

Twelve heads of 64, one example, on the device at hand; rows of other devices stay as they are. All backends
that can run a call run it in turn, after they are found equal. What is longer than all rows goes by the
longest.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

import lf_backend as lf
from benchmarks import record
from lf_backend.dispatch import measured
from lf_backend.measure import Timing, interleaved
from lf_backend.problem import Feature, Problem

TABLE = Path(measured.__file__).with_name("measured.json")
HEADS, HEAD_DIM = 12, 64
LENGTHS = (16, 64, 256, 1024)
CACHED = (16, 256, 4096)  # keys of one decoding query
WINDOWS = (32, 128)  # keys on each side
QUICK = {"HEADS": 2, "HEAD_DIM": 16, "LENGTHS": (16,), "CACHED": (16,), "WINDOWS": (8,)}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    options = record.parsed(parser, globals(), QUICK)
    device, console = torch.device(options.device), Console(width=160, highlight=False)
    found: dict[Problem, measured.MeasuredCall] = {}
    for call in _calls(options.dtypes):
        problem, runs = _runs(device, *call)
        if len(runs) > 1 and problem not in found:
            _check_equal(runs)
            found[problem] = _row(problem, device, interleaved(runs, options.repeats))
            console.print(str(found[problem]))
    if options.quick:
        return
    kept = [row for row in measured.rows() if row.device != options.device or row.dtype not in options.dtypes]
    environments = json.loads(TABLE.read_text("utf8"))["environments"]
    environments[options.device] = record.environment()
    lines = ",\n".join(json.dumps(row.to_dict()) for row in (*kept, *found.values()))
    TABLE.write_text(f'{{"environments": {json.dumps(environments)},\n"rows": [\n{lines}\n]}}\n', "utf8")
    console.print(f"{len(found)} rows written to {TABLE.name}")


def _calls(dtypes: list[str]) -> Iterator[tuple[str, int, int, lf.Pattern, bool]]:
    """Training and prefill; then decoding, which needs no backward."""
    windows = [pattern for reach in WINDOWS for pattern in (lf.Window(reach, reach), lf.Window(reach, 0))]
    patterns = [*windows, lf.Window(None, None), lf.Causal()]
    for dtype, keys, pattern, backward in itertools.product(dtypes, LENGTHS, patterns, (False, True)):
        yield dtype, keys, keys, pattern, backward
    for dtype, keys, pattern in itertools.product(dtypes, CACHED, patterns):
        if not pattern.looks_ahead:
            yield dtype, 1, keys, pattern, False


def _runs(
    device: torch.device, dtype: str, queries: int, keys: int, pattern: lf.Pattern, backward: bool
) -> tuple[Problem, dict[str, Callable[[], Tensor]]]:
    """One call, and a run of it by each backend that can."""
    generator = torch.Generator().manual_seed(0)

    def draw(length: int) -> Tensor:
        x = torch.randn(1, length, HEADS, HEAD_DIM, generator=generator)
        return x.to(device, DTYPES[dtype]).transpose(1, 2).requires_grad_(backward)

    q, k, v = draw(queries), draw(keys), draw(keys)
    selection = lf.explain(q, k, v, pattern)
    able = [verdict.backend for verdict in selection.verdicts if not verdict.reasons]
    return selection.problem, {name: _run(q, k, v, pattern, name, backward) for name in able}


def _run(
    q: Tensor, k: Tensor, v: Tensor, pattern: lf.Pattern, name: str, backward: bool
) -> Callable[[], Tensor]:
    def forward() -> Tensor:
        return lf.attention(q, k, v, pattern, backend=name)

    def both() -> Tensor:
        return torch.cat([x.flatten() for x in torch.autograd.grad(forward().sum(), (q, k, v))])

    return both if backward else forward


def _check_equal(runs: dict[str, Callable[[], Tensor]]) -> None:
    first, *others = (run().detach().float() for run in runs.values())
    for other in others:
        if not (other - first).abs().max() <= 3e-2 * first.abs().max():
            raise SystemExit(f"{list(runs)}: results differ; nothing is written")


def _row(problem: Problem, device: torch.device, timings: dict[str, Timing]) -> measured.MeasuredCall:
    times = {name: float(f"{timing.median * 1e3:.3g}") for name, timing in timings.items()}
    return measured.MeasuredCall(
        device.type,
        problem.dtype,
        Feature.BACKWARD in problem.features,
        problem.queries,
        problem.keys,
        problem.window,
        problem.coverage,
        tuple(sorted(times.items(), key=lambda item: item[1])),
    )


if __name__ == "__main__":
    main()
