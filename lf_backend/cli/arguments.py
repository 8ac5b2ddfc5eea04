"""Patterns from the command line, and pictures for a terminal."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from rich.text import Text

from lf_backend import schedules
from lf_backend.errors import PatternError
from lf_backend.pattern import notation
from lf_backend.pattern.picture import ASCII, COLOURS, GLYPHS, Kind, Picture
from lf_backend.pattern.terms import Pattern


def layers(argument: str) -> schedules.Schedule:
    """The patterns of an argument: a pattern's string, or a JSON file with a pattern or a list of them.

    Raises:
        PatternError: what cannot be read.
        OSError: no such file.
    """
    if not argument.endswith(".json"):
        return (notation.parse(argument),)
    text = Path(argument).read_text(encoding="utf-8")
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise PatternError(f"{argument}: JSON wanted: {error}") from None
    return schedules.from_list(data if isinstance(data, list) else [data])


def pattern(argument: str) -> Pattern:
    """The one pattern of an argument.

    Raises:
        PatternError: what cannot be read, or several patterns.
        OSError: no such file.
    """
    found = layers(argument)
    if len(found) != 1:
        raise PatternError(f"{argument}: one pattern wanted, got {len(found)}")
    return found[0]


def runs(schedule: schedules.Schedule) -> Iterator[tuple[str, Pattern]]:
    """Neighbouring layers with the same pattern together, with their name."""
    for layer, group in groupby(enumerate(schedule), key=lambda item: item[1]):
        numbers = [number for number, _ in group]
        first, last = numbers[0], numbers[-1]
        yield (f"layers {first}-{last}" if last > first else f"layer {first}"), layer


def coloured(picture: Picture, ascii: bool = False) -> Text:
    """The picture's text with the colours of its PNG."""
    text = Text(picture.text(ascii))
    for kind, glyph in (ASCII if ascii else GLYPHS).items():
        if kind is not Kind.UNSEEN and not ascii:
            text.highlight_words([glyph], style=COLOURS[kind])
    return text
