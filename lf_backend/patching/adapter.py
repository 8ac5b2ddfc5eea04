"""The contract of an integration: it plans which modules become instances of which class.

Adapters are found by entry points of the group "lf_backend.integrations", each naming an instance.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from lf_backend.pattern.terms import Pattern

Patterns = Pattern | tuple[Pattern, ...] | None


class Change(ABC):
    """A change beside those of classes, kept in a module's mark: copied and pickled with the model."""

    @abstractmethod
    def apply(self) -> None:
        """Make the change."""

    @abstractmethod
    def undo(self) -> None:
        """Take the change back."""


@dataclass(frozen=True)
class PatchMark:
    """The value that a patched module carries as `lf_mark`, copied and pickled with the module.

    Attributes:
        before, after: the module's class without and with the patch.
        pattern: what the module runs now, None if it is patched for another reason.
        backend: name of the backend that must run it, None for the automatic choice.
        note: what a user should know about this module, for the report.
        unpad: padding is dropped before the module's layers run, and put back behind them.
        change: what else the patch has changed, with this module.
    """

    before: type[nn.Module]
    after: type[nn.Module]
    pattern: Pattern | None
    backend: str | None
    note: str
    unpad: bool = False
    change: Change | None = None


@dataclass(frozen=True, eq=False)
class Swap:
    """One module of a plan. Its new class reads `self.lf_mark.pattern` and `self.lf_mark.backend`.

    Attributes:
        path: the module's name in the model.
        module: the module itself.
        to: its new class, a subclass of its present one, or that itself.
        pattern: what the module will run, None if it runs no attention itself.
        note: what is worth saying aloud about it, for the report.
        padding: "" if the module can drop padding before its layers run; else why its layers need it, or None
            for a module that has no say.
        change: what else is to be changed, once in a plan.
    """

    path: str
    module: nn.Module
    to: type[nn.Module]
    pattern: Pattern | None = None
    note: str = ""
    padding: str | None = None
    change: Change | None = None


class Adapter(ABC):
    """The interface of an integration, which never changes a module itself.

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
