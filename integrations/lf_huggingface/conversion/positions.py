"""Learned positions: where a model keeps them, where they start, and how they are made more."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lf_huggingface.errors import ConversionError

LENGTH = "max_position_embeddings"
# Learned positions that are known by the end of their name.
_TABLES = ("embeddings.position_embeddings", "wpe", "embed_positions")


def tables(model: nn.Module) -> dict[str, int]:
    """The tables of learned positions by path, and their rows before the first position.

    Raises:
        ConversionError: a table of as many rows that is called otherwise.
    """
    found: dict[str, int] = {}
    size = getattr(model.config, LENGTH, None)
    for path, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if not isinstance(weight, Tensor) or weight.ndim != 2:
            continue
        if f".{path}".endswith(tuple(f".{name}" for name in _TABLES)):
            if isinstance(weight, nn.Parameter):
                found[path] = _rows_before(module)
        elif size is not None and "pos" in path.rpartition(".")[2] and 0 <= len(weight) - size <= 4:
            raise ConversionError(
                f"model: learned positions called one of {list(_TABLES)} wanted, got {path}.weight "
                f"{list(weight.shape)}"
            )
    return found


def most_positions(model: nn.Module) -> int:
    """The length of the longest input of a model; of one that counts no positions, any."""
    config: Any = model.config
    own = getattr(config, LENGTH, None)
    found = {path: model.get_submodule(path) for path in tables(model)}
    rows = [len(module.weight) - _rows_before(module) for module in found.values()]  # type: ignore[arg-type]
    limits = [x for x in (*rows, None if rows else own) if x is not None]
    return min(limits, default=1 << 30)


def tiled(table: Tensor, first: int, length: int) -> Tensor:
    """[first + length, E]: the first rows of table [rows, E], then its others again and again.

    Raises:
        ConversionError: fewer positions wanted than there are.
    """
    own = table[first:]
    if length < len(own):
        raise ConversionError(f"max_length >= {len(own)} (the model's own) wanted, got {length}")
    copies = -(-length // len(own))
    return torch.cat([table[:first], own.repeat(copies, 1)[:length]])


def _rows_before(table: Any) -> int:
    """Rows of a table of positions before the first position: a padding row and those before it, or an
    offset that the table adds itself."""
    padding = getattr(table, "padding_idx", None)
    offset: int = getattr(table, "offset", 0)
    return offset if padding is None or offset else int(padding) + 1
