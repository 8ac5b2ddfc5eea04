"""Patterns that say where documents begin, as calls that are given `documents`: one way to run both."""

from __future__ import annotations

from dataclasses import replace

from lf_backend.ops.arguments import Arguments
from lf_backend.pattern.interned import intern
from lf_backend.pattern.named import Named
from lf_backend.pattern.packed import SameDocument
from lf_backend.pattern.terms import Intersection, Pattern, Window, intersection


def lifted(a: Arguments) -> Arguments:
    """Return the same call with the documents of its pattern as a tensor, if they lie over all of it.

    The pattern's own positions are those of the row, and those of a call's documents count from their starts:
    only what is a matter of distance alone is the same in both.
    """
    if a.documents is not None or a.brings_globals:
        return a
    pattern = a.resolved
    if not pattern.lowered.others:
        return a
    terms = pattern.terms if isinstance(pattern, Intersection) else (pattern,)
    rules = [rule for term in terms if (rule := _rule(term)) is not None]
    rest = [term for term in terms if _rule(term) is None]
    within = intersection(*rest) if rest else Window(None, None)
    if len(rules) != 1 or within.global_positions or within.lowered.others:
        return a
    documents = rules[0].ids(a.k.shape[2], a.k.device).expand(a.k.shape[0], -1)
    return replace(a, pattern=intern(within), documents=documents)


def _rule(pattern: Pattern) -> SameDocument | None:
    found = pattern.made if isinstance(pattern, Named) else pattern
    return found if isinstance(found, SameDocument) else None
