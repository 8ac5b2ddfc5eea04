"""One call of an attention layer, and its sparse form."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

import lf_backend as lf


@dataclass(frozen=True, eq=False)
class Call:
    """What a layer passes, without the mask.

    Attributes:
        q: [B, H, Q, D].
        k, v: [B, Hkv, K, D].
        scale: factor of the scores.
        dropout_p: probability of dropping a weight.
        softcap, sinks: see `lf_backend.attention`.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    scale: float
    dropout_p: float
    softcap: float | None
    sinks: Tensor | None


def sparse(call: Call, pattern: str, key_padding: Tensor | None, global_mask: Tensor | None) -> Tensor:
    """Out [B, H, Q, D] of `lf_backend.attention`, whose arguments the last three are."""
    return lf.attention(
        call.q, call.k, call.v, pattern, key_padding=key_padding, global_mask=global_mask,
        scale=call.scale, softcap=call.softcap, sinks=call.sinks, dropout_p=call.dropout_p,
    )  # fmt: skip
