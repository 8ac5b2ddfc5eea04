"""Patterns in the words of other engines, where those say exactly the same.

    flex_attention(q, k, v, block_mask=pattern.to_block_mask(4096))
    flash_attn_func(q, k, v, window_size=pattern.to_flash_window())
    xformers.ops.memory_efficient_attention(q, k, v, attn_bias=pattern.to_xformers_bias())

What they cannot say is an error that names it: nothing is lost in silence.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lf_backend._optional import optional
from lf_backend.errors import PatternError
from lf_backend.pattern.block_map import block_map
from lf_backend.pattern.kept import kept
from lf_backend.pattern.lowered import Form, Lowered

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

MaskMod = Callable[[Any, Any, Any, Any], Any]  # (batch, head, query, key) -> bool
BLOCK = 128  # FlexAttention's


class Interchange:
    """Methods of every pattern that turn it into other libraries' words."""

    lowered: Lowered

    @property
    def heads(self) -> int | None:
        """Number of heads the pattern is written for, None when it is the same for all."""
        raise NotImplementedError

    def to_mask_mod(self, device: torch.device | str = "cpu", offset: Tensor | int = 0) -> MaskMod:
        """FlexAttention's mask_mod(batch, head, query, key).

        Args:
            device: where it runs; tables of the pattern are tensors there.
            offset: position of the first query: number of keys less number of queries.
        """
        shown = mask_mod(self.lowered.everything, torch.device(device))
        return lambda batch, head, query, key: shown(head, query + offset, key)

    def to_block_mask(self, n: int, m: int | None = None, device: torch.device | str = "cpu") -> BlockMask:
        """FlexAttention's BlockMask, from the bounds of the terms: `create_block_mask` without n x m.

        Args:
            n, m: number of queries, the last of the `m` keys; `m` is `n` if not given.
        """
        m = n if m is None else m
        states = block_states(self.lowered.everything, self.heads or 1, n, m)
        return block_mask(states[None].to(device), n, m, self.to_mask_mod(device, m - n))

    def to_flash_window(self) -> tuple[int, int]:
        """flash-attn's window_size (left, right), -1 for no limit.

        Raises:
            PatternError: what it cannot say, and would lose.
        """
        left, right = self._only_reach("to_flash_window")
        return -1 if left is None else left, -1 if right is None else right

    def to_xformers_bias(self) -> Any:
        """xformers' attn_bias: an AttentionBias, None where everything is seen.

        Raises:
            PatternError: what it cannot say, and would lose.
            LFError: xformers is not installed.
        """
        left, right = self._only_reach("to_xformers_bias")
        return xformers_bias(left, right)

    def _only_reach(self, what: str) -> tuple[int | None, int | None]:
        lowered = self.lowered
        lost = {
            "global tokens": bool(lowered.positions),
            "predicates": bool(lowered.others),
            "a union of windows": len(lowered.bands) > 1,
            "dilation": any(max(band.dilations) > 1 for band in lowered.bands),
        }
        if any(lost.values()) or not lowered.bands:
            words = ", ".join(word for word, is_lost in lost.items() if is_lost) or "that nothing is visible"
            raise PatternError(f"{what}: one window without dilation wanted; it cannot say {words}: {self}")
        return lowered.bands[0].left, lowered.bands[0].right


def xformers_bias(left: int | None, right: int | None) -> Any:
    """The bias of a window without dilation; its queries are the last positions, as ours are."""
    biases = optional("xformers.ops.fmha.attn_bias", "xformers")
    if left is None and right is None:
        return None
    if right == 0:
        causal = biases.LowerTriangularFromBottomRightMask()
        return causal if left is None else causal.make_local_attention(left + 1)
    unlimited = 1 << 30  # beyond any length
    return biases.LocalAttentionFromBottomRightMask(
        window_left=unlimited if left is None else left, window_right=unlimited if right is None else right
    )


def has_block_bias(left: int | None, right: int | None) -> bool:
    """Whether xformers has a bias of several documents for a window: causal ones, and no window at all."""
    return right == 0 or (left is None and right is None)


def xformers_block_bias(
    left: int | None, right: int | None, counts: tuple[int, ...], device: torch.device
) -> Any:
    """Return the bias of documents in one row, of so many positions each, under one window in all of them."""
    biases = optional("xformers.ops.fmha.attn_bias", "xformers")
    blocks = biases.BlockDiagonalMask.from_seqlens(counts, device=device)
    if right is None:
        return blocks
    causal = blocks.make_causal()
    return causal if left is None else causal.make_local_attention(left + 1)


def mask_mod(forms: tuple[Form, ...], device: torch.device) -> Callable[[Any, Any, Any], Any]:
    """Whether any form shows (head, query, key), in operations that a compiler can fuse."""
    traced = [form.traced(device) for form in forms]

    def shown(head: Any, query: Any, key: Any) -> Any:
        seen = key < 0  # nothing
        for form in traced:
            seen = seen | form(head, query, key)
        return seen

    return shown


@kept(64)
def block_states(forms: tuple[Form, ...], heads: int, n: int, m: int) -> Tensor:
    """Classify each block of 128 x 128 pairs: none (0), some (1) or all (2) are visible.

    int8 [1 or heads, blocks of queries, blocks of keys], one head where all are alike.
    """
    heads = heads if any(form.per_head for form in forms) else 1
    states = torch.zeros(heads, -(-n // BLOCK), -(-m // BLOCK), dtype=torch.int8)
    for head in range(heads):
        for row, spans in enumerate(block_map(forms, head, n, m, BLOCK)):
            for start, stop, _ in spans:
                states[head, row, start // BLOCK : -(-stop // BLOCK)] = 1
            for start, stop, full in spans:
                if full:
                    states[head, row, -(-start // BLOCK) : max(-(-start // BLOCK), stop // BLOCK)] = 2
    return states


def block_mask(states: Tensor, n: int, m: int, mod: MaskMod) -> BlockMask:
    """The BlockMask of some states of blocks, [B or 1, H or 1, blocks of queries, blocks of keys]."""
    from torch.nn.attention.flex_attention import BlockMask

    some, full = (_listed(states == state) for state in (1, 2))
    return BlockMask.from_kv_blocks(*some, *full, BLOCK, mod, (n, m))


def _listed(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Bool [..., C] as the number of chosen ones and their indices, which come first."""
    order = chosen.to(torch.int8).argsort(dim=-1, descending=True, stable=True)
    return chosen.sum(-1, dtype=torch.int32), order.to(torch.int32)
