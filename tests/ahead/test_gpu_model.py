"""The model of a processor, on listings whose time is known by hand."""

from __future__ import annotations

import pytest

from benchmarks.gpu_model import (
    BYTES_PER_CYCLE,
    L2_LATENCY,
    TENSOR_LATENCY,
    Simulation,
    step_of,
    tensor_cycles,
    tiles_met,
    trace,
)
from lf_backend.backends.triton.assembly import Code, Instruction, Loop
from lf_backend.pattern.bands import Band


def _control(stall: int = 1, sets: int = 7, reads: int = 7, waits: tuple[int, ...] = ()) -> int:
    return stall | sets << 5 | reads << 8 | sum(1 << 11 + board for board in waits)


def _cycles(*instructions: Instruction, warps: int = 1, programs: int = 1, together: int = 1) -> float:
    steps = [step_of(one, 90) for one in instructions]
    order = [(at, False) for at in range(len(steps))]
    return Simulation(steps, order, warps).run(programs, together)


ADD = Instruction("FADD", "R0, R0, R1", control=_control(stall=4))


def test_stalls_are_hidden_by_other_warps() -> None:
    """Ten additions that wait four cycles for each other; four warps take turns."""
    assert _cycles(*[ADD] * 10) == 37
    assert 37 <= _cycles(*[ADD] * 10, warps=4) <= 41
    assert _cycles(*[ADD] * 10, warps=8) >= 80


def test_a_scoreboard_is_waited_for() -> None:
    load = Instruction("LDS", "R2, [R3]", control=_control(sets=0))
    use = Instruction("FADD", "R0, R0, R2", control=_control(waits=(0,)))
    assert _cycles(load, use) == 31
    assert _cycles(load, ADD, ADD, ADD, use) == 31


def test_a_group_of_copies_arrives_after_its_bytes() -> None:
    copy = Instruction("LDGSTS.E.BYPASS.128", "[R2], [R4.64]", control=_control())
    commit = Instruction("LDGDEPBAR", "", control=_control())
    wait = Instruction("DEPBAR.LE", "SB0, 0x0", control=_control())
    found = _cycles(*[copy] * 8, commit, wait)
    assert found == pytest.approx(8 * 2048 / BYTES_PER_CYCLE + L2_LATENCY, rel=0.02)


def test_products_of_a_warp_group() -> None:
    """64 x 128 x 16 in bfloat16: 1,024 multiply-adds a cycle on each sub-partition's share."""
    registers = Instruction("HGMMA.64x128x16.F32.BF16", "R24, R4, gdesc[UR8], R24")
    shared = Instruction("HGMMA.64x128x16.F32.BF16", "R24, gdesc[UR8], R24, !UPT, gsb0")
    assert tensor_cycles(registers, 90) == tensor_cycles(shared, 90) == 64
    assert tensor_cycles(Instruction("HMMA.16816.F32.BF16", "R4, R8, R10, R4"), 80) == 8


def test_no_kernel_is_faster_than_the_tensor_unit() -> None:
    product = Instruction("HMMA.16816.F32.BF16", "R4, R8, R10, R4", control=_control())
    steps = [step_of(product, 80)] * 100
    assert Simulation(steps, [(at, False) for at in range(100)], 4).run(1, 1) >= 100 * 4 * 8 - 8


def test_a_trace_repeats_loops_over_tiles_alone() -> None:
    names = ("MOV", "FFMA", "BRA", "FFMA", "BRA", "FFMA", "BRA", "EXIT")
    code = Code(tuple(Instruction(name, "") for name in names), (Loop(1, 2), Loop(3, 4), Loop(5, 6)))
    found = trace(code, (3, 1), stages=2)
    assert [at for at, _ in found] == [0, 1, 2, 1, 2, 1, 2, 3, 4, 7], "the third, over columns, has no round"
    assert [last for _, last in found][1:7] == [False, False, False, False, True, True]


def test_a_trace_goes_around_a_loop_that_does_not_run() -> None:
    """With what fills its pipeline; but not around one that runs."""
    names = ("BRA", "LDGSTS", "FFMA", "BRA", "BRA", "FFMA", "BRA", "EXIT")
    code = Code(tuple(Instruction(name, "") for name in names), (Loop(2, 3), Loop(5, 6)), ((0, 4), (4, 7)))
    assert [at for at, _ in trace(code, (1, 0), stages=2)] == [0, 1, 2, 3, 4, 7]
    assert [at for at, _ in trace(code, (0, 1), stages=2)] == [0, 4, 5, 6, 7]


def test_an_end_before_the_loops_is_that_of_programs_without_work() -> None:
    names = ("EXIT", "FFMA", "BRA", "EXIT", "NOP")
    code = Code(tuple(Instruction(name, "") for name in names), (Loop(1, 2),))
    assert [at for at, _ in trace(code, (2,), stages=1)] == [0, 1, 2, 1, 2, 3]


def test_products_in_tensor_memory_are_waited_for() -> None:
    """Two of them of 100 cycles, then their sum is read, 32 columns of it."""
    product = Instruction("UTCHMMA", "gdesc[UR4], gdesc[UR6], tmem[UR27]", control=_control())
    commit = Instruction("UTCBAR", "[UR53], URZ", control=_control())
    wait = Instruction("SYNCS.PHASECHK.TRANS64.TRYWAIT", "P0, [UR15], R2", control=_control())
    read = Instruction("LDTM.x32", "R4, tmem[UR51]", control=_control())
    steps = [step_of(one, 100, share=100.0) for one in (product, product, commit, wait, read, read)]
    found = Simulation(steps, [(at, False) for at in range(len(steps))], 1).run(1, 1)
    assert found == 200 + TENSOR_LATENCY + 1 + 32 + 1


@pytest.mark.parametrize(("own", "other"), [(64, 64), (128, 64), (64, 32), (32, 128)])
@pytest.mark.parametrize(("left", "right"), [(256, 256), (1023, 0), (3, 5), (0, 0)])
def test_tiles_are_those_of_a_window(own: int, other: int, left: int, right: int) -> None:
    inside, edges = tiles_met(own, other, left, right)
    first = 5000
    begin, end = Band(left, right, (1,)).key_range(first, first + own, 10_000)
    assert inside + edges == -(-(end - begin) // other)
    every = [
        at
        for at in range(begin, end, other)
        if at >= first + own - 1 - left and at + other <= first + right + 1
    ]
    assert inside == len(every)
