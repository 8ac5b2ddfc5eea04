"""Patterns as text, dict and JSON. Text is parsed, never evaluated; errors say where.

    union := meet ("|" meet)*        meet := term ("&" term)*        term := call | "(" union ")"
    call  := name "(" [value ("," value)*] ")"                       value := [key "="] literal
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, NoReturn

from lf_backend.errors import PatternError
from lf_backend.pattern import Causal, Global, Intersection, Pattern, Predicate, Union, Window

_TOKEN = re.compile(r"\s*(?:(?P<int>-?\d+)|(?P<name>[A-Za-z_]\w*)|(?P<sign>[()\[\],|&=]))")


@lru_cache(maxsize=1024)
def parse(text: str) -> Pattern:
    """Read a pattern from its string, e.g. `window(256, 256, dilation=2) | global(0)`.

    Raises:
        PatternError: malformed text, with the column and what was expected there.
    """
    if not isinstance(text, str):
        raise PatternError(f"pattern: a string wanted, got {text!r}")
    return _Parser(text).pattern()


def to_dict(pattern: Pattern) -> dict[str, Any]:
    """The pattern as plain data, for configs; `from_dict` reads it back."""
    if isinstance(pattern, Window):
        dilation = list(pattern.dilation) if isinstance(pattern.dilation, tuple) else pattern.dilation
        reach = {"left": pattern.left, "right": pattern.right}
        return {"term": "window", **reach, "dilation": dilation}
    if isinstance(pattern, Global):
        return {"term": "global", "positions": list(pattern.positions)}
    if isinstance(pattern, Causal):
        return {"term": "causal"}
    if isinstance(pattern, Union | Intersection):
        name = "union" if isinstance(pattern, Union) else "intersection"
        return {"term": name, "terms": [to_dict(term) for term in pattern.terms]}
    if isinstance(pattern, Predicate):
        raise PatternError(f"a predicate is code and cannot be written as data: {pattern}")
    raise PatternError(f"pattern: a lf_backend pattern wanted, got {pattern!r}")


def from_dict(data: Mapping[str, Any], where: str = "pattern") -> Pattern:
    """Read a pattern from `to_dict`'s form. Unknown and missing keys are errors that name them."""
    if not isinstance(data, Mapping):
        raise PatternError(f"{where}: a mapping wanted, got {data!r}")
    name = data.get("term")
    if name not in _DICT_KEYS:
        raise PatternError(f"{where}.term: one of {sorted(_DICT_KEYS)} wanted, got {name!r}")
    required, optional = _DICT_KEYS[name]
    given = set(data) - {"term"}
    if unknown := given - required - optional:
        raise PatternError(f"{where}: keys {sorted(required | optional)} wanted, got unknown {sorted(unknown)}")
    if missing := required - given:
        raise PatternError(f"{where}: keys {sorted(required)} wanted, missing {sorted(missing)}")
    if name in ("union", "intersection"):
        return _joined(name, data["terms"], f"{where}.terms")
    arguments = {key: value for key, value in data.items() if key != "term"}
    try:
        return Global(*arguments["positions"]) if name == "global" else _CALLS[name](**arguments)
    except (PatternError, TypeError) as error:
        raise PatternError(f"{where}: {error}") from None


def to_json(pattern: Pattern) -> str:
    """`to_dict` as one line of JSON."""
    return json.dumps(to_dict(pattern))


def from_json(text: str) -> Pattern:
    """Read a pattern from `to_json`'s form."""
    try:
        data = json.loads(text)
    except (TypeError, json.JSONDecodeError) as error:
        raise PatternError(f"pattern: JSON wanted, got {text!r}: {error}") from None
    return from_dict(data)


_CALLS: dict[str, Callable[..., Pattern]] = {"window": Window, "global": Global, "causal": Causal}
_DICT_KEYS: dict[Any, tuple[set[str], set[str]]] = {
    "window": ({"left", "right"}, {"dilation"}),
    "global": ({"positions"}, set()),
    "causal": (set(), set()),
    "union": ({"terms"}, set()),
    "intersection": ({"terms"}, set()),
}


def _joined(name: str, terms: Any, where: str) -> Pattern:
    if not isinstance(terms, list | tuple) or not terms:
        raise PatternError(f"{where}: a list of at least one term wanted, got {terms!r}")
    kind = Union if name == "union" else Intersection
    return kind(*(from_dict(term, f"{where}[{index}]") for index, term in enumerate(terms)))


class _Parser:
    """Recursive descent over the tokens of one string."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.advance()

    def pattern(self) -> Pattern:
        pattern = self.union()
        if self.kind != "end":
            self.fail("'|', '&' or the end")
        return pattern

    def union(self) -> Pattern:
        pattern = self.meet()
        while self.accept("|"):
            pattern = pattern | self.meet()
        return pattern

    def meet(self) -> Pattern:
        pattern = self.term()
        while self.accept("&"):
            pattern = pattern & self.term()
        return pattern

    def term(self) -> Pattern:
        if self.accept("("):
            pattern = self.union()
            self.expect(")")
            return pattern
        name, start = self.token, self.start
        if self.kind != "name" or name not in _CALLS:
            self.fail(f"one of {', '.join(_CALLS)} or '('")
        self.advance()
        positional, named = self.arguments()
        try:
            return _CALLS[name](*positional, **named)
        except (PatternError, TypeError) as error:
            raise PatternError(f"column {start + 1} of {self.text!r}: {error}") from None

    def arguments(self) -> tuple[list[Any], dict[str, Any]]:
        positional: list[Any] = []
        named: dict[str, Any] = {}
        self.expect("(")
        while not self.accept(")"):
            if positional or named:
                self.expect(",")
            if self.kind == "name" and self.token != "none":
                key = self.token
                if key in named:
                    self.fail(f"each argument once, not {key!r} again")
                self.advance()
                self.expect("=")
                named[key] = self.value()
            elif named:
                self.fail("name=value after a named argument")
            else:
                positional.append(self.value())
        return positional, named

    def value(self) -> Any:
        if self.accept("none"):
            return None
        if self.accept("["):
            items: list[Any] = []
            while not self.accept("]"):
                if items:
                    self.expect(",")
                items.append(self.value())
            return items
        if self.kind != "int":
            self.fail("an int, 'none' or '['")
        number = int(self.token)
        self.advance()
        return number

    def advance(self) -> None:
        rest = self.text[self.at :]
        self.start = self.at + len(rest) - len(rest.lstrip())
        if not rest.strip():
            self.kind, self.token = "end", ""
            return
        match = _TOKEN.match(self.text, self.at)
        if match is None:
            self.kind, self.token = "unknown", self.text[self.start]
            self.fail("a name, an int or one of ( ) [ ] , | & =")
        self.kind, self.token = str(match.lastgroup), match[match.lastgroup or 0]
        self.at = match.end()

    def accept(self, token: str) -> bool:
        found = self.token == token and self.kind != "end"
        if found:
            self.advance()
        return found

    def expect(self, token: str) -> None:
        if not self.accept(token):
            self.fail(f"{token!r}")

    def fail(self, wanted: str) -> NoReturn:
        got = repr(self.token) if self.kind != "end" else "the end"
        raise PatternError(f"column {self.start + 1} of {self.text!r}: {wanted} wanted, got {got}")
