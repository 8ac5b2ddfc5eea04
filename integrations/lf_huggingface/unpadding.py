"""Encoders that attend through transformers' interface, without padding.

    with lf_huggingface.unpadded(model):
        model(**tokenizer(texts, padding=True, return_tensors="pt"))

Padding is dropped once behind the embeddings, all layers run over one row [1, tokens], and it is put back
where the model gives its outputs. Of the model only hooks are used: its classes stay as they are.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import ExitStack
from contextvars import ContextVar
from types import TracebackType
from typing import Any, NamedTuple

from torch import Tensor, nn

from lf_backend._callers import may_look
from lf_backend.errors import PatchError
from lf_huggingface.interface import config_patterns
from lf_huggingface.interface.documents import dropped_padding
from lf_huggingface.interface.names import NAME, UNPADDED
from lf_huggingface.patch.packed_rows import PackedRow
from lf_huggingface.patch.token_masks import TokenMasks


def unpadded(model: nn.Module) -> Unpadded:
    """Run the encoders in a model without padding, until it is undone.

    Outputs at real tokens, loss and gradients are those of the padded batch; where there was padding, hidden
    states are 0. Holes of an `attention_mask` stay, as they are part of distances. A batch without padding,
    and a compiled graph, run as they are.

    Args:
        model: a model, or one that holds such models, configured with `attn_implementation="lf"`.

    Returns:
        The handle to undo it, also usable in a `with` statement.

    Raises:
        PatchError: no encoder that can do without padding, and why; or done already.
    """
    found = [module for module in model.modules() if _is_encoder(module)]
    if not found:
        raise PatchError(
            f"model: an encoder with embeddings of its own that attends through attn_implementation={NAME!r} "
            f"wanted, got {type(model).__name__}; models that are patched take lf.patch(model, unpad=True)"
        )
    if any(hasattr(module, UNPADDED) for module in found):
        raise PatchError("model: one that is not unpadded yet wanted; undo() it first")
    return Unpadded(found)


class Unpadded:
    """The handle of a model that runs without padding: `undo()`, and undone by a `with` statement too."""

    def __init__(self, encoders: list[nn.Module]) -> None:
        self._encoders = encoders
        self._hooks = [hook for module in encoders for hook in _Hooks(module).added()]
        for module in encoders:
            vars(module)[UNPADDED] = True

    def undo(self) -> None:
        """Remove the hooks; nothing stays.

        Raises:
            PatchError: undone already.
        """
        if not self._hooks:
            raise PatchError("undo: the model runs with its padding already")
        for hook in self._hooks:
            hook.remove()
        for module in self._encoders:
            vars(module).pop(UNPADDED, None)
        self._hooks = []

    def __enter__(self) -> Unpadded:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._hooks:
            self.undo()


def _is_encoder(module: nn.Module) -> bool:
    """Whether a module is the base model of an encoder that hands its embeddings to layers."""
    config: Any = getattr(module, "config", None)
    if getattr(config, "_attn_implementation", None) != NAME or getattr(config, "is_decoder", False):
        return False
    if getattr(config, "is_encoder_decoder", False):
        return False
    parts = dict(module.named_children())
    return "embeddings" in parts and any(name in parts for name in ("encoder", "transformer", "layers"))


class _Running(NamedTuple):
    """A call of an encoder whose padding is dropped."""

    encoder: nn.Module
    row: PackedRow
    leave: Callable[[], object]


# In a context, so that threads may share a model; not in the hooks, so that a model can be copied.
_running: ContextVar[_Running | None] = ContextVar("lf_huggingface.unpadded", default=None)


class _Hooks:
    """The hooks of one encoder."""

    def __init__(self, encoder: nn.Module) -> None:
        self.encoder: Any = encoder

    def added(self) -> list[Any]:
        hooks = [
            self.encoder.register_forward_pre_hook(self._enter, with_kwargs=True),
            self.encoder.embeddings.register_forward_hook(self._pack),
            self.encoder.register_forward_hook(self._leave, always_call=True),
        ]
        if getattr(self.encoder, "pooler", None) is not None:
            hooks.append(self.encoder.pooler.register_forward_pre_hook(self._first_tokens))
        return hooks

    def _enter(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Take the padding out of the arguments, if there is some that may be looked at."""
        given = inspect.signature(module.forward).bind_partial(*args, **kwargs).arguments
        given |= given.pop("kwargs", {})
        mask = given.get("attention_mask")
        if not isinstance(mask, Tensor) or mask.ndim != 2 or not may_look(mask):
            return None
        tokens = TokenMasks.read(mask.bool(), None, most=None)
        row = PackedRow.of(tokens, mask, config_patterns.layers(module.config))
        if row is None:
            return None
        stack = ExitStack()
        stack.enter_context(dropped_padding(row.documents))
        _running.set(_Running(module, row, stack.close))
        holes = row.tokens.padded
        given["attention_mask"] = None if holes is None else (~holes).to(mask.dtype)
        if given.get("position_ids") is None and _rotates(module):
            given["position_ids"] = (row.index % row.length)[None]
        return (), given

    def _row(self) -> PackedRow | None:
        running = _running.get()
        return None if running is None or running.encoder is not self.encoder else running.row

    def _pack(self, module: nn.Module, args: Any, output: Any) -> Any:
        row = self._row()
        return None if row is None else row.pack(output)

    def _first_tokens(self, module: nn.Module, args: tuple[Any, ...]) -> Any:
        row = self._row()
        return None if row is None else (row.unpack(args[0]), *args[1:])

    def _leave(self, module: nn.Module, args: Any, output: Any) -> Any:
        row, running = self._row(), _running.get()
        if row is None or running is None:
            return None
        _running.set(None)
        running.leave()
        return _unpacked(output, row)


def _rotates(module: nn.Module) -> bool:
    """Whether layers are told positions, not the embeddings."""
    return any("rotary" in name for name, _ in module.named_modules())


def _unpacked(output: Any, row: PackedRow) -> Any:
    """Outputs with padding again, wherever they have the shape of the row."""
    if isinstance(output, Tensor):
        is_row = output.shape[:2] == (1, len(row.index)) and output.ndim == 3
        return row.unpack(output) if is_row else output
    if isinstance(output, dict):
        changed = {name: _unpacked(x, row) for name, x in output.items()}
        return type(output)(**changed)
    if isinstance(output, tuple):
        return tuple(_unpacked(x, row) for x in output)
    return output
