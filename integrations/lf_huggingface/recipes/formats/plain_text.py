"""Text to pretrain on: .txt (two empty lines between documents), JSON lines with "text", or a folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lf_huggingface.errors import RecipeError
from lf_huggingface.recipes.formats.json_files import field, lines

_BLANK_LINES = 2


def read(path: Path) -> Iterator[str]:
    """The documents of a file or folder, in the order of names.

    Raises:
        RecipeError: nothing there, or another kind of file.
    """
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    if not files or not path.exists():
        raise RecipeError(f"--data: text in {path} wanted, none is there")
    for file in files:
        if file.suffix in (".jsonl", ".json"):
            yield from (field(where, record, "text", str) for where, record in lines(file))
        elif file.suffix in (".txt", ".raw", ".md", ".rst"):
            yield from _documents(file)
        else:
            raise RecipeError(f"--data: .txt or .jsonl wanted, got {file}")


def _documents(path: Path) -> Iterator[str]:
    """Whole lines until two blank ones, which end a document."""
    held, blank = list[str](), 0
    with path.open(encoding="utf8", errors="strict") as file:
        try:
            for line in file:
                blank = 0 if line.strip() else blank + 1
                if blank == _BLANK_LINES and any(x.strip() for x in held):
                    yield "".join(held).strip()
                    held = []
                held.append(line)
        except UnicodeDecodeError as error:
            raise RecipeError(f"{path}: UTF-8 wanted, {error}") from None
    if "".join(held).strip():
        yield "".join(held).strip()
