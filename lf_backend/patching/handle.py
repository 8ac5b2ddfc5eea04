"""A patched model's handle: what was changed, and the way back."""

from __future__ import annotations

from dataclasses import dataclass
from types import MethodType, TracebackType
from typing import Any

from torch import nn

from lf_backend.errors import PatchError
from lf_backend.patching.adapter import PatchMark
from lf_backend.pattern.terms import Pattern


@dataclass(frozen=True)
class PatchedModule:
    """One patched module of a report."""

    path: str
    module: str
    pattern: Pattern | None
    note: str


@dataclass(frozen=True)
class Report:
    """The changes of a patch; `str()` is the table that users read."""

    model: str
    backend: str | None
    rows: tuple[PatchedModule, ...]

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
        marks = {path: mark_of(module) for path, module in modules.items()}
        rows = tuple(
            PatchedModule(path, mark.before.__name__, mark.pattern, mark.note)
            for path, mark in marks.items()
            if mark
        )
        backend = next((mark.backend for mark in marks.values() if mark), None)
        self.report = Report(type(model).__name__, backend, rows)

    @classmethod
    def of(cls, model: nn.Module) -> Patch:
        """The handle of a model that is patched already, for example a deep copy of a patched one.

        Raises:
            PatchError: the model is not patched.
        """
        modules = {path: module for path, module in check_model(model).named_modules() if mark_of(module)}
        if not modules:
            raise PatchError(f"model: a patched model wanted, got {type(model).__name__} without any patch")
        return cls(model, modules)

    def undo(self) -> None:
        """Give every module its own class back; nothing of the patch stays.

        Raises:
            PatchError: undone already, or another tool has changed a module's class since.
        """
        marks = {path: mark for path, module in self._modules.items() if (mark := mark_of(module))}
        if not marks:
            raise PatchError("undo: the patch is undone already")
        for path, mark in marks.items():
            if (now := type(self._modules[path])) is not mark.after:
                raise PatchError(
                    f"undo: {path or 'the model'} was changed after the patch, class "
                    f"{full_name(mark.after)} wanted, got {full_name(now)}; undo that first"
                )
        for path in marks:
            restore(self._modules[path])

    def __enter__(self) -> Patch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if any(mark_of(module) for module in self._modules.values()):
            self.undo()


def restore(module: nn.Module) -> None:
    mark = vars(module).pop("lf_mark", None)
    if mark is not None:
        module.__class__ = mark.before
        _bind_again(module, mark)
        if mark.change is not None:
            mark.change.undo()


def _bind_again(module: nn.Module, mark: PatchMark) -> None:
    """Bind methods of the patch, which hooks of accelerate keep on a module, to the class before."""
    for name, kept in vars(module).items():
        if isinstance(kept, MethodType) and kept.__func__ is getattr(mark.after, kept.__name__, None):
            vars(module)[name] = MethodType(getattr(mark.before, kept.__name__), module)


def mark_of(module: nn.Module) -> PatchMark | None:
    return vars(module).get("lf_mark")


def check_model(model: Any) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise PatchError(f"model: a torch.nn.Module wanted, got {type(model).__name__}")
    return model


def full_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
