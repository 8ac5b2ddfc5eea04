"""Time and memory of functions, measured so that ratios can be believed.

Functions that are compared run in turn, round after round, in one process: what disturbs the machine
disturbs all of them. Times are medians with the 20th and 80th percentile; memory is read from the
allocator's own record, so it is exact and the same in every run.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from torch.autograd.profiler import profile
from torch.utils.benchmark import timer  # waits for the accelerator, then reads the clock

from lf_backend.errors import LFError

Function = Callable[[], object]
QUIET = 0.9  # of a processor, which a thread gets where nothing else wants it
CROWDED = 1.25  # threads that want to run, for each processor


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: the median and the 20th and 80th percentile over all repeats.

    Attributes:
        drift: share by which the medians of the first and the second half of the repeats differ.
    """

    median: float
    p20: float
    p80: float
    drift: float


def interleaved(
    functions: Mapping[str, Function], repeats: int = 10, warmup: int = 2, enough: float = math.inf
) -> dict[str, Timing]:
    """Time functions round robin; work left on an accelerator is waited for.

    Args:
        functions: name -> function without arguments.
        repeats: timed rounds, at least 1.
        warmup: rounds before, not timed.
        enough: seconds after which no further round begins.

    Raises:
        LFError: fewer than one repeat, or a negative warm-up.
    """
    if repeats < 1 or warmup < 0:
        raise LFError(f"repeats >= 1 and warmup >= 0 wanted, got {repeats} and {warmup}")
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    begin = timer()
    for step in range(warmup + repeats):
        if step > warmup and timer() - begin > enough:
            break
        for name, function in functions.items():
            start = timer()
            function()
            if step >= warmup:
                seconds[name].append(timer() - start)
    return {name: _timing(values) for name, values in seconds.items()}


def _timing(seconds: list[float]) -> Timing:
    half = len(seconds) // 2
    first, second = (median(part) for part in (seconds[:half] or seconds, seconds[half:]))
    quantiles = torch.tensor([0.2, 0.8], dtype=torch.float64)
    low, high = torch.tensor(seconds, dtype=torch.float64).quantile(quantiles).tolist()
    return Timing(median(seconds), low, high, abs(first - second) / max(min(first, second), 1e-9))


def machine_load(seconds: float = 0.2) -> str:
    """Say in words how busy the machine is: the share of a processor that this thread gets, and the load.

    It is busy if something else wants this thread's processor, or if more wants to run than it has processors
    and a quarter, of which the work of this process is a part.

    Args:
        seconds: how long to look, computing all the time.
    """
    start, own = time.perf_counter(), time.thread_time()
    while time.perf_counter() - start < seconds:
        pass
    share = (time.thread_time() - own) / (time.perf_counter() - start)
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    word = "quiet" if share > QUIET and (load or 0) <= CROWDED * usable else "busy"
    known = "" if load is None else f"load {load:.1f} on "
    return f"{word}: {known}{usable} processors, of which a thread gets {share:.0%} of one"


def peak_bytes(function: Function, device: torch.device | str = "cpu") -> int:
    """The most bytes held at any moment of one call beyond those held before it, its result included.

    Counts what torch's allocator hands out. Scratch memory that a math library allocates on its own is
    not seen.

    Args:
        device: whose memory, "cpu" or "cuda".

    Raises:
        LFError: a device whose allocator keeps no record.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return _peak_on_cuda(function, device)
    if device.type == "cpu":
        return _peak_on_cpu(function)
    raise LFError(f"device: cpu or cuda wanted, got {device}")


def resident_bytes(function: Function) -> int | None:
    """The most bytes of this process that are in memory at any moment of one call beyond those before it.

    Counts everything, scratch of libraries too, in pages; memory that was used before and kept for use again
    is not counted. None where the system does not say: only Linux does.
    """
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is held
        before = _status("VmRSS")
        kept = function()
        peak = _status("VmHWM")
    except OSError:
        return None
    del kept
    return max(peak - before, 0)


def _status(name: str) -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) << 10


def _peak_on_cuda(function: Function, device: torch.device) -> int:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    function()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _peak_on_cpu(function: Function) -> int:
    """The largest partial sum of the allocator's events, which are positive or negative sizes."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else the profiler writes its own start to stderr
    # Not torch.profiler, which builds a Python object for every event, ten times the work that is measured.
    with profile(profile_memory=True) as record:
        kept = function()
    results = record.kineto_results
    assert results is not None
    del kept  # held until here, so that its release is not part of the record
    held = peak = 0
    for event in sorted(results.events(), key=lambda event: event.start_ns()):
        if event.name() != "[memory]" or event.device_type().name != "CPU":
            continue
        held += event.nbytes()
        peak = max(peak, held)
    return peak
