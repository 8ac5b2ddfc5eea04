"""BigBird-Pegasus' encoder (transformers.models.bigbird_pegasus.modeling_bigbird_pegasus): see `big_bird`."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.models.bigbird_pegasus import modeling_bigbird_pegasus as upstream

from lf_huggingface.patch import config_patterns
from lf_huggingface.patch.big_bird import BlockSparse, ShortInFull
from lf_huggingface.patch.exchanged import Exchanged
from lf_huggingface.patch.replacements import Replacements
from lf_huggingface.patch.upstream_checks import like, recorded


class BigBirdPegasusBlockSparseAttention(Exchanged, BlockSparse, upstream.BigBirdPegasusBlockSparseAttention):
    """The layer of every encoder layer."""


@recorded
class BigBirdPegasusEncoder(Exchanged, ShortInFull, upstream.BigBirdPegasusEncoder):
    """Embeddings and the stack of layers; arguments and outputs are upstream's."""

    @like(upstream.BigBirdPegasusEncoder.forward)
    def forward(self, input_ids: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        return self._run(super().forward, input_ids, *args, **kwargs)


REPLACEMENTS = Replacements(
    (
        BigBirdPegasusBlockSparseAttention,
        BigBirdPegasusEncoder,
    ),
    config_patterns.left_to_the_layer,
)
