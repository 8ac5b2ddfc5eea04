"""BigBird-Pegasus' encoder (transformers.models.bigbird_pegasus.modeling_bigbird_pegasus): see `big_bird`."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.models.bigbird_pegasus import modeling_bigbird_pegasus as upstream

from lf_huggingface.patch import config_patterns
from lf_huggingface.patch.big_bird import BlockSparse, ShortInFull
from lf_huggingface.patch.upstream_checks import like, recorded

native = config_patterns.left_to_the_layer
check = config_patterns.any_will_do


class BigBirdPegasusBlockSparseAttention(BlockSparse, upstream.BigBirdPegasusBlockSparseAttention):
    """The layer of every encoder layer."""


@recorded
class BigBirdPegasusEncoder(ShortInFull, upstream.BigBirdPegasusEncoder):  # type: ignore[no-untyped-call]
    """Embeddings and the stack of layers; arguments and outputs are upstream's."""

    @like(upstream.BigBirdPegasusEncoder.forward)
    def forward(self, input_ids: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        return self._run(super().forward, input_ids, *args, **kwargs)
