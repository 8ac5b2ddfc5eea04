"""The choice of the backend that runs a problem on a machine, with reasons. Pure and cached.

A backend asked for by name is never substituted: it runs, or the call fails with all its reasons.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from functools import lru_cache

from lf_backend.backend import Backend
from lf_backend.dispatch import measured, registry
from lf_backend.dispatch.registry import Broken
from lf_backend.dispatch.selection import Selection, Verdict
from lf_backend.errors import BuildError, LFError, UnsupportedError
from lf_backend.problem import Coverage, Feature, Machine, Problem

_ruled_out: dict[tuple[str, Problem], str] = {}
_in_use: ContextVar[str] = ContextVar("lf_backend.use_backend", default="")


def select(problem: Problem, machine: Machine, asked: str | None = None) -> Selection:
    """Decide. Raises nothing for a problem nobody can run: `chosen` is None then.

    Raises:
        LFError: `asked` is no backend's name.
    """
    # What a decision depends on and may change is part of its key: no thread keeps an old one for a new.
    return _select(problem, machine, asked or None, *decisive())


def decisive() -> tuple[int, int]:
    """Return what changes whenever a decision may become another one: counts of backends and of failures."""
    return registry.version(), len(_ruled_out)


@lru_cache(maxsize=4096)
def _select(problem: Problem, machine: Machine, asked: str | None, version: int, failures: int) -> Selection:
    entries = registry.backends()
    if asked is not None and asked not in entries:
        raise unknown(asked)
    row = measured.nearest(problem, machine)
    names = measured.ordered(list(entries), row)
    verdicts = tuple(_verdict(name, entries[name], problem, machine) for name in names)
    able = [verdict for verdict in verdicts if not verdict.reasons]
    if asked is None:
        able = [verdict for verdict in able if not verdict.by_name_alone]
    else:
        able = [verdict for verdict in able if verdict.backend == asked]
    return Selection(problem, machine, verdicts, able[0].backend if able else None, asked, row)


def _verdict(name: str, entry: Backend | Broken, problem: Problem, machine: Machine) -> Verdict:
    by_name = isinstance(entry, Backend) and entry.by_name_alone(problem)
    return Verdict(name, _reasons(entry, problem, machine), by_name)


def _reasons(entry: Backend | Broken, problem: Problem, machine: Machine) -> tuple[str, ...]:
    if isinstance(entry, Broken):
        return (f"could not be loaded: {entry.error}",)
    failure = _ruled_out.get((entry.name, _kind(problem)))
    return (*entry.reasons(problem, machine), *(() if failure is None else (failure,)))


def rule_out(selection: Selection, error: BuildError) -> None:
    """Remember that the chosen backend could not be built for the kind of problem: a reason from now on.

    Args:
        error: what it said.
    """
    assert selection.chosen is not None, "a backend that was built was chosen"
    _ruled_out[selection.chosen, _kind(selection.problem)] = " ".join(str(error).split())


def _kind(problem: Problem) -> Problem:
    """Return the part of a problem that a kernel is built for, so that another length does not fail again.

    What a rule does to a compiler says nothing about others; they differ in more than a problem says.
    """
    if Feature.PREDICATE in problem.features:
        return problem
    return replace(problem, batch=0, queries=0, keys=0, window=0, coverage=Coverage.PART)


def chosen(selection: Selection) -> Backend:
    """The backend of a selection.

    Raises:
        UnsupportedError: there is none; the message holds every reason.
    """
    if selection.chosen is None:
        who = f"backend {selection.asked!r}" if selection.asked else "no backend"
        verb = "cannot run" if selection.asked else "can run"
        raise UnsupportedError(f"{who} {verb} this call\n{selection}", selection)
    return registry.get(selection.chosen)


def unknown(name: str) -> LFError:
    """The error for a name that no backend has."""
    return LFError(f"backend: one of {list(registry.backends())} wanted, got {name!r}")


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Within the block every call that names no backend asks for this one.

    Raises:
        LFError: no backend has that name.
    """
    if name not in registry.backends():
        raise unknown(name)
    token = _in_use.set(name)
    try:
        yield
    finally:
        _in_use.reset(token)


def preference() -> str:
    """The name set by `use_backend`, else by the variable LF_BACKEND, else ""."""
    return _in_use.get() or os.environ.get("LF_BACKEND", "")
