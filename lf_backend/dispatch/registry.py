"""The one list of backends: built in (every module of `lf_backend.backends`), installed by others
(entry points of the group "lf_backend.backends"), or registered by hand.

A plug-in that cannot be imported is kept as a `Broken` entry: visible in every explanation, never an
ImportError for those who do not use it.

Nobody sees a registry that is half filled. Every thread that needs it before it is complete loads all
modules itself, without a lock of ours, as loading takes the locks of Python's imports; the first to be done
publishes. Only a module that asks while this thread loads it sees what this thread has found so far.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from typing import Any, TypeGuard, get_origin

from lf_backend.backend import Backend, Capabilities
from lf_backend.dispatch.priorities import PLACES
from lf_backend.errors import LFError

ENTRY_POINTS = "lf_backend.backends"


@dataclass(frozen=True)
class Broken:
    """A backend that was found and could not be loaded."""

    name: str
    error: str


Entry = Backend | Broken


class _Loading(threading.local):
    """Return the backends that this thread has found so far while it discovers, None otherwise."""

    found: dict[str, Entry] | None = None


_backends: dict[str, Entry] = {}
_version = 0
_discovered = False
_lock = threading.Lock()  # of the three above; never held while modules are loaded
_loading = _Loading()


def register(backend: type[Backend]) -> type[Backend]:
    """Add a backend class; usable as a decorator. A name is taken once.

    Raises:
        LFError: not a complete backend class, or the name is taken.
    """
    _check(backend)
    made = backend()
    with _lock:
        _check_free(backend, _backends)
        _put(backend.name, made)
    return backend


def unregister(name: str) -> None:
    """Remove a backend by name; for tests of plug-ins."""
    _discover()
    with _lock:
        if _backends.pop(name, None) is not None:
            _bump()


def backends() -> dict[str, Entry]:
    """All backends by name, highest priority first, broken ones last."""
    _discover()
    with _lock:
        entries = {**(_loading.found or {}), **_backends}
    return dict(sorted(entries.items(), key=lambda item: _rank(item[1])))


def working() -> dict[str, Backend]:
    """All backends that could be loaded."""
    return {name: entry for name, entry in backends().items() if isinstance(entry, Backend)}


def get(name: str) -> Backend:
    """Return the backend of a name that a selection holds; cheap, as every call asks."""
    entry = _backends.get(name)
    return working()[name] if entry is None or isinstance(entry, Broken) else entry


def version() -> int:
    """A number that changes with the registry: the key of cached decisions."""
    if not _discovered:
        _discover()
    return _version


def priority(backend: Backend | type[Backend]) -> Any:
    """The priority of a backend until it is measured: the table's, or what its class says."""
    place = PLACES.get(backend.name)
    return getattr(backend, "priority", None) if place is None else place.priority


def _rank(entry: Entry) -> tuple[int, int, str]:
    return (0, -priority(entry), entry.name) if isinstance(entry, Backend) else (1, 0, entry.name)


def _is_backend(value: Any) -> TypeGuard[type[Backend]]:
    """A class of them; Python 3.10 takes an alias such as `tuple[int, ...]` for a class as well."""
    return inspect.isclass(value) and get_origin(value) is None and issubclass(value, Backend)


def _check(backend: type[Backend]) -> None:
    if not _is_backend(backend):
        raise LFError(f"a subclass of lf_backend.Backend wanted, got {backend!r}")
    if inspect.isabstract(backend):
        raise LFError(f"{backend.__qualname__} lacks {sorted(backend.__abstractmethods__)}")
    for attribute, kind in (("name", str), ("capabilities", Capabilities)):
        if not isinstance(getattr(backend, attribute, None), kind):
            raise LFError(f"{backend.__qualname__}.{attribute}: {kind.__name__} wanted")
    if not isinstance(priority(backend), int):
        raise LFError(f"{backend.__qualname__}.priority: int wanted")


def _check_free(backend: type[Backend], entries: dict[str, Entry]) -> None:
    taken = entries.get(backend.name)
    if isinstance(taken, Backend) and type(taken) is not backend:
        raise LFError(f"backend name {backend.name!r} is taken by {type(taken).__qualname__}")


def _put(name: str, entry: Entry) -> None:
    _backends[name] = entry
    _bump()


def _bump() -> None:
    global _version
    _version += 1


def _discover() -> None:
    global _discovered
    if _discovered or _loading.found is not None:
        return
    found: dict[str, Entry] = {}
    _loading.found = found
    try:
        for name, load in _found():
            try:
                for backend in load():
                    _check(backend)
                    _check_free(backend, {**_backends, **found})
                    found[backend.name] = backend()
            except Exception as error:  # whatever a plug-in does wrong is its verdict, not our crash
                found[name] = Broken(name, f"{type(error).__name__}: {error}")
    finally:
        _loading.found = None
    with _lock:
        if not _discovered:
            _backends.update({name: entry for name, entry in found.items() if name not in _backends})
            _discovered = True
            _bump()


def _found() -> Iterator[tuple[str, Callable[[], list[type[Backend]]]]]:
    package = importlib.import_module("lf_backend.backends")
    for module in pkgutil.iter_modules(package.__path__):
        yield module.name, partial(_built_in, f"{package.__name__}.{module.name}")
    for point in metadata.entry_points(group=ENTRY_POINTS):
        yield point.name, partial(_loaded, point)


def _built_in(name: str) -> list[type[Backend]]:
    found = [
        value
        for value in vars(importlib.import_module(name)).values()
        if _is_backend(value) and value.__module__.startswith(name)
    ]
    if not found:
        raise LFError(f"a Backend subclass wanted in {name}, got none")
    return found


def _loaded(point: metadata.EntryPoint) -> list[type[Backend]]:
    return [point.load()]
