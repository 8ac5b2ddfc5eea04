"""One sequence over ranks, as an attention layer meets it: a note on the layer, and the call over ranks.

A note, because a backward that computes a layer again, on whatever thread, finds it there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lf_backend.errors import UnsupportedError

_NOTE = "lf_ranks"


@dataclass(eq=False)
class Ranks:
    """Ranks that share sequences, and what all of them know of the batch at hand.

    Attributes:
        mesh: a DeviceMesh of one dimension.
        length: positions of the whole sequence.
        padded: some token of the batch is padding, on whatever rank.
        has_globals: the batch marks a global token, on whatever rank.
        documents: int [B or 1, n], the documents of this rank's positions; None where the row is one.
    """

    mesh: Any
    length: int = 0
    padded: bool = False
    has_globals: bool = False
    documents: Tensor | None = None

    def attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        pattern: Any,
        *,
        key_padding: Tensor | None,
        global_mask: Tensor | None = None,
        global_positions: Tensor | None = None,
        **options: Any,
    ) -> Tensor:
        """Return `lf_backend.distributed.attention`, given on all ranks what any of them has to say."""
        from lf_backend import distributed

        batch, size = q.shape[0], q.shape[2]
        if self.padded and key_padding is None:
            key_padding = torch.zeros(batch, size, dtype=torch.bool, device=q.device)
        if self.has_globals and global_mask is None and global_positions is None:
            global_positions = torch.empty(batch, 0, dtype=torch.int64, device=q.device)
        documents = None if self.documents is None else self.documents.expand(batch, -1)
        found: Tensor = distributed.attention(
            q,
            k,
            v,
            pattern,
            mesh=self.mesh,
            key_padding=key_padding if self.padded else None,
            global_mask=global_mask if self.has_globals else None,
            global_positions=global_positions if self.has_globals else None,
            documents=documents,
            **options,
        )
        return found


def set_ranks(module: nn.Module, ranks: Ranks | None) -> None:
    """Note the ranks on an attention layer, or take the note away."""
    if ranks is None:
        vars(module).pop(_NOTE, None)
    else:
        vars(module)[_NOTE] = ranks


def ranks_of(module: nn.Module) -> Ranks | None:
    """Return the ranks that share the sequences of a layer, None if it has them whole."""
    found: Ranks | None = vars(module).get(_NOTE)
    return found


def refuse_over_ranks(module: nn.Module, what: str, wanted: str) -> None:
    """Raise UnsupportedError if the layer's sequences are shared.

    Args:
        what: an argument that is not carried over ranks.
        wanted: what to give in its place.
    """
    if ranks_of(module) is not None:
        raise UnsupportedError(
            f"{what}: {wanted} wanted in {type(module).__name__} under context_parallel, got it"
        )
