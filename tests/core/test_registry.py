"""The registry: one list, complete classes only, and plug-ins that break without breaking others."""

from importlib import metadata

import pytest
import torch

import lf_backend as lf
from lf_backend.backends.reference import Reference
from lf_backend.dispatch import registry


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch):
    """A registry that has discovered nothing yet, put back afterwards."""
    monkeypatch.setattr(registry, "_backends", {})
    monkeypatch.setattr(registry, "_discovered", False)
    registry._bump()
    yield monkeypatch
    registry._bump()


class Point:
    """An entry point without a distribution."""

    def __init__(self, name: str, load) -> None:
        self.name = name
        self.load = load


def test_built_in_backends_are_found_by_listing_the_folder() -> None:
    assert {"blocked", "reference"} <= registry.working().keys()


def test_order_is_priority_then_name() -> None:
    ranks = [(-entry.priority, name) for name, entry in registry.working().items()]
    assert ranks == sorted(ranks)


def test_a_broken_plug_in_is_a_visible_verdict(fresh: pytest.MonkeyPatch) -> None:
    def load():
        raise OSError("libfast.so: cannot open shared object file")

    fresh.setattr(
        metadata, "entry_points", lambda group: [Point("fast", load)] if "backends" in group else []
    )
    q = torch.randn(1, 1, 5, 4)
    selection = lf.explain(q, q, q, lf.Window(1, 1))
    assert "fast       cannot: could not be loaded: OSError: libfast.so: cannot open" in str(selection)
    assert selection.chosen not in (None, "fast")
    with pytest.raises(lf.UnsupportedError, match=r"backend 'fast' cannot run this call[\s\S]*libfast.so"):
        lf.attention(q, q, q, lf.Window(1, 1), backend="fast")


def test_a_plug_in_that_is_no_backend_is_broken_too(fresh: pytest.MonkeyPatch) -> None:
    fresh.setattr(
        metadata, "entry_points", lambda group: [Point("odd", lambda: int)] if "backends" in group else []
    )
    entry = registry.backends()["odd"]
    assert isinstance(entry, registry.Broken) and "a subclass of lf_backend.Backend wanted" in entry.error


def test_registering_what_is_incomplete() -> None:
    with pytest.raises(lf.LFError, match=r"a subclass of lf_backend\.Backend wanted, got 3"):
        registry.register(3)
    half = type("Half", (lf.Backend,), {"forward": lambda self, call: None})
    with pytest.raises(lf.LFError, match=r"Half lacks \['backward'\]"):
        registry.register(half)
    nameless = type("Nameless", (half,), {"backward": lambda self, *rest: None})
    with pytest.raises(lf.LFError, match=r"Nameless\.name: str wanted"):
        registry.register(nameless)


def test_a_name_is_taken_once() -> None:
    other = type("Other", (Reference,), {})
    with pytest.raises(lf.LFError, match="backend name 'reference' is taken by Reference"):
        registry.register(other)
    assert registry.register(Reference) is Reference  # the same class again is no conflict
