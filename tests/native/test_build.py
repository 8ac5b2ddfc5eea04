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


def copied(tree: Path) -> None:
    """Copy what a wheel is built from, without what was compiled."""
    for name in ("lf_backend", "integrations", "pyproject.toml", "README.md", "LICENSE", "hatch_build.py"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        else:
            tree.mkdir(exist_ok=True)
            shutil.copy(ROOT / name, tree / name)
    shutil.copy(ROOT / ".gitignore", tree / ".gitignore")


def built(tmp_path: Path, kind: str = "standard", **variables: str) -> tuple[zipfile.ZipFile, str]:
    """The wheel of a copy of the tree, and what the build said."""
    pytest.importorskip("hatchling")
    tree = tmp_path / "tree"
    if not tree.exists():
        copied(tree)
    command = [sys.executable, "-m", "hatchling", "build", "-t", f"wheel:{kind}"]
    run = subprocess.run(command, cwd=tree, env={**os.environ, **variables}, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    (wheel,) = (tree / "dist").glob("*.whl")
    return zipfile.ZipFile(wheel), run.stdout + run.stderr


@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no C++ compiler")
def test_with_a_compiler(tmp_path: Path) -> None:
    wheel, _ = built(tmp_path, CXXFLAGS="-O0")
    assert LIBRARY in wheel.namelist()
    assert wheel.filename is not None
    assert "-py3-none-" in wheel.filename and not wheel.filename.endswith("-any.whl")
    assert not any(name.endswith((".cpp", ".h")) for name in wheel.namelist())


def test_an_editable_tree_is_compiled_again_when_its_sources_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not for every environment that installs it. Here the compiler is one that cannot."""
    pytest.importorskip("editables")  # hatchling wants it for such a build
    for name in ("CXX", "CXXFLAGS"):
        monkeypatch.delenv(name, raising=False)
    tree, old = tmp_path / "tree", "not a library"
    copied(tree)
    library = tree / LIBRARY
    library.write_text(old)
    built(tmp_path, "editable", PATH="")
    assert library.read_text() == old
    later = library.stat().st_mtime + 10
    os.utime(tree / "lf_backend/backends/native/src/call.h", (later, later))
    _, said = built(tmp_path, "editable", PATH="")
    assert not library.exists() and "no C++ compiler was found" in said


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false"])
def test_without_one(tmp_path: Path, compiler: str) -> None:
    wheel, said = built(tmp_path, CXX=compiler)
    assert LIBRARY not in wheel.namelist()
    assert wheel.filename is not None and wheel.filename.endswith("-py3-none-any.whl")
    assert "the native backend is left out" in said and compiler in said
