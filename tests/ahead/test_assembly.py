"""Loops, and local memory in them, as listings have them."""

from __future__ import annotations

from lf_backend.backends.triton.assembly import GCN, SASS, Loop, parsed


def _sass(*lines: str) -> str:
    """A listing with encodings as nvdisasm writes them; the control word of a line is its number."""
    listing = []
    for at, line in enumerate(lines):
        if line.endswith(":"):
            listing.append(line)
        else:
            first = f"        /*{16 * at:04x}*/    {line} ;    /* 0x{at:016x} */"
            listing += [first, f"    /* 0x{at << 41:016x} */"]
    return "\n".join(listing)


def test_a_loop_over_tiles_and_the_one_around_it() -> None:
    """Local memory in the outer one, over heads of a group, is not paid for with every tile."""
    code = parsed(
        _sass(
            "MOV R1, c[0x0][0x28]",
            ".L_x_0:",
            "STL [R1], R2",
            ".L_x_1:",
            "@!P0 HMMA.16816.F32.BF16 R4, R8, R10, R4",
            ".L_x_3:",
            "SYNCS.PHASECHK.TRANS64.TRYWAIT P1, [R2], R3",
            "@!P1 BRA `(.L_x_3)",
            "LDL.LU R3, [R1+0x4]",
            "@P1 BRA `(.L_x_1)",
            "LDL.LU R2, [R1]",
            "@P2 BRA `(.L_x_0)",
            "EXIT",
            ".L_x_2:",
            "BRA `(.L_x_2)",
        ),
        SASS,
    )
    product = code.instructions[2]
    assert product == ("HMMA.16816.F32.BF16", "R4, R8, R10, R4", "!P0", 4)
    assert code.loops == (Loop(3, 4), Loop(2, 6), Loop(1, 8)), "a branch to itself ends a kernel"
    assert code.tile_loops == [Loop(2, 6)], "with the wait for a copy in it"
    assert code.local_in_loops == 1


def test_a_loop_without_local_memory() -> None:
    listing = _sass("STL.128 [R1], R4", ".L_x_0:", "FFMA R0, R0, R0, R0", "@P0 BRA `(.L_x_0)", "LDL R4, [R1]")
    assert parsed(listing, SASS).local_in_loops == 0


def test_what_lies_behind_the_end_returns() -> None:
    """Waits for products of sm_100: their loops are theirs, and the way back is none."""
    code = parsed(
        _sass(
            ".L_x_0:",
            "UTCHMMA gdesc[UR4], gdesc[UR6], tmem[UR27], tmem[UR22], idesc[UR23], !UPT",
            "SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR15], R2",
            "@!P0 BRA `(.L_x_2)",
            ".L_x_1:",
            "BRA.U UP0, `(.L_x_0)",
            "EXIT",
            ".L_x_2:",
            "SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR15], R2",
            "@!P0 BRA `(.L_x_2)",
            "BRA `(.L_x_1)",
        ),
        SASS,
    )
    assert code.loops == (Loop(0, 3), Loop(5, 6)) and code.tile_loops == [Loop(0, 3)]
    assert code.skips == ((2, 5),)


def test_loops_of_amd() -> None:
    code = parsed(
        "kernel:\n"
        "\tscratch_store_dword off, v1, off ; 4-byte Folded Spill\n"
        ".LBB0_1:                                ; =>This Inner Loop Header: Depth=1\n"
        "\tscratch_load_dwordx2 v[2:3], off, off offset:8\n"
        "\tv_mfma_f32_32x32x8_bf16_1k a[0:15], v[2:3], v[4:5], a[0:15]\n"
        "\ts_cbranch_scc1 .LBB0_1\n"
        "\ts_branch .LBB0_2\n"
        ".LBB0_2:\n"
        "\ts_endpgm\n",
        GCN,
    )
    assert code.loops == (Loop(1, 3),) and code.local_in_loops == 1
