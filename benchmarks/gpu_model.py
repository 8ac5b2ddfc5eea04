"""A model of how fast a compiled kernel runs on an NVIDIA GPU that is not here. A model: nothing is measured.

    python -m benchmarks.gpu_model 90    # the rows for bfloat16 that size calls on sm_90, with their loops

An in-order simulation of one sub-partition of a processor, from SASS. An instruction issues when its warp's
stall count has passed, the scoreboards that it waits for are clear (both are in its control word), and its
pipe is free; of the warps that can, the one that issued last goes first, then the oldest. All four
sub-partitions are taken to behave alike, caches to hold nothing but what L2 delivers at a steady rate, and
branches not to be taken but for the loops with products, which run as often as a window in the middle of a
sequence has tiles, and for those around loops that do not run.

On sm_100 `tl.dot` becomes tcgen05 products, which one warp issues for all, and whose sums are in tensor
memory. Here each warp issues its share of them; they take half the rate for blocks of fewer than 128 rows,
and a wait for a barrier waits for all that are under way. A load or store of tensor memory moves a column of
a warp's 32 lanes in a cycle. Nothing of this was held against a device, or a published figure.

Calibration, of an earlier simulation by the same rules: plain FlashAttention-2 kernels in Triton, causal, D
128, came out at 559 TFLOP/s on an H100 where 395 to 476 are published. So multiply by 0.7 to 0.85, trust
rankings more than figures, and take 10 % for a tie. The first measurement on a GPU is to calibrate this one.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import product
from typing import NamedTuple

from lf_backend.backends.triton.ahead import (
    DTYPES,
    SHARED_BYTES,
    TENSOR_COLUMNS,
    Compiled,
    Target,
    compiled,
    example,
)
from lf_backend.backends.triton.assembly import Code, Instruction, Loop
from lf_backend.backends.triton.plan import best_pack
from lf_backend.backends.triton.tuning import TilesRow, Wanted, row_for
from lf_backend.pattern.terms import Window

WINDOWS = ((256, 256), (1023, 0))  # left and right
NARROW = ((127, 0), (128, 128))  # those of rows for windows up to NARROW_REACH
NARROW_REACH = 256
GROUP = 4  # heads that share keys, where the model is asked for grouped heads as well
REGISTERS = 65536  # of one processor
WARPS = 64  # that it holds at most
LAUNCH = 200  # cycles from the end of a program to the first instruction of the next
L2_LATENCY, MEMORY_LATENCY = 600, 900
BYTES_PER_CYCLE = 40.0  # that one processor gets of L2
TENSOR_LATENCY = 60  # from the last product to its sum
BARRIER_LATENCY, FENCE_LATENCY = 20, 24
CLOCK = {80: 1.41e9, 86: 1.70e9, 89: 2.52e9, 90: 1.83e9, 100: 1.85e9, 120: 2.41e9}  # with all processors busy
PROCESSORS = {80: 108, 86: 82, 89: 128, 90: 132, 100: 148, 120: 170}
# Cycles of a sub-partition for 16 x 8 x 16 products into float32, from the makers' peaks; on sm_100, where
# these products are not the fast ones, a guess.
HMMA_CYCLES = {80: 8, 86: 32, 89: 32, 90: 16, 100: 32, 120: 32}
TCGEN05_RATE = 1024  # multiply-adds a cycle of a sub-partition's share, with 128 rows

# Cycles for which an instruction of a warp keeps its pipe.
PIPES = {
    "FMA": 1, "WIDE": 2, "ALU": 2, "UNIFORM": 2, "XU": 8, "MIO": 4, "OTHER": 4, "TENSOR": 2, "TMEM": 32,
    "CONTROL": 0,
}  # fmt: skip
_PIPE_OF = {
    "FMA": "FFMA FMUL FADD FFMA2 HFMA2 HADD2 HMUL2",
    "WIDE": "IMAD",
    "XU": "MUFU F2I I2F F2F",
    "MIO": "LDGSTS LDG STG LDS STS LDSM STSM SHFL LDL STL",
    "OTHER": "LDC S2R S2UR R2UR",
    "TENSOR": "HMMA HGMMA UTCHMMA",
    "TMEM": "LDTM STTM",
    "CONTROL": "BAR BRA EXIT NOP WARPGROUP DEPBAR LDGDEPBAR MEMBAR FENCE BSSY BSYNC WARPSYNC ERRBAR CCTL "
    "SYNCS UTCBAR",
}
PIPE = {name: pipe for pipe, names in _PIPE_OF.items() for name in names.split()}
LATENCY = {  # cycles from issue to a result that a scoreboard guards
    "MUFU": 24, "F2I": 24, "I2F": 24, "F2F": 24, "SHFL": 24, "LDS": 30, "STS": 20, "LDSM": 33, "S2R": 30,
    "S2UR": 30, "LDC": 35, "ULDC": 20, "R2UR": 12, "LDG": MEMORY_LATENCY, "CS2R": 16, "BAR": 20,
    "LDTM": 60, "STTM": 40,
}  # fmt: skip
DEFAULT_LATENCY = 20
SCOREBOARDS = 6


class Step(NamedTuple):
    """An instruction as the simulation needs it.

    Attributes:
        kind: the name before its modifiers.
        pipe: where it runs; None for one that its guard turns off.
        busy: cycles for which it keeps the pipe.
        stall: cycles until its warp may issue again.
        sets, reads: scoreboards that its result, and its operands, clear; 7 for none.
        waits: scoreboards that must be clear.
        latency: cycles until `sets` clears.
        cycles: of the tensor unit.
        copied: bytes from L2.
        left: of a wait for asynchronous products or copies, how many may be left; None for others.
        commits: ends a group of asynchronous products.
    """

    kind: str
    pipe: str | None
    busy: int
    stall: int
    sets: int
    reads: int
    waits: tuple[int, ...]
    latency: int
    cycles: float
    copied: int
    left: int | None
    commits: bool


def step_of(one: Instruction, arch: int, share: float = 0.0) -> Step:
    """Decode an instruction and its control word.

    Args:
        share: cycles of a tcgen05 product, which does not say its shape.
    """
    kind, control = one.name.split(".")[0], one.control
    pipe = PIPE.get(kind, "UNIFORM" if kind.startswith("U") else "ALU")
    if kind == "IMAD" and re.search(r"\.(MOV|IADD|SHL)", one.name):
        pipe = "FMA"
    left = None
    of_products, of_copies = (
        one.name.startswith(("WARPGROUP.DEPBAR", "SYNCS.PHASECHK")),
        kind == "DEPBAR" and "SB0" in one.operands,
    )
    if kind == "SYNCS" and of_products:
        left = 0
    elif of_products or of_copies:
        left = int(re.findall(r"0x([0-9a-f]+)", one.operands)[-1], 16)
    columns = re.search(r"\.x(\d+)", one.name)
    return Step(
        kind,
        None if one.guard == "!PT" else pipe,
        int(columns[1]) if columns and pipe == "TMEM" else PIPES[pipe],
        control & 15,
        control >> 5 & 7,
        control >> 8 & 7,
        tuple(board for board in range(SCOREBOARDS) if control >> 11 + board & 1),
        LATENCY.get(kind, DEFAULT_LATENCY),
        share if kind == "UTCHMMA" else tensor_cycles(one, arch),
        _copied(one),
        left,
        kind == "UTCBAR" or (kind == "HGMMA" and "gsb0" in one.operands),
    )


def tensor_cycles(one: Instruction, arch: int) -> float:
    """Cycles of the tensor unit: of one sub-partition's share of a warp group's product, for HGMMA."""
    if one.name.startswith("HMMA"):
        return float(HMMA_CYCLES[arch])
    if not (found := re.match(r"HGMMA\.(\d+)x(\d+)x(\d+)", one.name)):
        return 0.0
    _, columns, depth = map(int, found.groups())
    slices = depth / 16
    from_registers = re.match(r"R\d+,\s*R\d+", one.operands) is not None
    shared = 32 * columns * slices + (0 if from_registers else 2048 * slices)  # bytes of operands
    return max(columns / 2 * slices, shared / 128)


def _copied(one: Instruction) -> int:
    """Bytes that a warp's copy brings from L2."""
    if not one.name.startswith(("LDGSTS", "LDG.")):
        return 0
    return 32 * (16 if ".128" in one.name else 8 if ".64" in one.name else 4)


def counted(code: Code, loop: Loop) -> Counter[str]:
    """How many instructions of each pipe are in a loop."""
    inside = code.instructions[loop.first : loop.last + 1]
    return Counter("off" if one.guard == "!PT" else PIPE.get(one.name.split(".")[0], "ALU") for one in inside)


def trace(code: Code, times: tuple[int, ...], stages: int) -> list[tuple[int, bool]]:
    """Instructions as they run, and which are in a loop's last rounds, whose copies are turned off.

    Args:
        times: rounds of each product loop; those beyond have none.
        stages: tiles in flight, the running one included.
    """
    rounds = {loop.first: (loop.last, n) for loop, n in zip(code.tile_loops, times, strict=False)}
    rounds |= {loop.first: (loop.last, 0) for loop in code.tile_loops[len(times) :]}
    skips = {}
    for start, end in code.skips:
        between = [n for first, (_, n) in rounds.items() if start < first < end]
        if between and not any(between):
            skips[start] = end
    found, at = [], 0
    while at < len(code.instructions):
        if at in rounds:
            last, n = rounds[at]
            for turn in range(n):
                found += [(one, turn > n - stages) for one in range(at, last + 1)]
            at = last + 1
            continue
        found.append((at, False))
        if at in skips:
            at = skips[at]
            continue
        one = code.instructions[at]
        if one.name.startswith("EXIT") and not one.guard and at > max(rounds, default=0):
            break  # before the loops it is that of programs without work
        at += 1
    return found


@dataclass
class _Warp:
    """One warp on its way through the trace."""

    born: float
    at: int = 0
    next: float = 0.0
    boards: list[float] = field(default_factory=lambda: [0.0] * SCOREBOARDS)
    products: list[float] = field(default_factory=list)  # when each group of asynchronous products is done
    copies: list[float] = field(default_factory=list)
    arriving: float = 0.0  # the last copy that no group holds yet
    barriers: int = 0


@dataclass
class _Program:
    """The warps of a program in this sub-partition, and who has come to which barrier."""

    warps: list[_Warp]
    arrived: dict[int, dict[int, float]] = field(default_factory=dict)


class Simulation:
    """One sub-partition that runs programs, some at a time.

    Attributes:
        steps: the kernel.
        order: its trace.
        warps: of a program, in this sub-partition.
    """

    def __init__(self, steps: list[Step], order: list[tuple[int, bool]], warps: int) -> None:
        self.steps, self.order, self.warps = steps, order, warps
        self.busy = dict.fromkeys(PIPES, 0.0)
        self.tensor = self.link = self.now = 0.0

    def run(self, programs: int, together: int) -> float:
        """Cycles for a number of programs, `together` at a time."""
        todo = programs - min(together, programs)
        running = [self._started(0.0) for _ in range(min(together, programs))]
        last: _Warp | None = None
        while running:
            waiting = [(self._ready(p, w), w is not last, w.born, p, w) for p in running for w in p.warps]
            soonest = max(self.now, min(ready for ready, *_ in waiting))
            able = [one for one in waiting if one[0] <= soonest]
            _, _, _, program, last = min(able, key=lambda one: one[1:3])
            self.now = soonest
            self._issue(program, last)
            if last.at == len(self.order):
                program.warps.remove(last)
                if not program.warps:
                    running.remove(program)
                    if todo:
                        running.append(self._started(self.now + LAUNCH))
                        todo -= 1
            self.now += 1
        return self.now

    def _started(self, at: float) -> _Program:
        return _Program([_Warp(at + index, next=at + index) for index in range(self.warps)])

    def _ready(self, program: _Program, warp: _Warp) -> float:
        """When a warp's next instruction can issue."""
        one = self.steps[self.order[warp.at][0]]
        ready = max([warp.next, *(warp.boards[board] for board in one.waits)])
        if one.kind == "BAR":
            arrived = program.arrived.setdefault(warp.barriers, {})
            arrived.setdefault(id(warp), ready)
            if len(arrived) < self.warps:
                return float("inf") if len(program.warps) > 1 else ready
            return max(ready, max(arrived.values()) + BARRIER_LATENCY)
        if one.left is not None:
            groups = warp.copies if one.kind == "DEPBAR" else warp.products
            if len(groups) > one.left:
                ready = max(ready, groups[len(groups) - one.left - 1])
        return ready if one.pipe is None else max(ready, self.busy[one.pipe])

    def _issue(self, program: _Program, warp: _Warp) -> None:
        index, is_last = self.order[warp.at]
        one, now = self.steps[index], self.now
        done = now + one.latency
        if one.pipe is not None:
            self.busy[one.pipe] = now + one.busy
            if one.pipe == "WIDE":  # a part of the pipe of multiply-adds
                self.busy["FMA"] = max(self.busy["FMA"], now + 1)
        if one.cycles:
            self.tensor = max(self.tensor, now) + one.cycles
            if one.kind == "HMMA":  # unlike those of warp groups, it holds up what comes after it
                self.busy["TENSOR"] = self.tensor
        if one.commits:
            warp.products.append(self.tensor + TENSOR_LATENCY)
        elif one.copied and not (is_last and one.kind == "LDGSTS"):
            self.link = max(self.link, now) + 4 * one.copied / BYTES_PER_CYCLE  # of four sub-partitions
            if one.kind == "LDGSTS":
                warp.arriving = self.link + L2_LATENCY
            else:
                done = self.link + MEMORY_LATENCY
        elif one.kind == "LDGDEPBAR":
            warp.copies.append(warp.arriving)
        elif one.kind == "BAR":
            warp.barriers += 1
        if one.sets < SCOREBOARDS:
            warp.boards[one.sets] = max(warp.boards[one.sets], done)
        if one.reads < SCOREBOARDS:
            warp.boards[one.reads] = max(warp.boards[one.reads], now + DEFAULT_LATENCY)
        stall = FENCE_LATENCY if one.kind in ("MEMBAR", "FENCE") else max(1, one.stall)
        warp.next = now + stall
        warp.at += 1


class Estimate(NamedTuple):
    """What the model says of a kernel.

    Attributes:
        cycles: of one processor for one program.
        together: programs that a processor holds.
        tflops: of the products of visible pairs, on the whole device.
    """

    cycles: float
    together: int
    tflops: float


PRODUCTS = {"forward": 2, "grad_queries": 3, "grad_keys": 4}  # of each pair, D multiply-adds


def estimate(
    found: Compiled, arch: int, dims: int, window: tuple[int, int], group: int = 1
) -> Estimate | None:
    """Estimate a kernel for a window (left, right) in a long sequence; None if the device cannot hold it.

    Args:
        group: heads that share keys, as the kernel was compiled for.
    """
    kernel, tiles = found.kernel, found.tiles
    together = _together(found, arch)
    if not together:
        return None
    pack = 1 if kernel == "grad_keys" else best_pack(group, tiles.rows, tiles.keys, sum(window))
    own, other = (tiles.keys, tiles.rows) if kernel == "grad_keys" else (tiles.rows // pack, tiles.keys)
    left, right = window[::-1] if kernel == "grad_keys" else window
    warps = max(1, tiles.warps // 4)
    share = _share(found, own * pack, other, dims) / warps
    steps = [step_of(one, arch, share) for one in found.code.instructions]
    order = trace(found.code, tiles_met(own, other, left, right), tiles.stages)
    few, many = (Simulation(steps, order, warps).run(n * together, together) for n in (2, 4))
    cycles = (many - few) / (2 * together)
    flops = 2 * PRODUCTS[kernel] * own * pack * (left + right + 1) * dims
    return Estimate(cycles, together, flops / cycles * CLOCK[arch] * PROCESSORS[arch] / 1e12)


def _share(found: Compiled, own: int, other: int, dims: int) -> float:
    """Cycles of a sub-partition for a tcgen05 product, all of a tile taken for alike; 0 without."""
    for loop in found.code.tile_loops:
        if count := sum(one.name.startswith("UTCHMMA") for one in found.code.inside(loop)):
            rate = TCGEN05_RATE if own >= 128 else TCGEN05_RATE / 2
            return PRODUCTS[found.kernel] * own * other * dims / 4 / count / rate
    return 0.0


def _together(found: Compiled, arch: int) -> int:
    """Programs that a processor holds: by registers, warps, and memory, shared and for products."""
    warps = found.tiles.warps
    rounded = -(-found.registers // 8) * 8
    memory = (SHARED_BYTES[arch] + 1024) // (found.shared + 1024)
    columns = TENSOR_COLUMNS // found.tensor if found.tensor else memory
    return min(REGISTERS // (rounded * 32 * warps), WARPS // warps, memory, columns)


def tiles_met(own: int, other: int, left: int, right: int) -> tuple[int, int]:
    """Tiles of `other` steps that a block of `own` meets: in all its windows, and in some; as in `span`."""
    inner = -(-max(own - 1, 0) // other)
    whole = (left + right + 1) // other
    every = -(-(own + left + right) // other)
    inside = max(0, min(whole, every) - inner)
    return inside, every - inside


def plain(row: TilesRow, arch: int | str, window: tuple[int, int] = WINDOWS[0], group: int = 1) -> Compiled:
    """Compile a row's kernel for a call that has a window and nothing else."""
    call = example(DTYPES[row.bytes], row.dims, 512, False, "cpu", 1024)
    k, v = call.k[:, ::group], call.v[:, ::group]
    call = replace(call, k=k, v=v, columns=None, lowered=Window(*window).lowered)
    (found,) = compiled(call, Target.named(arch, {row.kernel: row.tiles}, row.kernel))
    return found


def windows_of(row: TilesRow) -> tuple[tuple[int, int], ...]:
    """Windows for which the model is asked about a row."""
    return NARROW if row.reach <= NARROW_REACH else WINDOWS


def estimates(row: TilesRow, arch: int, group: int = 1) -> list[Estimate]:
    """Estimate a row's kernel for its windows; none of those that the device cannot hold."""
    each = (
        estimate(plain(row, arch, window, group), arch, row.dims, window, group) for window in windows_of(row)
    )
    return [one for one in each if one is not None]


def modelled(row: TilesRow, window: tuple[int, int]) -> float | None:
    """TFLOP/s that the model gives a row's kernel; None for a device that it does not know."""
    if not isinstance(row.arch, int) or row.arch not in CLOCK:
        return None
    found = estimate(plain(row, row.arch), row.arch, row.dims, window)
    return found and found.tflops


def told(row: TilesRow, found: list[Estimate]) -> str:
    """What the model says of a row for its windows, in words."""
    words = " and ".join(f"{one.tflops:.0f}" for one in found)
    windows = " and ".join(map(str, windows_of(row)))
    return f"modelled, not measured: {words} TFLOP/s for windows {windows}"


def report(arch: int) -> Iterator[str]:
    """A line for every row of bfloat16 that sizes plain calls, with heads of their own and with `GROUP` that
    share keys, and one for each of its loops."""
    for kernel, dims, reach in product(PRODUCTS, (64, 128), (NARROW_REACH, sum(WINDOWS[0]))):
        row = row_for(arch, Wanted(kernel, dims, 2, reach, False))._replace(reach=reach)
        code = plain(row, arch).code
        yield f"{kernel} D {dims} {row.tiles}: {told(row, estimates(row, arch))}; {row.origin}"
        if kernel != "grad_keys":
            yield f"    {GROUP} heads that share keys: {told(row, estimates(row, arch, GROUP))}"
        for loop in code.tile_loops:
            yield f"    {dict(counted(code, loop).most_common())}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("arch", type=int, choices=CLOCK)
    for line in report(parser.parse_args().arch):
        print(line, flush=True)


if __name__ == "__main__":
    main()
