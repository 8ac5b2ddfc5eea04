"""The compiled library: where it is, whether it fits, and which of its instruction sets this CPU runs.

It has a plain C interface and is called by ctypes, which lets go of the interpreter's lock. So building it
takes neither Python nor PyTorch, and one library serves all versions of both.
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from lf_backend.backends.native.arguments import Packed

VERSION = 4  # of the interface, as in src/call.h
PATH = Path(__file__).with_name("lf_native.so")

Pass = Callable[[Packed], None]


@dataclass(frozen=True)
class Missing:
    """Why there is no library."""

    reason: str


@dataclass(frozen=True, eq=False)
class Library:
    """The passes for one instruction set.

    Attributes:
        name: of the instruction set.
        forward, backward: run a call; MemoryError if there is no memory for it.
    """

    name: str
    forward: Pass
    backward: Pass


@cache
def found() -> Library | Missing:
    """The library of this installation, for the best instruction set of this CPU."""
    return load(PATH)


def load(path: Path, only: str | None = None) -> Library | Missing:
    """A library from a file; `only` asks for one instruction set by name, for tests."""
    if not path.exists():
        return Missing(
            "its compiled library is missing: install a C++ compiler (g++ or clang++) and lf-backend again"
        )
    try:
        binary = ctypes.CDLL(str(path))
        binary.lf_native_version.restype = ctypes.c_int64
        version = binary.lf_native_version()
    except (OSError, AttributeError) as error:
        return Missing(f"its compiled library does not load: {' '.join(str(error).split())}")
    if version != VERSION:
        return Missing(
            f"compiled library of version {VERSION} wanted, {path.name} has {version}: install again"
        )
    sets = instruction_sets(binary)
    for index, (name, runs) in enumerate(sets):
        if runs and only in (None, name):
            return Library(
                name, _pass(binary.lf_native_forward, index), _pass(binary.lf_native_backward, index)
            )
    return Missing(f"{_wanted(sets, only)} wanted, this CPU ({platform.machine()}) has less")


def instruction_sets(binary: ctypes.CDLL) -> list[tuple[str, bool]]:
    """Names of all that the library was compiled for, best first, and whether this CPU runs them."""
    binary.lf_native_name.restype = ctypes.c_char_p
    binary.lf_native_name.argtypes = binary.lf_native_runs.argtypes = (ctypes.c_int64,)
    sets: list[tuple[str, bool]] = []
    while (name := binary.lf_native_name(len(sets))) is not None:
        sets.append((name.decode(), bool(binary.lf_native_runs(len(sets)))))
    return sets


def _wanted(sets: list[tuple[str, bool]], only: str | None) -> str:
    names = [name for name, _ in sets if only in (None, name)]
    return f"a CPU with {' or '.join(reversed(names))}" if names else "x86-64 or aarch64"


def _pass(function: ctypes._NamedFuncPointer, index: int) -> Pass:
    function.argtypes = (ctypes.c_int64, ctypes.c_char_p)
    function.restype = ctypes.c_int

    def run(call: Packed) -> None:
        if function(index, call.data):
            raise MemoryError("native: no memory for the copies and sums of this call")

    return run
