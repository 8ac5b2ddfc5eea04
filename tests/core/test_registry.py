"""The registry: one list, complete classes only, and plug-ins that break without breaking others."""

from importlib import metadata

import pytest
import torch

import lf_backend as lf
from lf_backend.backends.reference import Reference
from lf_backend.dispatch import registry
from lf_backend.dispatch.priorities import PLACES
from lf_backend.problem import Feature


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
    ranks = [(-registry.priority(entry), name) for name, entry in registry.working().items()]
    assert ranks == sorted(ranks)


def test_one_table_has_the_place_of_every_built_in_backend_and_why() -> None:
    ours = [
        entry for entry in registry.working().values() if type(entry).__module__.startswith("lf_backend.")
    ]
    built_in = {entry.name for entry in ours}
    assert built_in == PLACES.keys()
    assert all(place.because for place in PLACES.values())
    assert len({place.priority for place in PLACES.values()}) == len(PLACES)
    assert list(PLACES) == sorted(PLACES, key=lambda name: -PLACES[name].priority)
    for name, place in PLACES.items():
        backend = registry.get(name)
        assert registry.priority(backend) == place.priority == getattr(backend, "priority", place.priority)


def test_those_that_say_by_name_run_only_by_name() -> None:
    """What can run everything everywhere comes before them."""
    everything = registry.get("blocked").capabilities
    assert everything.features == set(Feature) and everything.devices is None and not everything.packages
    below = {name for name, place in PLACES.items() if place.priority < PLACES["blocked"].priority}
    by_name = {name for name, place in PLACES.items() if place.because.startswith("by name")}
    assert by_name == below - {"sdpa"}, "which measured calls put first"


def test_a_broken_plug_in_is_a_visible_verdict(fresh: pytest.MonkeyPatch) -> None:
    def load():
        raise OSError("libfast.so: cannot open shared object file")

    fresh.setattr(
        metadata, "entry_points", lambda group: [Point("fast", load)] if "backends" in group else []
    )
    q = torch.randn(1, 1, 5, 4)
    selection = lf.explain(q, q, q, lf.Window(1, 1))
    assert "fast        cannot: could not be loaded: OSError: libfast.so: cannot open" in str(selection)
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
