"""What the library is made of, and what is said where it is missing or does not fit."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import lf_backend as lf
from lf_backend.backends.native import library
from lf_backend.dispatch import registry
from lf_backend.testing import CASES, check

SETS = library.instruction_sets(ctypes.CDLL(str(library.PATH))) if library.PATH.exists() else []


@pytest.fixture
def answer() -> Iterator[None]:
    library.found.cache_clear()
    yield
    library.found.cache_clear()
    registry._bump()


def why_not(monkeypatch: pytest.MonkeyPatch, path: Path) -> str:
    monkeypatch.setattr(library, "PATH", path)
    library.found.cache_clear()
    registry._bump()
    q = torch.zeros(1, 1, 4, 8)
    selection = lf.explain(q, q, q, lf.Window(1, 1))
    assert selection.chosen != "native"
    with pytest.raises(lf.UnsupportedError, match="native"):
        lf.attention(q, q, q, lf.Window(1, 1), backend="native")
    (verdict,) = (verdict for verdict in selection.verdicts if verdict.backend == "native")
    return "; ".join(verdict.reasons)


@pytest.mark.usefixtures("answer")
def test_no_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert "install a C++ compiler" in why_not(monkeypatch, tmp_path / "none.so")


@pytest.mark.usefixtures("answer")
def test_no_library_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "text.so"
    path.write_text("not a library")
    assert "does not load" in why_not(monkeypatch, path)


@pytest.mark.usefixtures("answer", "compiled")
def test_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "VERSION", library.VERSION + 1)
    assert re.search(r"version \d+ wanted, .* has \d+", why_not(monkeypatch, library.PATH))


@pytest.mark.usefixtures("answer", "compiled")
def test_a_lesser_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "instruction_sets", lambda binary: [("avx512", False), ("avx2", False)])
    assert "a CPU with avx2 or avx512 wanted" in why_not(monkeypatch, library.PATH)


@pytest.mark.parametrize(
    "case", ["several blocks", "global tokens per example", "padding, dilation", "dropout"]
)
@pytest.mark.parametrize("name", [name for name, _ in SETS])
def test_every_instruction_set(name: str, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    forced = library.load(library.PATH, only=name)
    if isinstance(forced, library.Missing):
        pytest.skip(forced.reason)
    monkeypatch.setattr(library, "found", lambda: forced)
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        check(CASES[case], "native", dtype)


@pytest.mark.skipif(shutil.which("objdump") is None, reason="objdump is missing")
@pytest.mark.skipif(sys.platform != "linux", reason="reads ELF")
@pytest.mark.parametrize("name", [name for name, _ in SETS])
def test_no_instruction_leaks(name: str) -> None:
    """Only functions in the namespaces of AVX-512 and AMX have its registers (512 bits, masks, the upper
    sixteen), only those of AMX have tiles, and AVX-512 alone has no arithmetic of bfloat16."""
    command = ["objdump", "-d", "--no-show-raw-insn", str(library.PATH)]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    functions: dict[str, str] = {}
    for block in text.split("\n\n"):
        if header := re.match(r"[0-9a-f]+ <(.+)>:", block.lstrip("\n")):
            functions[header[1]] = block
    allowed = {
        r"%zmm|%k[0-7]\b|%[xy]mm(1[6-9]|2\d|3[01])\b": {"avx512", "avx512bf16", "amx"},
        r"\bvdpbf16ps|\bvcvtne2?ps": {"avx512bf16", "amx"},
        r"%tmm|\bldtilecfg|\btilerelease": {"amx"},
    }
    own = {symbol for symbol in functions if mangled(name) in symbol}
    assert own, "the library keeps its symbols"
    for registers, sets in allowed.items():
        having = using(functions, registers)
        assert bool(own & having) == (name in sets), "this test can see them"
        assert not {symbol for symbol in having if not any(mangled(other) in symbol for other in sets)}


def mangled(name: str) -> str:
    """The namespace of an instruction set, as it is in the names of symbols."""
    return f"{len(name)}{name}"


def using(functions: dict[str, str], registers: str) -> set[str]:
    """Names of the functions that use some registers or instructions."""
    return {name for name, code in functions.items() if re.search(registers, code)}
