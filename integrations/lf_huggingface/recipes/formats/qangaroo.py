"""WikiHop (Qangaroo v1.1): a list of {id, query, candidates, supports, answer}."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lf_huggingface.errors import RecipeError
from lf_huggingface.recipes.formats.json_files import array, field, texts


@dataclass(frozen=True)
class Question:
    """One question; `answer` is one of the candidates, or None in a file without answers."""

    id: str
    query: str
    candidates: list[str]
    supports: list[str]
    answer: str | None


def read(path: Path, gold: bool) -> Iterator[Question]:
    """The questions of a file.

    Raises:
        RecipeError: a field that is missing, no supports, or an answer that is no candidate.
    """
    for where, record in array(path):
        candidates, supports = texts(where, record, "candidates"), texts(where, record, "supports")
        answer = field(where, record, "answer", str) if gold else None
        if not supports or not any(support.strip() for support in supports):
            raise RecipeError(f"{where}: supports: at least one with text wanted, got {supports}")
        if answer is not None and answer not in candidates:
            raise RecipeError(f"{where}: answer: one of the candidates wanted, got {answer!r}")
        if not candidates:
            raise RecipeError(f"{where}: candidates: at least one wanted, got []")
        yield Question(
            field(where, record, "id", str), field(where, record, "query", str), candidates, supports, answer
        )
