"""The build hook: a wheel for this platform where there is a compiler, else a pure one that says why."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIBRARY = "lf_backend/backends/native/lf_native.so"

pytestmark = pytest.mark.skipif(not (ROOT / "hatch_build.py").exists(), reason="needs the source tree")


def built(tmp_path: Path, **variables: str) -> tuple[zipfile.ZipFile, str]:
    """The wheel of a copy of the tree, and what the build said."""
    pytest.importorskip("hatchling")
    tree = tmp_path / "tree"
    for name in ("lf_backend", "integrations", "pyproject.toml", "README.md", "LICENSE", "hatch_build.py"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        else:
            tree.mkdir(exist_ok=True)
            shutil.copy(ROOT / name, tree / name)
    shutil.copy(ROOT / ".gitignore", tree / ".gitignore")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel"]
    run = subprocess.run(
        command, cwd=tree, env={**os.environ, **variables}, check=True, capture_output=True, text=True
    )
    (wheel,) = (tree / "dist").glob("*.whl")
    return zipfile.ZipFile(wheel), run.stdout + run.stderr


@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no C++ compiler")
def test_with_a_compiler(tmp_path: Path) -> None:
    wheel, _ = built(tmp_path, CXXFLAGS="-O0")
    assert LIBRARY in wheel.namelist()
    assert wheel.filename is not None
    assert "-py3-none-" in wheel.filename and not wheel.filename.endswith("-any.whl")
    assert not any(name.endswith((".cpp", ".h")) for name in wheel.namelist())


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false"])
def test_without_one(tmp_path: Path, compiler: str) -> None:
    wheel, said = built(tmp_path, CXX=compiler)
    assert LIBRARY not in wheel.namelist()
    assert wheel.filename is not None and wheel.filename.endswith("-py3-none-any.whl")
    assert "the native backend is left out" in said and compiler in said
