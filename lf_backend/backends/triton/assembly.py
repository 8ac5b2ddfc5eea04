"""Compiled kernels as their device runs them: SASS of NVIDIA or GCN of AMD, its loops, and what is in these.

A loop is what lies between a branch backwards and its target: compilers lay loops out as one piece. What they
lay out behind the end of a kernel, as waits for products on sm_100, returns by a branch that ends no loop.
Loops over tiles are those with products that hold no other such loop; waits for copies are loops in them.

The words of SASS and its control codes: Jia et al., "Dissecting the NVIDIA Volta GPU architecture via
microbenchmarking" (2018), chapter 2. They are the same from Volta on.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import triton

SASS = re.compile(
    r"/\*[0-9a-f]{4,}\*/\s+(?:@(?P<guard>!?U?P[T0-9]+)\s+)?(?P<name>[A-Z][\w.]*)\s*(?P<operands>[^;]*?)\s*;"
    r"\s+/\* 0x[0-9a-f]{16} \*/\s+/\* 0x(?P<control>[0-9a-f]{16}) \*/"
)
GCN = re.compile(
    r"^\t(?P<name>(?:s|v|ds|buffer|global|flat|scratch)_\w+)\s*(?P<operands>[^;\n]*)", re.MULTILINE
)
_LABEL = re.compile(r"^\s*(?P<label>\.L\w+):", re.MULTILINE)
_BRANCH = re.compile(r"BRA|s_c?branch")
_PRODUCT = re.compile(r"H\w*MMA|UTC\w*MMA|FFMA|v_mfma|v_dot|v_(pk_)?fma")
_LOCAL = re.compile(r"(LDL|STL)\b|scratch_")


class Instruction(NamedTuple):
    """One instruction.

    Attributes:
        name: with its modifiers, as in "IMAD.MOV.U32".
        operands: as they are written.
        guard: the predicate under which it runs, or "".
        control: bits 41 up of an NVIDIA instruction's second word: when it may issue; 0 for AMD.
    """

    name: str
    operands: str
    guard: str = ""
    control: int = 0

    @property
    def local(self) -> bool:
        """Whether it loads or stores memory of its thread alone: what registers had no room for."""
        return _LOCAL.match(self.name) is not None


class Loop(NamedTuple):
    """The instructions [first, last] of a loop; `last` branches to `first`."""

    first: int
    last: int

    def holds(self, other: Loop) -> bool:
        return self != other and self.first <= other.first and other.last <= self.last


class Code(NamedTuple):
    """A kernel's instructions in order, its loops, and its branches forwards with their targets."""

    instructions: tuple[Instruction, ...]
    loops: tuple[Loop, ...]
    skips: tuple[tuple[int, int], ...] = ()

    @property
    def tile_loops(self) -> list[Loop]:
        """Loops over tiles, in order."""
        multiply = [loop for loop in self.loops if any(map(_multiplies, self.inside(loop)))]
        return sorted(loop for loop in multiply if not any(loop.holds(other) for other in multiply))

    @property
    def local_in_loops(self) -> int:
        """Loads and stores of local memory that are inside a loop over tiles."""
        return sum(one.local for loop in self.tile_loops for one in self.inside(loop))

    def inside(self, loop: Loop) -> tuple[Instruction, ...]:
        """The instructions of a loop."""
        return self.instructions[loop.first : loop.last + 1]


def _multiplies(one: Instruction) -> bool:
    return _PRODUCT.match(one.name) is not None


def code_of(assembly: Mapping[str, Any]) -> Code:
    """Read a kernel as Triton has compiled it (`asm`), for NVIDIA or AMD."""
    if "amdgcn" in assembly:
        return parsed(assembly["amdgcn"], GCN)
    return parsed(disassembled(assembly["cubin"]), SASS)


def disassembled(cubin: bytes) -> str:
    """SASS, each instruction with the two words that encode it."""
    return nvidia_tool("nvdisasm", cubin, "-c", "-hex")


def nvidia_tool(name: str, cubin: bytes, *options: str) -> str:
    """Return what one of the tools in Triton's wheel says of a binary."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        return subprocess.run(
            [str(tool), *options, str(path)], capture_output=True, text=True, check=True
        ).stdout


def parsed(text: str, instruction: re.Pattern[str]) -> Code:
    """Instructions and loops of a listing."""
    found: list[Instruction] = []
    labels: dict[str, int] = {}
    for match in sorted([*instruction.finditer(text), *_LABEL.finditer(text)], key=re.Match.start):
        parts = match.groupdict()
        if label := parts.pop("label", None):
            labels[label] = len(found)
        else:
            control = int(parts.pop("control", None) or "0", 16) >> 41
            found.append(
                Instruction(parts["name"], parts["operands"].strip(), parts.get("guard") or "", control)
            )
    branches = list(_branches(found, labels))
    skips = tuple((at, target) for at, target in branches if target > at)
    return Code(tuple(found), tuple(_loops(found, branches)), skips)


def _branches(instructions: list[Instruction], labels: Mapping[str, int]) -> Iterator[tuple[int, int]]:
    for at, one in enumerate(instructions):
        if _BRANCH.match(one.name) and (target := re.search(r"\.L\w+", one.operands)):
            yield at, labels.get(target[0], at)


def _loops(instructions: list[Instruction], branches: list[tuple[int, int]]) -> list[Loop]:
    found = []
    end = max((at for at, one in enumerate(instructions) if one.name == "EXIT"), default=len(instructions))
    for at, target in branches:
        one = instructions[at]
        returns = at > end and not one.guard and one.operands.startswith("`")
        if target < at and not returns:  # one that branches to itself ends a kernel
            found.append(Loop(target, at))
    return found
