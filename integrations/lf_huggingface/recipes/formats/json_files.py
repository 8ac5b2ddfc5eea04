"""JSON of any size, one record at a time, and fields that must be there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lf_huggingface.errors import RecipeError

CHUNK = 1 << 20  # characters


def array(path: Path, key: str | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a JSON array, as (where, object), without the whole of it in memory.

    Args:
        path: the file.
        key: the array is the value of this key of the file's object; None if the file is the array.

    Raises:
        RecipeError: no such file, or not such JSON.
    """
    need_file(path)
    decoder = json.JSONDecoder()
    with path.open(encoding="utf8") as file:
        text = _array_start(file, path, key)
        number, at = 0, 0
        while True:
            at = _skip(text, at, " \t\r\n,")
            if at < len(text) and text[at] == "]":
                return
            try:
                value, at = decoder.raw_decode(text, at)
            except json.JSONDecodeError as error:
                more = file.read(CHUNK)
                if not more:
                    raise RecipeError(f"{path}: record {number}: JSON wanted, {error}") from None
                text, at = text[at:] + more, 0
                continue
            if not isinstance(value, dict):
                raise RecipeError(f"{path}: record {number}: an object wanted, got {type(value).__name__}")
            yield f"{path}: record {number}", value
            number += 1


def lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of JSON lines, as (where, object).

    Raises:
        RecipeError: no such file, or a line that is no object.
    """
    need_file(path)
    with path.open(encoding="utf8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except json.JSONDecodeError as error:
                raise RecipeError(f"{path}: line {number}: JSON wanted, {error}") from None
            if not isinstance(value, dict):
                raise RecipeError(f"{path}: line {number}: an object wanted, got {type(value).__name__}")
            yield f"{path}: line {number}", value


def need_file(path: Path) -> None:
    """Raise RecipeError unless a file is there."""
    if not path.is_file():
        raise RecipeError(f"--data: the file {path} wanted, it is not there")


def field(where: str, record: dict[str, Any], name: str, kind: type | tuple[type, ...]) -> Any:
    """A field of a record.

    Raises:
        RecipeError: it is missing or of another type.
    """
    if name not in record:
        raise RecipeError(f"{where}: the field {name!r} wanted, got {', '.join(sorted(record))}")
    if not isinstance(record[name], kind):
        wanted = " or ".join(x.__name__ for x in (kind if isinstance(kind, tuple) else (kind,)))
        raise RecipeError(f"{where}: {name}: {wanted} wanted, got {type(record[name]).__name__}")
    return record[name]


def texts(where: str, record: dict[str, Any], name: str) -> list[str]:
    """A field that is a list of strings."""
    found: list[str] = field(where, record, name, list)
    if wrong := next((x for x in found if not isinstance(x, str)), None):
        raise RecipeError(f"{where}: {name}: a list of strings wanted, it holds {wrong!r}")
    return found


def _array_start(file: Any, path: Path, key: str | None) -> str:
    """The text behind the bracket that opens the array."""
    opening = "[" if key is None else f'"{key}"'
    text: str = file.read(CHUNK)
    if key is None:
        at = _skip(text, 0, " \t\r\n\ufeff")
        found = at if text[at : at + 1] == "[" else -1
    else:
        while (found := text.find(opening)) < 0 and (more := file.read(CHUNK)):
            text = text[-len(opening) :] + more
        text = text[max(found, 0) :]
        while found >= 0 and "[" not in text and (more := file.read(CHUNK)):
            text += more
        found = text.find("[") if found >= 0 else -1
    if found < 0:
        raise RecipeError(f"{path}: JSON with an array{f' {key}' if key else ''} wanted, got {text[:40]!r}")
    return text[found + 1 :]


def _skip(text: str, at: int, characters: str) -> int:
    while at < len(text) and text[at] in characters:
        at += 1
    return at
