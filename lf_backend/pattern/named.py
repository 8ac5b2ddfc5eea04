"""Terms with a name: whatever a function makes of numbers, as a value that reads and writes text.

    @lf.term
    def every(step: int) -> lf.Pattern:
        return lf.Predicate(lambda head, query, key: key % step == 0)

    every(64)                                    # prints as every(64)
    lf.parse("window(8, 8) | every(64)")         # command lines, configurations, JSON

The name stands for the code: who reads it must have imported the module that defines the term.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import lru_cache, wraps
from threading import Lock
from typing import Any, ParamSpec
from weakref import WeakValueDictionary

from lf_backend._integers import integer
from lf_backend.errors import PatternError
from lf_backend.pattern.lowered import Conjunction
from lf_backend.pattern.terms import Causal, Global, Index, Pattern, Window

P = ParamSpec("P")
Maker = Callable[..., Pattern]

BUILT_IN: dict[str, Maker] = {"window": Window, "global": Global, "causal": Causal}
_RESERVED = {*BUILT_IN, "union", "intersection", "predicate", "none"}
_registered: dict[str, Maker] = {}
_living: WeakValueDictionary[tuple[Any, ...], Pattern] = WeakValueDictionary()  # made, by maker and arguments
_lock = Lock()


@dataclass(frozen=True)
class Named(Pattern):
    """A named term with its arguments; equal to the same term with equal ones.

    Attributes:
        name: of the term.
        arguments: (name, value) of all its parameters; a value is an int, None, or a tuple of values.
        made: the pattern itself.
    """

    name: str
    arguments: tuple[tuple[str, Any], ...]
    made: Pattern = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "made", _made(maker(self.name), self.arguments))
        super().__post_init__()

    def sees(self, head: Index, query: Index, key: Index) -> Any:
        return self.made.sees(head, query, key)

    def conjunctions(self) -> tuple[Conjunction, ...]:
        return self.made.conjunctions()

    def _is_cut(self) -> bool:
        return self.made.is_causal

    @property
    def heads(self) -> int | None:
        return self.made.heads

    def _write(self) -> str:
        """Write the call: parameters without a default by place, those that differ from it by name."""
        words = []
        for name, value in self.arguments:
            parameter = inspect.signature(maker(self.name)).parameters[name]
            if parameter.default is parameter.empty and parameter.kind is not parameter.KEYWORD_ONLY:
                words.append(_written(value))
            elif value != parameter.default:
                words.append(f"{name}={_written(value)}")
        return f"{self.name}({', '.join(words)})"


def term(make: Callable[P, Pattern]) -> Callable[P, Pattern]:
    """Give what a function makes a name, the function's own; for use as a decorator.

    The function takes ints, None, and lists of them (tensors are read as lists), and returns a pattern
    that depends on nothing else.

    Raises:
        PatternError: a name that no text can hold or that is taken, or parameters that have no name.
    """
    name, parameters = make.__name__, inspect.signature(make).parameters.values()
    if not (name.isidentifier() and name.isascii() and name.islower()) or name in _RESERVED:
        raise PatternError(f"term: a lower-case name besides {sorted(_RESERVED)} wanted, got {name!r}")
    if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) or p.name == "term" for p in parameters):
        raise PatternError(
            f"term: named parameters, none of them 'term', wanted, got {name}{inspect.signature(make)}"
        )

    @wraps(make)
    def named(*args: P.args, **kwargs: P.kwargs) -> Pattern:
        bound = inspect.signature(make).bind(*args, **kwargs)
        bound.apply_defaults()
        return Named(name, tuple((key, _value(key, value)) for key, value in bound.arguments.items()))

    taken = inspect.unwrap(_registered.setdefault(name, named))
    if getattr(taken, "__code__", taken) != getattr(make, "__code__", make):
        raise PatternError(f"term: another name than {name!r} wanted, which is taken by other code")
    return named


def names() -> tuple[str, ...]:
    """Return the names of all terms that text may hold, built in first."""
    return (*BUILT_IN, *sorted(_registered))


def suggestion(name: str) -> str:
    """Return the words to add to an error about an unknown name, none if no term is near it."""
    near = get_close_matches(name.lower(), names(), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def maker(name: str) -> Maker:
    """The function behind a name.

    Raises:
        PatternError: nobody has registered it.
    """
    if name not in _registered:
        advice = suggestion(name) or "; import what defines it"
        raise PatternError(f"term: one of {list(names())} wanted, got {name!r}{advice}")
    found: Maker = inspect.unwrap(_registered[name])
    return found


def parameters(name: str) -> tuple[set[str], set[str]]:
    """Required and optional parameters of a named term."""
    found = inspect.signature(maker(name)).parameters.values()
    optional = {p.name for p in found if p.default is not p.empty}
    return {p.name for p in found} - optional, optional


def call(name: str, *args: Any, **kwargs: Any) -> Pattern:
    """The pattern that text or data asks for.

    Raises:
        PatternError: arguments that the term does not take.
    """
    make = BUILT_IN.get(name) or _registered[name]
    try:
        inspect.signature(make).bind(*args, **kwargs)  # its errors do not speak of classes
    except TypeError as error:
        raise PatternError(str(error)) from None
    return make(*args, **kwargs)


@lru_cache(maxsize=16)  # patterns that are written where they are used are dropped after every use
def _made(make: Maker, arguments: tuple[tuple[str, Any], ...]) -> Pattern:
    """One object for equal arguments as long as it lives: what is derived from its rules is found again."""
    found = _living.get((make, arguments))
    if found is not None:
        return found
    made: Any = make(**{key: value for key, value in arguments})
    if not isinstance(made, Pattern):
        raise PatternError(f"{make.__name__}: a function that returns a pattern wanted, got {made!r}")
    with _lock:
        return _living.setdefault((make, arguments), made)


def _value(name: str, value: Any) -> Any:
    """An argument as an int, None, or a tuple of values."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, list | tuple | range):
        return tuple(_value(name, item) for item in value)
    return None if value is None else integer(name, value)


def _written(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_written, value))}]"
    return str(value).lower()
