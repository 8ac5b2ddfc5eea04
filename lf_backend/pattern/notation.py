"""Patterns as text, dict and JSON. Text is parsed, never evaluated; errors say where."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from lf_backend.errors import PatternError
from lf_backend.pattern import named
from lf_backend.pattern.named import Named
from lf_backend.pattern.predicate import Predicate
from lf_backend.pattern.terms import Causal, Global, Intersection, Pattern, Union, Window, intersection, union


@lru_cache(maxsize=128)
def parse(text: str) -> Pattern:
    """Read a pattern from its string, e.g. `window(256, 256, dilation=2) | global(0)`.

    The string is what `str(pattern)` gives: `window(left, right, dilation=1)` with `none` for no limit
    and a list for one dilation per head, `global(positions...)`, `causal()`, `|`, `&`, parentheses, and
    terms with a name (`lf.sparsity`, `lf.term`).
    The text of a `Predicate` without one is read where it was written and as long as that lives.
    The last results are kept. Under `torch.compile(fullgraph=True)` parse outside: a parser cannot be traced.

    Raises:
        PatternError: malformed text, with the column, what was wanted there and what came.
    """
    from lf_backend.pattern import grammar  # loads the parser generator, which most programs never need

    return grammar.read(text)


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
    if isinstance(pattern, Named):
        return {"term": pattern.name, **{name: _listing(value) for name, value in pattern.arguments}}
    if isinstance(pattern, Predicate):
        raise PatternError(
            f"a predicate is code and cannot be written as data: {pattern}; put @lf.term before a function "
            "that returns it, and the function's name and arguments are written"
        )
    raise PatternError(f"pattern: a lf_backend pattern wanted, got {pattern!r}")


def from_dict(data: Mapping[str, Any], where: str = "pattern") -> Pattern:
    """Read a pattern from `to_dict`'s form. Unknown and missing keys are errors that name them."""
    if not isinstance(data, Mapping):
        raise PatternError(f"{where}: a mapping wanted, got {data!r}")
    name, known = data.get("term"), sorted({*_DICT_KEYS, *named.names()})
    if not isinstance(name, str) or name not in known:
        advice = named.suggestion(str(name))
        raise PatternError(f"{where}.term: one of {known} wanted, got {name!r}{advice}")
    required, optional = _DICT_KEYS[name] if name in _DICT_KEYS else named.parameters(name)
    given = set(data) - {"term"}
    if unknown := given - required - optional:
        raise PatternError(
            f"{where}: keys {sorted(required | optional)} wanted, got unknown {sorted(unknown)}"
        )
    if missing := required - given:
        raise PatternError(f"{where}: keys {sorted(required)} wanted, missing {sorted(missing)}")
    arguments = {key: value for key, value in data.items() if key != "term"}
    if name in _JOINED:
        return _joined(name, arguments["terms"], f"{where}.terms")
    try:
        if name == "global":
            return Global(*_listed("positions", arguments["positions"], 0))
        return named.call(name, **arguments)
    except PatternError as error:
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


_JOINED: dict[str, Callable[..., Pattern]] = {"union": union, "intersection": intersection}
_DICT_KEYS: dict[str, tuple[set[str], set[str]]] = {  # required and optional
    "window": ({"left", "right"}, {"dilation"}),
    "global": ({"positions"}, set()),
    "causal": (set(), set()),
    "union": ({"terms"}, set()),
    "intersection": ({"terms"}, set()),
}


def _joined(name: str, terms: Any, where: str) -> Pattern:
    items = enumerate(_listed(where, terms, 1))
    patterns = [from_dict(term, f"{where}[{index}]") for index, term in items]
    try:
        return _JOINED[name](*patterns)
    except PatternError as error:
        raise PatternError(f"{where}: {error}") from None


def _listed(name: str, value: Any, least: int) -> Sequence[Any]:
    if not isinstance(value, list | tuple) or len(value) < least:
        raise PatternError(f"{name}: a list{' of at least one' * least} wanted, got {value!r}")
    return value


def _listing(value: Any) -> Any:
    return [_listing(item) for item in value] if isinstance(value, tuple) else value
