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


@dataclass(frozen=True, eq=False)
class Batch:
    """The facts of a batch that all ranks know.

    Attributes:
        length: positions of the whole sequence; 0 before there is a batch.
        padded: some token of the batch is padding, on whatever rank.
        has_globals: the batch marks a global token, on whatever rank.
        documents: int [B or 1, n], the documents of this rank's positions; None where the row is one.
    """

    length: int = 0
    padded: bool = False
    has_globals: bool = False
    documents: Tensor | None = None

    def is_like(self, other: Batch) -> bool:
        """Whether a layer does the same for both."""
        own, others = ((x.length, x.padded, x.has_globals) for x in (self, other))
        return self.documents is other.documents and own == others


class Ranks:
    """Ranks that share sequences, and the batch at hand.

    Attributes:
        mesh: a DeviceMesh of one dimension.
        batch: that of the last forward.
    """

    def __init__(self, mesh: Any) -> None:
        self.mesh, self.batch = mesh, Batch()
        self._open = False  # some forward may still have a backward to come
        self._mixed = False  # while it was, one of another batch began

    @property
    def length(self) -> int:
        """Positions of the whole sequence."""
        return self.batch.length

    @property
    def documents(self) -> Tensor | None:
        """The documents of this rank's positions, if the batch has packed ones."""
        return self.batch.documents

    @property
    def has_globals(self) -> bool:
        """Whether the batch marks a global token, on whatever rank."""
        return self.batch.has_globals

    def begin(self, batch: Batch) -> None:
        """Note the batch of a forward that begins."""
        if not torch.compiler.is_compiling():  # a graph computes nothing again by what is noted
            self._mixed = self._open and (self._mixed or not batch.is_like(self.batch))
            self._open = self._open or torch.is_grad_enabled()
        self.batch = batch

    def _check_recomputed(self) -> None:
        """Refuse a layer that is computed again in a backward, if it cannot be told for which batch.

        Raises:
            UnsupportedError: forwards of several batches, of which this may be any.
        """
        if torch.compiler.is_compiling() or torch._C._current_graph_task_id() < 0:
            return
        if self._mixed:
            raise UnsupportedError(
                "gradient checkpointing: the backward of a batch before the next one's forward wanted over "
                "ranks, where lengths, padding, documents or global tokens differ, got two forwards; one "
                "without a backward belongs under torch.no_grad()"
            )
        self._open = False

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

        self._check_recomputed()
        batch, size, known = q.shape[0], q.shape[2], self.batch
        if known.padded and key_padding is None:
            key_padding = torch.zeros(batch, size, dtype=torch.bool, device=q.device)
        if known.has_globals and global_mask is None and global_positions is None:
            global_positions = torch.empty(batch, 0, dtype=torch.int64, device=q.device)
        documents = None if known.documents is None else known.documents.expand(batch, -1)
        found: Tensor = distributed.attention(
            q,
            k,
            v,
            pattern,
            mesh=self.mesh,
            key_padding=key_padding if known.padded else None,
            global_mask=global_mask if known.has_globals else None,
            global_positions=global_positions if known.has_globals else None,
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
