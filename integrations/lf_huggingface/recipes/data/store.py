"""Encoded examples in a cache on disk: JSON lines with an index, written once and read one at a time.

A data set of gigabytes is never in memory, and a second run finds its tokens ready.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lf_huggingface.errors import RecipeError


class Store:
    """A sequence of dicts in a file.

    Attributes:
        lengths: int64 [examples], the "length" of each.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._ends, self.lengths = np.load(path.with_suffix(".npy"))
        self._view: mmap.mmap | None = None

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> dict[str, Any]:
        start = int(self._ends[index - 1]) if index else 0
        found: dict[str, Any] = json.loads(self._bytes()[start : int(self._ends[index])])
        return found

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(len(self)))

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_view": None}  # a worker opens the file itself

    def _bytes(self) -> mmap.mmap:
        if self._view is None:
            with self._path.open("rb") as file:
                self._view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return self._view


def cached(folder: Path, name: str, key: Any, make: Callable[[], Iterable[dict[str, Any]]]) -> Store:
    """The examples under a key, made if they are not there.

    Args:
        folder: of the cache.
        name: how the file's name begins.
        key: plain data that says all that the examples depend on.
        make: yields the examples.

    Raises:
        RecipeError: it yields none.
    """
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    path = folder / f"{name}-{digest}.jsonl"
    if not path.with_suffix(".npy").exists():
        folder.mkdir(parents=True, exist_ok=True)
        _write(path, make())
    return Store(path)


def _write(path: Path, examples: Iterable[dict[str, Any]]) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    ends, lengths, end = [], [], 0
    with partial.open("wb") as file:
        for example in examples:
            end += file.write(json.dumps(example).encode() + b"\n")
            ends.append(end)
            lengths.append(example["length"])
    if not ends:
        partial.unlink()
        raise RecipeError(f"{path.name.partition('-')[0]}: at least one example wanted, got none")
    partial.replace(path)
    index = path.with_name(f"{path.stem}.{os.getpid()}.npy")
    np.save(index, np.array([ends, lengths], np.int64))
    index.replace(path.with_suffix(".npy"))  # last: all else is there


def fingerprint(path: Path) -> list[Any]:
    """Describe a file, or the files of a folder: names, sizes, times of change."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return [
        [str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns]
        for file in files
        if file.is_file()
    ]
