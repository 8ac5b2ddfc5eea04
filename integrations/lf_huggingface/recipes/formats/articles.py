"""arXiv and PubMed: JSON lines {article_id, article_text, abstract_text}, each text a list of sentences."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lf_huggingface.errors import RecipeError
from lf_huggingface.recipes.formats.json_files import field, lines


@dataclass(frozen=True)
class Article:
    """A document and its summary, one sentence a line; the summary is None where it is not asked for."""

    id: str
    text: str
    summary: str | None


def read(path: Path, gold: bool) -> Iterator[Article]:
    """The articles of a file.

    Raises:
        RecipeError: a field that is missing, or an empty text.
    """
    for number, (where, record) in enumerate(lines(path)):
        text = " ".join(_sentences(where, record, "article_text"))
        if not text.strip():
            raise RecipeError(f"{where}: article_text: some text wanted, got {text!r}")
        summary = "\n".join(_sentences(where, record, "abstract_text")) if gold else None
        yield Article(str(record.get("article_id", number)), text, summary)


def _sentences(where: str, record: dict[str, Any], name: str) -> list[str]:
    found = field(where, record, name, (list, str))
    sentences = [found] if isinstance(found, str) else [str(sentence) for sentence in found]
    return [re.sub(r"</?S>", "", sentence).strip() for sentence in sentences]
