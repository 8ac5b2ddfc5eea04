"""`patch`: run an existing model's attention through this library, and take it back.

An *adapter* knows one family of models. It only plans: which modules become instances of which class,
with which pattern. What must never go wrong is written once, here: nothing is changed unless the whole
plan holds, a failure half-way is rolled back, and undoing gives back the very same objects.

A module is changed by giving it another class, a subclass of its own: its parameters, buffers and hooks
are not touched, so the state dict keeps its keys and no other model notices. All that is added is one
value, the module's `lf_mark`. It travels with the module, so a deep copy or an unpickled model is
patched as well, on its own, and `Patch.of(copy)` is the handle to undo it.

Adapters are found by entry points of the group "lf_backend.integrations", each naming an instance. One
that cannot be loaded is a reason in the error that says why nothing fits, never an ImportError.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from types import TracebackType
from typing import Any, ClassVar

from torch import nn

from lf_backend import registry, selection
from lf_backend.checks import check_pattern
from lf_backend.errors import LFError, PatchError, PatternError
from lf_backend.pattern import Pattern

ENTRY_POINTS = "lf_backend.integrations"

Patterns = Pattern | tuple[Pattern, ...] | None


@dataclass(frozen=True)
class Mark:
    """What a patched module carries as `lf_mark`: a value, copied and pickled with the module.

    Attributes:
        before, after: the module's class without and with the patch.
        pattern: what the module runs now, None if it is patched for another reason.
        backend: name of the backend that must run it, None for the automatic choice.
        note: what a user should know about this module, for the report.
    """

    before: type[nn.Module]
    after: type[nn.Module]
    pattern: Pattern | None
    backend: str | None
    note: str


@dataclass(frozen=True, eq=False)
class Swap:
    """One module of a plan. Its new class reads `self.lf_mark.pattern` and `self.lf_mark.backend`.

    Attributes:
        path: the module's name in the model.
        module: the module itself.
        to: its new class, a subclass of its present one.
        pattern: what the module will run, None if it runs no attention itself.
        note: what is worth saying aloud about it, for the report.
    """

    path: str
    module: nn.Module
    to: type[nn.Module]
    pattern: Pattern | None = None
    note: str = ""


class Adapter(ABC):
    """What an integration implements; it never changes a module itself.

    Class attributes:
        name: how errors and reports call the integration.
    """

    name: ClassVar[str]

    @abstractmethod
    def plan(self, model: nn.Module, pattern: Patterns) -> Sequence[Swap]:
        """The modules to patch, none if the adapter knows nothing in this model.

        Args:
            model: anything; must be left as it is.
            pattern: what the layers shall run: one pattern for all, one per layer, or None for
                what the model's own configuration says.

        Raises:
            LFError: the model is known but cannot be patched, or not with this pattern.
        """

    @abstractmethod
    def refusal(self, model: nn.Module) -> str:
        """Why the plan for this model is empty: what was looked for, and what came close."""


@dataclass(frozen=True)
class Row:
    """One patched module of a report."""

    path: str
    module: str
    pattern: Pattern | None
    note: str


@dataclass(frozen=True)
class Report:
    """What a patch changed; `str()` is the table that users read."""

    model: str
    backend: str | None
    rows: tuple[Row, ...]

    def __str__(self) -> str:
        how = f"by backend {self.backend!r} only" if self.backend else "by the backend that suits each call"
        cells = [(row.path or "(model)", row.module, str(row.pattern or "-"), row.note) for row in self.rows]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [f"{len(self.rows)} modules of {self.model} patched; attention runs {how}"]
        for row in cells:
            line = "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True))
            lines.append("  " + line.rstrip())
        return "\n".join(lines)


class Patch:
    """A patched model's handle: `undo()`, `report`, and a context manager that undoes on exit."""

    report: Report

    def __init__(self, model: nn.Module, modules: dict[str, nn.Module]) -> None:
        self._modules = modules
        marks = {path: _mark(module) for path, module in modules.items()}
        rows = tuple(
            Row(path, mark.before.__name__, mark.pattern, mark.note) for path, mark in marks.items() if mark
        )
        backend = next((mark.backend for mark in marks.values() if mark), None)
        self.report = Report(type(model).__name__, backend, rows)

    @classmethod
    def of(cls, model: nn.Module) -> Patch:
        """The handle of a model that is patched already, for example a deep copy of a patched one.

        Raises:
            PatchError: the model is not patched.
        """
        modules = {path: module for path, module in _check_model(model).named_modules() if _mark(module)}
        if not modules:
            raise PatchError(f"model: a patched model wanted, got {type(model).__name__} without any patch")
        return cls(model, modules)

    def undo(self) -> None:
        """Give every module its own class back; nothing of the patch stays.

        Raises:
            PatchError: undone already, or another tool has changed a module's class since.
        """
        marks = {path: mark for path, module in self._modules.items() if (mark := _mark(module))}
        if not marks:
            raise PatchError("undo: the patch is undone already")
        for path, mark in marks.items():
            if (now := type(self._modules[path])) is not mark.after:
                raise PatchError(
                    f"undo: {path or 'the model'} was changed after the patch, class "
                    f"{_full_name(mark.after)} wanted, got {_full_name(now)}; undo that first"
                )
        for path in marks:
            _restore(self._modules[path])

    def __enter__(self) -> Patch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if any(_mark(module) for module in self._modules.values()):
            self.undo()


def patch(
    model: nn.Module, pattern: Pattern | str | Sequence[Pattern | str] | None = None, *,
    backend: str | None = None,
) -> Patch:  # fmt: skip
    """Run the attention of an existing model through this library, in place.

        with lf.patch(model) as patch:
            print(patch.report)
            model(**batch)

    Only this model's own modules change: parameters, state dict and other models stay as they are. A
    deep copy of a patched model is patched too, independently.

    Args:
        model: a model that an installed integration knows, or one that holds such a model.
        pattern: what every layer runs, or one pattern per layer, as patterns or their strings; by
            default what the model's own configuration says.
        backend: name of the backend that must run all patched layers, never substituted; by default
            the choice is made anew for each call.

    Returns:
        The handle to undo it, also usable in a `with` statement.

    Raises:
        PatchError: no module, patched already, or a model that no integration knows, with what each
            looked for.
        PatternError: a pattern, or a number of patterns, that does not fit the model.
        LFError: no backend has that name.
    """
    _check_model(model)
    _check_unpatched(model)
    if backend is not None and backend not in registry.backends():
        raise selection.unknown(backend)
    wanted = _patterns(pattern)
    refusals: list[str] = []
    for name, adapter in adapters().items():
        swaps = _plan(adapter, model, wanted)
        if not isinstance(swaps, str):
            _apply(swaps, backend)
            return Patch(model, {swap.path: swap.module for swap in swaps})
        refusals.append(f"{name}: {swaps}")
    raise PatchError(_nothing_fits(model, refusals))


def adapters() -> dict[str, Adapter | registry.Broken]:
    """All installed integrations by the names of their entry points."""
    return dict(_load(point) for point in metadata.entry_points(group=ENTRY_POINTS))


def _load(point: metadata.EntryPoint) -> tuple[str, Adapter | registry.Broken]:
    try:
        found = point.load()
        if not isinstance(found, Adapter):
            raise LFError(f"an instance of lf_backend.patching.Adapter wanted, got {found!r}")
    except Exception as error:  # whatever a plug-in does wrong is its verdict, not our crash
        return point.name, registry.Broken(point.name, f"{type(error).__name__}: {error}")
    return point.name, found


def _plan(adapter: Adapter | registry.Broken, model: nn.Module, pattern: Patterns) -> Sequence[Swap] | str:
    """What an adapter would do, or why it does nothing."""
    if isinstance(adapter, registry.Broken):
        return f"could not be loaded: {adapter.error}"
    try:
        return adapter.plan(model, pattern) or adapter.refusal(model)
    except LFError:  # the adapter knows the model, and this is its answer
        raise
    except Exception as error:  # as above: an integration that fails is a reason, shown with the others
        return f"failed: {type(error).__name__}: {error}"


def _apply(swaps: Sequence[Swap], backend: str | None) -> None:
    for swap in swaps:
        _check_swap(swap)
    done: list[nn.Module] = []
    try:
        for swap in swaps:
            mark = Mark(type(swap.module), swap.to, swap.pattern, backend, swap.note)
            vars(swap.module)["lf_mark"] = mark
            done.append(swap.module)
            swap.module.__class__ = swap.to
    except BaseException:
        for module in done:
            _restore(module)
        raise


def _restore(module: nn.Module) -> None:
    mark = vars(module).pop("lf_mark", None)
    if mark is not None:
        module.__class__ = mark.before


def _mark(module: nn.Module) -> Mark | None:
    return vars(module).get("lf_mark")


def _check_model(model: Any) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise PatchError(f"model: a torch.nn.Module wanted, got {type(model).__name__}")
    return model


def _check_unpatched(model: nn.Module) -> None:
    patched = [path or "the model itself" for path, module in model.named_modules() if _mark(module)]
    if patched:
        more = f" and {len(patched) - 1} more" if len(patched) > 1 else ""
        raise PatchError(f"model: not patched yet wanted, got {patched[0]}{more} patched; undo() it first")


def _check_swap(swap: Swap) -> None:
    where = swap.path or "the model"
    if not issubclass(swap.to, type(swap.module)):
        wanted, got = _full_name(type(swap.module)), _full_name(swap.to)
        raise PatchError(f"{where}: a replacement that is a subclass of {wanted} wanted, got {got}")
    if "forward" in vars(swap.module):
        raise PatchError(
            f"{where}: a forward from its class wanted, got one set on the instance (hooks of accelerate do "
            "so), which would hide the patch; patch the model before that"
        )


def _patterns(pattern: Any) -> Patterns:
    if pattern is None or isinstance(pattern, Pattern | str):
        return None if pattern is None else check_pattern(pattern)
    if not isinstance(pattern, Sequence) or not pattern:
        raise PatternError(f"pattern: a pattern, or a list of one per layer wanted, got {pattern!r}")
    return tuple(check_pattern(item) for item in pattern)


def _nothing_fits(model: nn.Module, refusals: Iterable[str]) -> str:
    classes = sorted({type(module).__name__ for module in model.modules()})
    lines = [f"model: nothing to patch in {type(model).__name__}; looked at {', '.join(classes)}"]
    lines.extend(refusals or _no_adapters())
    return "\n  ".join(lines)


def _no_adapters() -> Iterator[str]:
    yield f'no integration is installed (entry points of the group "{ENTRY_POINTS}")'


def _full_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
