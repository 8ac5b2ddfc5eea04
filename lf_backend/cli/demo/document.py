"""The text that the demo reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lf_backend.errors import LFError


@dataclass(frozen=True)
class Document:
    """A text and where it is from."""

    name: str
    text: str


def read(files: Sequence[Path]) -> Document:
    """The files one after the other, or the language reference that comes with every Python.

    Raises:
        LFError: no text in them, or no UTF-8.
        OSError: a file that cannot be read.
    """
    if not files:
        from pydoc_data.topics import topics  # 460,000 characters of English prose

        return Document("The Python Language Reference (pydoc_data.topics)", "\n\n".join(topics.values()))
    texts = [_read(file) for file in files]
    return Document(", ".join(map(str, files)), "\n\n".join(texts))


def _read(file: Path) -> str:
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise LFError(f"{file}: UTF-8 text wanted, byte {error.start} is none") from None
    if not text.strip():
        raise LFError(f"{file}: some text wanted, the file is empty")
    return text
