"""BigBird's block-sparse layer (transformers.models.big_bird.modeling_big_bird, and the same again for
BigBird-Pegasus; Zaheer et al. 2020, arXiv 2007.14062, section 2 and appendix D).

A block of queries sees itself, its neighbours, the first and the last block, which are global tokens, and
random blocks. Upstream adds the random keys to the others as a list and not as a set, and here too:

- in training the blocks are upstream's own draws, of its generator under its seed, the same in every pass;
- in evaluation upstream leaves them all at block 0, which is global already. With r random blocks the first
  block therefore counts 1 + r times.

So there are two softmaxes, joined by their denominators. Upstream also holds all N x N weights of every
layer, asked for or not, and turns for good into full attention at the first short input; the patched model
runs that one input in full and remains what it is.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.models.big_bird import modeling_big_bird as upstream

import lf_backend as lf
from lf_backend._graphs import constant_in_graphs, settled
from lf_backend.errors import UnsupportedError
from lf_backend.pattern.predicate import Predicate
from lf_backend.pattern.terms import Pattern, Window
from lf_backend.sparsity import block_local
from lf_huggingface.errors import refuse_weights
from lf_huggingface.patch import config_patterns, heads
from lf_huggingface.patch.exchanged import Exchanged
from lf_huggingface.patch.replacements import Replacements
from lf_huggingface.patch.upstream_checks import like, recorded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lf_backend.patching import PatchMark

EVERYTHING = Window(None, None)
DROPOUT = "lf_full_dropout"  # probability of dropout of upstream's full attention, to its block-sparse layers


_running: ContextVar[bool] = ContextVar("lf_huggingface.patch.big_bird", default=False)


class BlockSparse(nn.Module):
    """Mixed in before upstream's layer, whose parameters and attributes it uses."""

    if TYPE_CHECKING:
        lf_mark: PatchMark
        query: nn.Linear
        key: nn.Linear
        value: nn.Linear
        num_attention_heads: int
        num_random_blocks: int
        block_size: int
        max_seqlen: int
        seed: int

    def forward(
        self,
        hidden_states: Tensor,
        band_mask: Tensor | None = None,
        from_mask: Tensor | None = None,
        to_mask: Tensor | None = None,
        from_blocked_mask: Tensor | None = None,
        to_blocked_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """The layer's output [B, N, E]; weights are not formed.

        Args:
            hidden_states: [B, N, E], N being whole blocks.
            to_mask: [B, 1, 1, N], 1 for a token, 0 for padding; the other masks say the same again.
            kwargs: hold `DROPOUT` for a short input, which is attended to in full. As an argument it reaches
                the second run of a gradient checkpoint too.
        """
        q, k, v = (
            heads.split(project(hidden_states), self.num_attention_heads)
            for project in (self.query, self.key, self.value)
        )
        padding = None if to_mask is None else to_mask[:, 0, 0] == 0
        pattern, dropout_p = self.lf_mark.pattern, kwargs.get(DROPOUT)
        if pattern is not None:
            out = self._attend(q, k, v, pattern, padding, dropout_p=0.0)
        elif dropout_p is not None:
            out = self._attend(q, k, v, EVERYTHING, padding, dropout_p=dropout_p if self.training else 0.0)
        else:
            out = self._block_sparse(q, k, v, padding)
        return heads.join(out), None

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, padding: Tensor | None, *, dropout_p: float
    ) -> Tensor:
        return lf.attention(
            q, k, v, pattern, key_padding=padding, dropout_p=dropout_p, backend=self.lf_mark.backend
        )

    def _block_sparse(self, q: Tensor, k: Tensor, v: Tensor, padding: Tensor | None) -> Tensor:
        """Out [B, H, N, D] of the layer's own blocks."""
        batch, count, length, _ = q.shape
        ends = torch.zeros(batch, length, dtype=torch.bool, device=q.device)
        ends[:, : self.block_size] = ends[:, -self.block_size :] = True
        out, lse = lf.attention(
            q,
            k,
            v,
            _neighbours(self.block_size),
            key_padding=padding,
            global_mask=ends,
            return_lse=True,
            backend=self.lf_mark.backend,
        )
        seed = self.seed if self.training else None
        drawn, times = random_blocks(
            seed, settled(length), self.block_size, self.num_random_blocks, count, self.max_seqlen
        )
        if not times:
            return out
        more, more_lse = lf.attention(
            q, k, v, drawn, key_padding=padding, return_lse=True, backend=self.lf_mark.backend
        )
        return _joined(out, lse, more, more_lse + math.log(times))


def _joined(out: Tensor, lse: Tensor, more: Tensor, more_lse: Tensor) -> Tensor:
    """One softmax over the keys of two, [B, H, N, D] each; a row that sees nothing remains 0."""
    share = (more_lse - lse.masked_fill(lse == -torch.inf, 0)).sigmoid()[..., None]
    return torch.lerp(out, more, share.to(out.dtype))


@constant_in_graphs
def _neighbours(block: int) -> str:
    """The pattern of blocks that see themselves and their neighbours, as text."""
    return _local(block).text


@lru_cache(maxsize=16)
def _local(block: int) -> Pattern:
    return block_local(block, 1)


@constant_in_graphs
def random_blocks(
    seed: int | None, length: int, block: int, count: int, heads: int, longest: int
) -> tuple[str, int]:
    """Return the random blocks of a layer, a pattern as text, and how often each counts.

    Args:
        seed: of the layer, None in evaluation.
        longest: `max_position_embeddings`, from which upstream draws at some lengths.
    """
    made = _kept(seed, length, block, count, heads, longest)
    return made.text, _draws(seed, length, block, count, heads, longest)[1]


@lf.term
def big_bird_random(
    seed: int | None, length: int, block: int, count: int, heads: int, longest: int
) -> Pattern:
    """Return the pattern of the blocks that upstream draws; arguments as in `random_blocks`."""
    return _blocks(_draws(seed, length, block, count, heads, longest)[0], block)


_kept = lru_cache(maxsize=128)(big_bird_random)  # or every call would draw again
Draws = tuple[tuple[tuple[int, ...], ...], ...]


@lru_cache(maxsize=128)
def _draws(
    seed: int | None, length: int, block: int, count: int, heads: int, longest: int
) -> tuple[Draws, int]:
    """The blocks that rows of blocks draw, by head, and how often each counts."""
    layer = SimpleNamespace(
        training=seed is not None,
        _get_single_block_row_attention=upstream.BigBirdBlockSparseAttention._get_single_block_row_attention,
    )
    with _numpy_seeded(seed):
        draws = np.stack(_upstreams_draws(layer, length, block, count, heads, longest))
    if seed is None:  # alike: all 0
        draws, times = draws[:1, :, :1], draws.shape[-1]
    else:
        times = min(draws.shape[-1], 1)
    return tuple(tuple(map(tuple, head)) for head in draws.tolist()), times


def _upstreams_draws(layer: Any, length: int, block: int, count: int, heads: int, longest: int) -> Any:
    """Int [H][blocks - 2, r], for all but the first and last block of queries."""
    kind: Any = upstream.BigBirdBlockSparseAttention
    if length in (1024, 3072, 4096):  # as upstream has it: plans used in the paper
        draw = kind._bigbird_block_rand_mask
        rows = length // block - 2
        return [
            draw(layer, longest, longest, block, block, count, last_idx=1024)[:rows] for _ in range(heads)
        ]
    ends, counts = kind._get_rand_attn_plan(length, block, count)
    return kind._bigbird_block_rand_mask_with_head(
        layer,
        from_seq_length=length,
        to_seq_length=length,
        from_block_size=block,
        to_block_size=block,
        num_heads=heads,
        plan_from_length=ends,
        plan_num_rand_blocks=counts,
    )


def _blocks(draws: Draws, block: int) -> Pattern:
    """Block i + 1 of queries sees the blocks draws[head][i] of keys; the first and the last see none."""
    rows, count = len(draws[0]), len(draws[0][0])

    def sees(head: Any, query: Any, key: Any, table: Any) -> Any:
        row = query // block - 1
        at = row.clamp(0, rows - 1)
        seen = key < 0
        for column in range(count):
            seen = seen | (table[head % len(draws), at, column] == key // block)
        return seen & (row >= 0) & (row < rows)

    def bounds(head: int, first: int, last: int, m: int) -> list[tuple[int, int, bool]]:
        low, high = first // block - 1, last // block - 1
        found = draws[head % len(draws)][max(low, 0) : high + 1]
        return [(at * block, (at + 1) * block, low == high) for row in found for at in row]

    return Predicate(sees, bounds, (draws,))


@contextmanager
def _numpy_seeded(seed: int | None) -> Iterator[None]:
    """Upstream seeds numpy's global generator for its draws; here the user's state comes back."""
    state = np.random.get_state()
    try:
        if seed is not None:
            np.random.seed(seed)
        yield
    finally:
        np.random.set_state(state)


class ShortInFull(nn.Module):
    """Mixed in before the upstream module that reads masks for the layers."""

    if TYPE_CHECKING:
        config: Any

    def _run(self, forward: Callable[..., Any], input_ids: Tensor | None, *args: Any, **kwargs: Any) -> Any:
        """Upstream's forward, with its layers told if the input is short."""
        config = self.config
        refuse_weights(kwargs.get("output_attentions", config.output_attentions), "BigBird")
        tokens = kwargs.get("inputs_embeds") if input_ids is None else input_ids
        limit = (5 + 2 * config.num_random_blocks) * config.block_size  # upstream's own
        if tokens is not None and tokens.shape[1] <= limit:
            kwargs[DROPOUT] = config.attention_probs_dropout_prob
        if torch.compiler.is_compiling():
            return forward(input_ids, *args, **kwargs)
        running = _running.set(True)
        try:
            return forward(input_ids, *args, **kwargs)
        finally:
            _running.reset(running)

    def set_attention_type(self, value: str) -> None:
        """Do nothing while patched: the layers do what upstream's forward asks for at a short input."""
        if not torch.compiler.is_compiling() and not _running.get():
            raise UnsupportedError(
                f"set_attention_type: not of a patched BigBird wanted, got {value!r}; undo() the patch first"
            )


class BigBirdBlockSparseAttention(Exchanged, BlockSparse, upstream.BigBirdBlockSparseAttention):
    """The layer of every encoder layer."""


@recorded
class BigBirdModel(Exchanged, ShortInFull, upstream.BigBirdModel):
    """Embeddings, encoder, pooler; arguments and outputs are upstream's."""

    @like(upstream.BigBirdModel.forward)
    def forward(self, input_ids: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        return self._run(super().forward, input_ids, *args, **kwargs)


REPLACEMENTS = Replacements(
    (
        BigBirdBlockSparseAttention,
        BigBirdModel,
    ),
    config_patterns.left_to_the_layer,
)  # its last block depends on the length
