"""Builds the native backend's library into the wheel, where there is a C++ compiler; else the wheel is pure.

The library has a plain C interface, called by ctypes, and knows neither Python nor PyTorch. So no headers
of either are needed here, and one wheel, py3-none-PLATFORM, serves all versions of both. (PyTorch's stable
ABI would do too, from 2.10 on, but must be linked with PyTorch, which the build would have to install.)

Every instruction set is compiled in; which one runs is decided where it runs. CXX and CXXFLAGS are heeded.
By hand, into the source tree or to another path: `python hatch_build.py [PATH]`.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface as Hook
except ImportError:  # by hand, without hatchling
    Hook = object  # type: ignore[assignment,misc]

NATIVE = Path(__file__).parent / "lf_backend" / "backends" / "native"
LIBRARY = NATIVE / "lf_native.so"

# Of the processor's family: name of each instruction set, and what the compiler must be told for it.
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"]
AVX512_BF16 = [*AVX512, "-mavx512bf16"]
AMX = [*AVX512_BF16, "-mamx-tile", "-mamx-bf16"]
X86 = {"avx2": AVX2, "avx512": AVX512, "avx512bf16": AVX512_BF16, "amx": AMX}
NEON: dict[str, list[str]] = {"neon": []}
YOUNG = {"avx512bf16", "amx"}  # left out where the compiler does not know them
UNITS = {"x86_64": X86, "amd64": X86, "aarch64": NEON, "arm64": NEON}

# Products and sums are fused where the source has both, on all compilers alike; no other "fast math".
FLAGS = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=fast", "-Wno-psabi"]


class NativeHook(Hook):  # type: ignore[type-arg]
    """Called by hatchling for every wheel, editable ones included."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel":
            return
        try:
            if version != "editable" or not is_new(LIBRARY):
                build(LIBRARY)
        except BuildError as error:
            self.app.display_warning(f"the native backend is left out, the wheel is pure Python: {error}")
            return
        build_data["artifacts"].append(f"/{LIBRARY.relative_to(NATIVE.parents[2]).as_posix()}")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform_tag()}"


class BuildError(Exception):
    """Why there is no library."""


def is_new(target: Path) -> bool:
    """Tell whether a library is younger than its sources, and nothing is asked for but the usual.

    So a tree into which many environments install themselves is compiled once.
    """
    if not target.exists() or "CXX" in os.environ or "CXXFLAGS" in os.environ:
        return False
    sources = [Path(__file__), *(NATIVE / "src").iterdir()]
    return all(source.stat().st_mtime < target.stat().st_mtime for source in sources)


def build(target: Path) -> None:
    """Compile the library to `target`, which is replaced only by a whole one.

    Raises:
        BuildError: no compiler, none that can, or none needed on this platform; an older library is gone
            then, as it is not that of these sources.
    """
    try:
        _build(target)
    except BuildError:
        target.unlink(missing_ok=True)
        raise


def _build(target: Path) -> None:
    units = UNITS.get(platform.machine().lower(), {})
    if sys.platform == "win32" or not units:
        raise BuildError(
            f"x86-64 or aarch64, Linux or macOS wanted, got {platform.machine()}, {sys.platform}"
        )
    failures = []
    for compiler in compilers():
        try:
            return compile_with(compiler, units, target)
        except (OSError, subprocess.CalledProcessError) as error:
            said = (getattr(error, "stderr", "") or str(error)).strip()
            failures.append(f"{shlex.join(compiler)} failed: {said[-2000:]}")
    raise BuildError("; ".join(failures) or "no C++ compiler was found (g++ or clang++ wanted, or CXX)")


def compilers() -> Iterator[list[str]]:
    """Commands to try: CXX alone if it is set."""
    if given := shlex.split(os.environ.get("CXX", "")):
        yield given
        return
    for name in ("c++", "g++", "clang++"):
        if shutil.which(name):
            yield [name]


def compile_with(compiler: list[str], units: dict[str, list[str]], target: Path) -> None:
    """Every source to an object, `unit.cpp` once for each instruction set, and all into one library."""
    command = [*compiler, *FLAGS, *shlex.split(os.environ.get("CXXFLAGS", ""))]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count()) as pool:

        def compiled(source: Path, name: str, *flags: str) -> str:
            run([*command, *flags, "-c", str(source), "-o", f"{folder}/{name}.o"])
            return f"{folder}/{name}.o"

        def unit(name: str) -> str | None:
            try:
                return compiled(NATIVE / "src" / "unit.cpp", name, f"-DLF_SET={name}", *units[name])
            except subprocess.CalledProcessError as error:
                if name not in YOUNG:
                    raise
                said = (error.stderr or str(error)).strip().splitlines()
                print(f"{name} is left out, {compiler[0]} fails: {said[0]}", file=sys.stderr)
                return None

        sets = dict(zip(units, pool.map(unit, units), strict=True))
        found = [f"-DLF_{name.upper()}" for name, path in sets.items() if path]
        others = [path for path in sorted((NATIVE / "src").glob("*.cpp")) if path.name != "unit.cpp"]
        objects = list(pool.map(lambda path: compiled(path, f"{path.stem}_cpp", *found), others))
        linked = f"{folder}/{target.name}"
        run([*command, "-shared", "-pthread", *objects, *filter(None, sets.values()), "-o", linked])
        beside = target.with_suffix(f".{os.getpid()}")  # a rename within one folder is atomic
        shutil.copy(linked, beside)
        beside.replace(target)


def run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


def platform_tag() -> str:
    """As in a wheel's name. On macOS that of this processor: Python's own may claim both."""
    if sys.platform == "darwin":
        return f"macosx_11_0_{platform.machine()}"
    return sysconfig.get_platform().replace("-", "_").replace(".", "_")


if __name__ == "__main__":
    try:
        build(Path(sys.argv[1]) if len(sys.argv) > 1 else LIBRARY)
    except BuildError as failure:
        sys.exit(str(failure))
