"""`patch` itself, with adapters made up here: discovery, refusals, all or nothing, undo."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from torch import nn

import lf_backend as lf
from lf_backend import patching
from lf_backend.patching import apply


class Doubling(nn.Linear):
    """What the made-up integration turns a linear layer into."""

    def forward(self, x: Any) -> Any:
        return 2 * super().forward(x)


class Adapter(patching.Adapter):
    name = "doubling"

    def plan(self, model: nn.Module, pattern: patching.Patterns) -> Sequence[patching.Swap]:
        found = [(path, x) for path, x in model.named_modules() if type(x) is nn.Linear]
        return [patching.Swap(path, x, Doubling, note="twice") for path, x in found]

    def refusal(self, model: nn.Module) -> str:
        return "looks for Linear; none is here"


class Point:
    """An entry point."""

    def __init__(self, name: str, what: Any) -> None:
        self.name, self.what = name, what

    def load(self) -> Any:
        if isinstance(self.what, Exception):
            raise self.what
        return self.what


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make these, by name, the only installed integrations."""

    def install(**points: Any) -> None:
        found = [Point(name, what) for name, what in points.items()]
        monkeypatch.setattr(apply.metadata, "entry_points", lambda group: found)

    return install


def test_an_adapter_is_a_plan_and_the_rest_is_done(install: Any) -> None:
    install(doubling=Adapter())
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    with lf.patch(model) as patch:
        assert [type(x) for x in model] == [Doubling, nn.ReLU, Doubling]
        assert str(patch.report).splitlines()[1].split() == ["0", "Linear", "-", "twice"]
    assert [type(x) for x in model] == [nn.Linear, nn.ReLU, nn.Linear]


def test_the_model_itself_may_be_patched(install: Any) -> None:
    install(doubling=Adapter())
    model = nn.Linear(2, 2)
    assert "(model)  Linear" in str(lf.patch(model).report)
    assert type(model) is Doubling


def test_no_integration() -> None:
    with pytest.raises(lf.PatchError, match=r"model: a torch.nn.Module wanted, got str"):
        lf.patch("model")  # type: ignore[arg-type]


def test_none_is_installed(install: Any) -> None:
    install()
    with pytest.raises(lf.PatchError, match=r"in Linear; looked at Linear\n  no integration is installed"):
        lf.patch(nn.Linear(2, 2))


def test_a_broken_integration_is_a_reason_and_no_obstacle(install: Any) -> None:
    broken = {"absent": ImportError("No module named 'gone'"), "wrong": object}
    install(**broken, doubling=Adapter())
    lf.patch(nn.Linear(2, 2))
    with pytest.raises(lf.PatchError) as raised:
        lf.patch(nn.ReLU())
    text = str(raised.value)
    assert "absent: could not be loaded: ImportError: No module named 'gone'" in text
    assert "wrong: could not be loaded: LFError: an instance of lf_backend.patching.Adapter wanted" in text
    assert "doubling: looks for Linear; none is here" in text


def test_a_plan_that_fails_is_a_reason(install: Any) -> None:
    class Failing(Adapter):
        def plan(self, model: nn.Module, pattern: patching.Patterns) -> Sequence[patching.Swap]:
            raise KeyError("layers")

    install(failing=Failing(), doubling=Adapter())
    lf.patch(nn.Linear(2, 2))
    with pytest.raises(lf.PatchError, match="failing: failed: KeyError: 'layers'"):
        lf.patch(nn.ReLU())


def test_a_plan_is_done_whole_or_not_at_all(install: Any) -> None:
    class Slotted(nn.Linear):
        def __setattr__(self, name: str, value: Any) -> None:
            if name == "__class__" and not isinstance(self, Doubling):
                raise MemoryError("in the middle")
            super().__setattr__(name, value)

    class Both(Doubling, Slotted):
        pass

    class Half(Adapter):
        def plan(self, model: nn.Module, pattern: patching.Patterns) -> Sequence[patching.Swap]:
            return [patching.Swap(str(index), x, Both) for index, x in enumerate(model.children())]

    install(half=Half())
    model = nn.Sequential(nn.Linear(2, 2), Slotted(2, 2))
    with pytest.raises(MemoryError, match="in the middle"):
        lf.patch(model)
    assert [type(x) for x in model] == [nn.Linear, Slotted]
    assert not any("lf_mark" in vars(x) for x in model)


def test_a_replacement_must_be_a_subclass(install: Any) -> None:
    class Wrong(Adapter):
        def plan(self, model: nn.Module, pattern: patching.Patterns) -> Sequence[patching.Swap]:
            return [patching.Swap("", model, Doubling)]

    install(wrong=Wrong())
    with pytest.raises(lf.PatchError, match=r"model: a replacement that is a subclass of .*ReLU wanted"):
        lf.patch(nn.ReLU())


def test_undo_sees_that_somebody_else_came_later(install: Any) -> None:
    class Later(Doubling):
        pass

    install(doubling=Adapter())
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    patch = lf.patch(model)
    model[1].__class__ = Later
    with pytest.raises(lf.PatchError, match=r"undo: 1 was changed after the patch, class .* wanted, got .*"):
        patch.undo()
    assert type(model[0]) is Doubling
    model[1].__class__ = Doubling
    patch.undo()
    assert [type(x) for x in model] == [nn.Linear, nn.Linear]
