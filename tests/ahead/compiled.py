"""What compiled kernels take, kept for sources that did not change: `python -m tests.ahead.compiled`.

To compile every row takes ten minutes of two cores, and gives the same until a kernel, a row or Triton
changes. So the answers stand in `compiled-VERSION.json`, beside a digest of the sources they are of. A test
compiles what is not there, and one of eight of what is, to see that it still holds.
"""

from __future__ import annotations

import ast
import hashlib
import json
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import triton

from lf_backend.backends.triton import tuning
from lf_backend.backends.triton.ahead import Shipped, built, shipped

LEDGER = Path(__file__).parent / f"compiled-{triton.__version__}.json"


class Used(NamedTuple):
    """Registers of a thread, bytes of its local memory, uses of that in loops, bytes of shared memory."""

    registers: int
    spills: int
    looped: int
    shared: int


def used(kernel: Shipped) -> Used:
    """From the ledger, if it is of these sources and does not want to be tried again."""
    known = kept().get(title(kernel))
    if known is not None and not _again(kernel):
        return known
    found = compiled(kernel)
    assert known in (None, found), f"{LEDGER.name} says {known}, compiled {found}"
    return found


def compiled(kernel: Shipped) -> Used:
    found = built(*kernel)
    assert found.tiles == kernel.row.tiles
    return Used(found.registers, found.spills, found.looped, found.shared)


def title(kernel: Shipped) -> str:
    """A test's name; rows for the installed version of Triton alone are its own."""
    row = kernel.row
    words = [kernel.arch, row.kernel, row.dims, row.bytes, "extras" if kernel.extras else "plain"]
    sizes = row.tiles if row.tiles.registers else row.tiles[:4]
    return "-".join(map(str, [*words, *sizes, *(["own"] if row.version else [])]))


def hardest() -> list[Shipped]:
    """Each row with each target it is for, and with all that calls may ask of it.

    What a row for calls with extras compiles for those without is the same loops with less in them.
    """
    return [kernel for kernel in shipped() if kernel.extras == kernel.row.extras]


@cache
def kept() -> dict[str, Used]:
    """The ledger, which is empty if it is of other sources."""
    if not LEDGER.exists():
        return {}
    ledger = json.loads(LEDGER.read_text("utf8"))
    found = ledger["kernels"] if ledger["sources"] == digest() else {}
    return {name: Used(*numbers) for name, numbers in found.items()}


@cache
def digest() -> str:
    """Of the kernels and all that launches them, whatever comments are in them."""
    found = hashlib.sha256()
    for source in sorted(Path(tuning.__file__).parent.glob("*.py")):
        found.update(ast.dump(ast.parse(source.read_text("utf8"))).encode())
    return found.hexdigest()


def _again(kernel: Shipped) -> bool:
    return hashlib.sha256((digest() + title(kernel)).encode()).digest()[0] % 8 == 0


def main() -> None:
    """Compile what is missing, and write the ledger."""
    kernels = hardest()
    missing = [kernel for kernel in kernels if title(kernel) not in kept()]
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        new = dict(zip(map(title, missing), pool.map(compiled, missing), strict=True))
    found = {name: new.get(name) or kept()[name] for name in map(title, kernels)}
    rows = ",\n".join(
        f"    {json.dumps(name)}: {json.dumps(list(numbers))}" for name, numbers in found.items()
    )
    LEDGER.write_text(f'{{\n  "sources": "{digest()}",\n  "kernels": {{\n{rows}\n  }}\n}}\n', "utf8")
    print(f"{len(new)} compiled, {len(found)} in {LEDGER.name}")


if __name__ == "__main__":
    main()
