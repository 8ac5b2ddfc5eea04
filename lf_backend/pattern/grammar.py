"""The grammar of a pattern's string, and the pattern behind each parse tree. Nothing is evaluated.

Loaded by `notation.parse` when the first string is read, because the parser generator takes some 60 ms.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from lark import Lark, Token, Transformer, UnexpectedInput, v_args
from lark.exceptions import UnexpectedToken, VisitError

from lf_backend.errors import PatternError
from lf_backend.pattern import named
from lf_backend.pattern.predicate import living
from lf_backend.pattern.terms import Pattern, intersection, union

_GRAMMAR = r"""
    ?union: meet | meet ("|" meet)+ -> either
    ?meet: term | term ("&" term)+ -> both
    ?term: TERM "(" _arguments? ")" -> call | PREDICATE -> predicate | "(" union ")"
    _arguments: value ("," value)* ("," named)* | named ("," named)*
    named: NAME "=" value
    ?value: INT -> integer | NONE -> none | "[" (value ("," value)*)? "]" -> items

    TERM: /(TERMS)\b/
    PREDICATE: /predicate<.+? at 0x[0-9a-f]+>/
    INT: /-?[0-9]{1,18}\b/
    NONE.1: /[nN]one\b/
    NAME: /[A-Za-z_]\w*/
    %ignore /\s+/
"""
_WORDS = {
    "INT": "an int",
    "NAME": "a name",
    "NONE": "none",
    "$END": "the end",
}


@lru_cache(maxsize=8)
def _parser(names: tuple[str, ...]) -> Lark:
    """The parser of a language with these terms."""
    grammar = _GRAMMAR.replace("TERMS", "|".join(names))
    return Lark(grammar, start="union", parser="lalr", propagate_positions=True)


def read(text: Any) -> Pattern:
    """The pattern of a string.

    Raises:
        PatternError: no string, or a malformed one, with the column, what was wanted and what came.
    """
    if not isinstance(text, str):
        raise PatternError(f"pattern: a string wanted, got {text!r}")
    try:
        pattern: Pattern = _Build(text).transform(_parser(named.names()).parse(text))
    except UnexpectedInput as error:
        raise _malformed(text, error) from None
    except VisitError as error:
        raise error.orig_exc from None
    return pattern


@v_args(inline=True)
class _Build(Transformer[Token, Any]):
    """Parse tree to pattern, from the leaves up; each method is a rule of the grammar."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self._text = text

    def either(self, *patterns: Pattern) -> Pattern:
        return union(*patterns)

    def both(self, *patterns: Pattern) -> Pattern:
        return intersection(*patterns)

    def call(self, term: Token, *arguments: Any) -> Pattern:
        by_name: dict[str, Any] = {}
        try:
            for name, value in (argument for argument in arguments if isinstance(argument, tuple)):
                if name in by_name:
                    raise PatternError(f"{name} given twice")
                by_name[name] = value
            given = [argument for argument in arguments if not isinstance(argument, tuple)]
            return named.call(term, *given, **by_name)
        except PatternError as error:
            raise PatternError(f"column {term.column} of {self._text!r}: {error}") from None

    def predicate(self, text: Token) -> Pattern:
        return living(str(text))

    def named(self, name: Token, value: Any) -> tuple[str, Any]:
        return str(name), value

    def items(self, *values: Any) -> list[Any]:
        return list(values)

    def integer(self, digits: Token) -> int:
        return int(digits)

    def none(self, word: Token) -> None:
        return None


def _malformed(text: str, error: UnexpectedInput) -> PatternError:
    """The error in our words: the column, what was wanted there and what came."""
    ended = isinstance(error, UnexpectedToken) and error.token.type == "$END"
    at = len(text) if ended or error.pos_in_stream is None else error.pos_in_stream
    parser = _parser(named.names())
    before = parser.parse_interactive(text[:at])
    before.exhaust_lexer()
    accepted: set[str] = before.accepts()
    accepted.discard("PREDICATE")  # nobody writes one by hand
    wanted = sorted((_word(parser, name) for name in accepted), key=lambda word: (word[0] == "'", word))
    got = re.match(r"\w+|.", text[at:], re.DOTALL)
    came = repr(got[0]) if got else "the end"
    advice = named.suggestion(got[0]) if got and "TERM" in accepted else ""
    return PatternError(f"column {at + 1} of {text!r}: {' or '.join(wanted)} wanted, got {came}{advice}")


def _word(parser: Lark, terminal: str) -> str:
    if terminal == "TERM":
        return ", ".join(named.names())
    return _WORDS.get(terminal) or repr(parser.get_terminal(terminal).pattern.value)
