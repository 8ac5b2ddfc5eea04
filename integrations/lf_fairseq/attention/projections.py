"""Separate projections of global tokens (Longformer, section 3.1), which fairseq's attention does not have.

    q_proj_global, k_proj_global, v_proj_global

beside `q_proj`, `k_proj`, `v_proj`: the rows of global tokens are computed from them. They start as copies of
the local ones, as the paper's do: in a new model, and where a checkpoint without them is loaded.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

LOCAL = ("q_proj", "k_proj", "v_proj")


def own(name: str) -> str:
    """The name of a projection's counterpart for global tokens."""
    return f"{name}_global"


def has_own(attention: nn.Module) -> bool:
    """Whether an attention has projections of its own for global tokens."""
    return own(LOCAL[0]) in attention._modules


def fill(attention: nn.Module, state_dict: dict[str, Any], name: str) -> None:
    """Complete the state dict of a checkpoint that has no global projections for the attention `name`."""
    prefix = f"{name}." if name else ""
    for local in LOCAL if has_own(attention) else ():
        for key in [key for key in state_dict if key.startswith(f"{prefix}{local}.")]:
            other = f"{prefix}{own(local)}.{key.removeprefix(f'{prefix}{local}.')}"
            state_dict.setdefault(other, state_dict[key].clone())


def project(attention: Any, x: Tensor) -> list[Tensor]:
    """Query, key and value of the global tokens among x [T, B, E], each [T, B, H * D]."""
    return [attention.get_submodule(own(name))(x) for name in LOCAL]
