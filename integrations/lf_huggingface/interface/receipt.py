"""The receipt of a configured model: which of its layers have run which pattern.

    print(lf_huggingface.report(model))

A layer's row says what it did the last time that it ran. Graphs of torch.compile leave no trace; run the
model once without them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import nn

from lf_backend.errors import LFError
from lf_backend.pattern.terms import Pattern
from lf_huggingface.interface import attending
from lf_huggingface.interface.names import is_ours


class _Run(NamedTuple):
    """The last call of a layer."""

    pattern: Pattern
    is_cross: bool
    from_config: bool


_runs: WeakKeyDictionary[nn.Module, _Run] = WeakKeyDictionary()


def note(module: nn.Module, pattern: Pattern, is_cross: bool, has_own: bool) -> None:
    """Remember what a layer runs; `has_own`, whether its config holds a pattern."""
    if not torch.compiler.is_compiling():
        _runs[module] = _Run(pattern, is_cross, has_own and not is_cross)


@dataclass(frozen=True)
class LayerRun:
    """One layer of a receipt.

    Attributes:
        path: the layer's name in the model.
        layer: the name of its class.
        pattern: what it ran, upstream's own window included; None if nothing of ours ran.
        from_config: whether that is `config.lf_attention`.
        note: what a user should know.
    """

    path: str
    layer: str
    pattern: Pattern | None
    from_config: bool
    note: str


@dataclass(frozen=True)
class Receipt:
    """All layers of a model that attend. `str()` is the table that users read."""

    model: str
    rows: tuple[LayerRun, ...]

    def __str__(self) -> str:
        cells = [(row.path or "(model)", row.layer, str(row.pattern or "-"), row.note) for row in self.rows]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        ran = sum(row.pattern is not None for row in self.rows)
        lines = [f"{ran} of {len(self.rows)} attention layers of {self.model} ran by lf_backend"]
        for row in cells:
            line = "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True))
            lines.append("  " + line.rstrip())
        return "\n".join(lines)


def report(model: nn.Module) -> Receipt:
    """Report which layers of a model have run which pattern, the last time that each of them ran.

    Patched layers and layers that attend in code of their own have a row too.

    Args:
        model: a model of transformers, or one that holds such models.

    Raises:
        LFError: not a module, or one without any layer that attends.
    """
    if not isinstance(model, nn.Module):
        raise LFError(f"model: a torch.nn.Module wanted, got {type(model).__name__}")
    found: dict[str, LayerRun] = {}
    for path, module in attending.routed(model):
        found[path] = _routed(path, module)
    for path, module in attending.on_their_own(model):
        found[path] = LayerRun(path, type(module).__name__, None, False, "attends in code of its own")
    for path, module in model.named_modules():
        mark: Any = vars(module).get("lf_mark")
        if mark is not None and mark.pattern is not None and mark.before is not mark.after:
            found[path] = LayerRun(path, mark.before.__name__, mark.pattern, False, "patched")
    if not found:
        raise LFError(f"model: one with layers that attend wanted, got {type(model).__name__}")
    rows = (found[path] for path, _ in model.named_modules() if path in found)
    return Receipt(type(model).__name__, tuple(rows))


def _routed(path: str, module: Any) -> LayerRun:
    name, kind = getattr(module.config, "_attn_implementation", None), type(module).__name__
    if not is_ours(module.config):
        return LayerRun(path, kind, None, False, f"attends by {name!r}")
    run = _runs.get(module)
    if run is None:
        return LayerRun(path, kind, None, False, "has not run, or in a graph alone")
    note = "cross attention" if run.is_cross else "by lf_attention" if run.from_config else "the model's own"
    return LayerRun(path, kind, run.pattern, run.from_config, note)
