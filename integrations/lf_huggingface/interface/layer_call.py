"""One call of an attention layer, and its sparse form."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

import lf_backend as lf
from lf_backend.pattern.terms import Pattern


@dataclass(frozen=True, eq=False)
class LayerCall:
    """The arguments that a layer passes, without the mask.

    Attributes:
        q: [B, H, Q, D].
        k, v: [B, Hkv, K, D].
        scale: factor of the scores.
        dropout_p: probability of dropping a weight.
        softcap, sinks, backend: see `lf_backend.attention`.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    scale: float
    dropout_p: float
    softcap: float | None
    sinks: Tensor | None
    backend: str | None = None


def sparse(
    call: LayerCall,
    pattern: Pattern,
    key_padding: Tensor | None,
    global_mask: Tensor | None,
    documents: Tensor | None = None,
) -> Tensor:
    """Out [B, H, Q, D] of `lf_backend.attention`, whose arguments the last four are."""
    return lf.attention(
        call.q,
        call.k,
        call.v,
        pattern,
        key_padding=key_padding,
        global_mask=global_mask,
        documents=documents,
        scale=call.scale,
        softcap=call.softcap,
        sinks=call.sinks,
        dropout_p=call.dropout_p,
        backend=call.backend,
    )
