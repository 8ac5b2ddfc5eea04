"""Text to train on: text8 or enwik8 as distributed, or what comes with every Python.

The literature (Mahoney's Large Text Compression Benchmark; Al-Rfou et al. 2018; Dai et al. 2019) takes the
first 90M of 100M bytes for training, the next 5M for development and the last 5M for the test.
"""

from __future__ import annotations

import hashlib
import sysconfig
import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from lf_backend.errors import LFError

NAMES = ("text8", "enwik8")
DISTRIBUTED_BYTES = 100_000_000
# Test suites and tables are no text.
_LEFT_OUT = {"test", "tests", "idle_test", "encodings", "__pycache__"}
# What pip has installed, and how Python was built, differ from machine to machine.
_LOCAL = ("site-packages", "dist-packages", "_sysconfigdata", "config-")


@dataclass(frozen=True)
class Corpus:
    """Bytes in order, with a name to report."""

    name: str
    content: bytes

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    def splits(self) -> dict[str, bytes]:
        """Training, development and test text: 90, 5 and 5 of 100 parts, in the order of the corpus."""
        size = len(self.content)
        first, second = size * 90 // 100, size * 95 // 100
        return {
            "train": self.content[:first],
            "valid": self.content[first:second],
            "test": self.content[second:],
        }


def load(folder: Path | None) -> Corpus:
    """The corpus of a folder, or Python's standard library where none is given.

    Args:
        folder: holds text8 or enwik8, or one of them as .zip.

    Raises:
        LFError: none of these files or two corpora in the folder, or another size than distributed.
    """
    if folder is None:
        return standard_library()
    found = {name: path for name in NAMES if (path := _path(folder, name)) is not None}
    if len(found) != 1:
        wanted = ", ".join(f"{name}, {name}.zip" for name in NAMES)
        got = f"both {' and '.join(str(path) for path in found.values())}" if found else "none of them"
        raise LFError(f"--data: a folder with one of {wanted} wanted, {folder} has {got}")
    ((name, path),) = found.items()
    content = _read(path, name)
    if len(content) != DISTRIBUTED_BYTES:
        raise LFError(f"--data: {DISTRIBUTED_BYTES:,} bytes of {name} wanted, {path} holds {len(content):,}")
    return Corpus(name, content)


def standard_library(folder: Path | None = None) -> Corpus:
    """All sources of Python's standard library, documentation within them included: some MB of text.

    In the order of a hash of their names, so that training and test text are of the same kind: in
    alphabetical order the test would be xml and zip. The text is the same for the same Python version.

    Args:
        folder: of the library, this Python's by default.

    Raises:
        LFError: no sources there.
    """
    root = Path(sysconfig.get_paths()["stdlib"]) if folder is None else folder
    files = {
        path.relative_to(root).as_posix(): path
        for path in root.rglob("*.py")
        if _is_text(path.relative_to(root))
    }
    names = sorted(files, key=lambda name: hashlib.sha256(name.encode()).digest())
    content = b"".join(files[name].read_bytes() for name in names)
    if not content:
        raise LFError(f"--data: not given, and Python's standard library has no sources at {root}")
    return Corpus("python", content)


def _is_text(path: Path) -> bool:
    return not any(part in _LEFT_OUT or part.startswith(_LOCAL) for part in path.parts)


def _path(folder: Path, name: str) -> Path | None:
    for path in (folder / name, folder / f"{name}.zip"):
        if path.is_file():
            return path
    return None


def _read(path: Path, name: str) -> bytes:
    if path.suffix != ".zip":
        return path.read_bytes()
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.read(name)
    except (KeyError, zipfile.BadZipFile) as error:
        raise LFError(f"--data: {name} inside {path} wanted, got {error}") from None
