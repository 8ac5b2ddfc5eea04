"""`--attention-pattern`: one option that says what every layer's self-attention sees.

    --attention-pattern "window(255, 0) | global(0)"                # one pattern for all layers
    --attention-pattern '["window(31, 0)", "window(63, 0)"]'        # a JSON list, one per layer, bottom first
    --attention-pattern schedule.json                               # a file of such JSON

JSON holds a pattern as its string or as `lf.to_dict`'s form, or a list of them (`lf.schedules.to_json`).
A checkpoint must not depend on a file, so what is stored in it is `write` of what was read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lf_backend.errors import PatternError
from lf_backend.pattern.notation import from_dict, parse
from lf_backend.pattern.terms import Causal, Pattern, Window, intersection
from lf_backend.schedules import from_list

OPTION = "--attention-pattern"


def read(
    text: str, layers: int, *, causal: bool, heads: int | None = None, option: str = OPTION
) -> tuple[Pattern, ...]:
    """One pattern per layer, bottom first.

    Args:
        text: a pattern, JSON of one or of a list of one per layer, or the path of a file with such JSON.
        layers: number of layers.
        causal: the model never looks ahead. Windows must say so themselves (`right` 0), everything else,
            global tokens too, is cut.
        heads: number of heads, to be checked if given.
        option: how errors call the text.

    Raises:
        PatternError: what cannot be read and where, a list of another length than `layers`, another number
            of heads, or a window that looks ahead in a causal model.
    """
    found = _patterns(text, option)
    if len(found) == 1 and not _is_list(text):
        found *= layers
    if len(found) != layers:
        raise PatternError(
            f"{option}: one pattern, or one per layer wanted, {layers} layers, got {len(found)}"
        )
    return fit(found, causal=causal, heads=heads, option=option)


def fit(
    patterns: Sequence[Pattern], *, causal: bool, heads: int | None = None, option: str = OPTION
) -> tuple[Pattern, ...]:
    """The patterns as a model runs them; arguments and errors as in `read`."""
    for layer, pattern in enumerate(patterns):
        where = f"{option}: layer {layer}"
        try:
            if heads is not None:
                pattern.check_heads(heads)
        except PatternError as error:
            raise PatternError(f"{where}: {error}") from None
        if causal:
            _check_back(pattern, where)
    return tuple(intersection(pattern, Causal()) if causal else pattern for pattern in patterns)


def write(text: str, option: str = OPTION) -> str:
    """Write patterns as text that needs no file and that `read` takes."""
    texts = [pattern.text for pattern in _patterns(text, option)]
    return json.dumps(texts) if _is_list(text) else texts[0]


def _is_list(text: str) -> bool:
    return isinstance(_data(text, OPTION), list)


def _patterns(text: str, option: str) -> tuple[Pattern, ...]:
    try:
        data = _data(text, option)
        if isinstance(data, list):
            return from_list(data)
        return (from_dict(data) if isinstance(data, Mapping) else parse(data),)
    except PatternError as error:
        message = str(error)
        raise PatternError(message if message.startswith(option) else f"{option}: {message}") from None


def _data(text: str, option: str) -> Any:
    """A pattern's string or dict, or a list of them."""
    if not isinstance(text, str) or not text.strip():
        raise PatternError(f"{option}: a pattern, JSON, or the path of a JSON file wanted, got {text!r}")
    text = text.strip()
    if text[0] in '[{"':
        return _json(text, option, "JSON")
    if not text.endswith(".json"):
        return text
    try:
        content = Path(text).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PatternError(f"{option}: a readable JSON file wanted, got {text}: {error}") from None
    return _json(content, option, f"JSON in {text}")


def _json(text: str, option: str, wanted: str) -> Any:
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise PatternError(f"{option}: {wanted} wanted, got {error}") from None
    if not isinstance(data, str | list | dict):
        raise PatternError(f"{option}: {wanted} of a pattern or a list of patterns wanted, got {data!r}")
    return data


def _check_back(pattern: Pattern, where: str) -> None:
    """Raise PatternError for a window that looks ahead: in a causal model half of it would be lost."""
    for band in pattern.lowered.bands:
        if band.right != 0:
            meant, got = Window.of(replace(band, right=0)), Window.of(band)
            raise PatternError(
                f"{where}: a window without steps ahead wanted in a causal model, got {got}; "
                f"for the same reach back write {meant}"
            )
