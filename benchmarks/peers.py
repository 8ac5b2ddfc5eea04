"""Other libraries' code for the same work; each is a function of q, k, v [B, H, N, D]."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lf_backend.pattern.terms import Pattern, Window

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


class Split(nn.Module):
    """Stands in for a projection: gives back the next of the tensors it was made with."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.x = x

    def forward(self, hidden: Tensor) -> Tensor:
        # Upstream scales queries in place; a projection's result is fresh memory as well.
        return self.x.transpose(1, 2).flatten(2).clone()


def longformer_layer(window: int, heads: int, head_dim: int) -> nn.Module:
    """Hugging Face's self-attention layer with its projections, seeded."""
    from transformers import LongformerConfig
    from transformers.models.longformer.modeling_longformer import LongformerSelfAttention

    torch.manual_seed(0)
    config = LongformerConfig(
        attention_window=[window],
        num_hidden_layers=1,
        hidden_size=heads * head_dim,
        num_attention_heads=heads,
        attention_probs_dropout_prob=0.0,
    )
    return LongformerSelfAttention(config, 0)


def layer_arguments(batch: int, length: int, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Arguments of `longformer_layer` for text without padding and without global tokens."""
    nobody = torch.zeros(batch, length, dtype=torch.bool, device=device)
    return {
        "attention_mask": torch.zeros(batch, length, device=device),
        "is_index_masked": nobody,
        "is_index_global_attn": nobody,
        "is_global_attn": False,
    }


def longformer_attention(window: int, heads: int, head_dim: int) -> Attention:
    """Hugging Face's attention without its projections."""
    layer = longformer_layer(window, heads, head_dim)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        layer.query, layer.key, layer.value = Split(q), Split(k), Split(v)
        batch, _, length, _ = q.shape
        hidden = q.new_empty(batch, length, heads * head_dim)
        out: Tensor = layer(hidden, **layer_arguments(batch, length, q.device))[0]
        return out.view(batch, length, heads, head_dim).transpose(1, 2)

    return attend


def dense(pattern: Pattern, length: int, device: torch.device | str = "cpu") -> Attention:
    """scaled_dot_product_attention without a mask: what a window must beat to be worth having."""
    return F.scaled_dot_product_attention


def cudnn(pattern: Pattern, length: int, device: torch.device | str = "cuda") -> Attention:
    """Run cuDNN's kernel, which torch offers for dense attention alone."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            return F.scaled_dot_product_attention(q, k, v, enable_gqa=q.shape[1] != k.shape[1])

    return attend


def masked(mask: Tensor) -> Attention:
    """scaled_dot_product_attention under a dense mask, what people write for a custom pattern."""
    return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, mask)


def blocked_sdpa(pattern: Window, length: int, rows: int = 256) -> Attention:
    """scaled_dot_product_attention of each block of queries with the keys around it."""
    left, right = pattern.left, pattern.right
    assert left is not None and right is not None, "a limited window"

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        parts = []
        for start in range(0, length, rows):
            stop = min(start + rows, length)
            low, high = max(start - left, 0), min(stop + right, length)
            distance = torch.arange(low, high) - torch.arange(start, stop)[:, None]
            mask = (distance >= -left) & (distance <= right)
            parts.append(
                F.scaled_dot_product_attention(
                    q[:, :, start:stop], k[:, :, low:high], v[:, :, low:high], mask
                )
            )
        return torch.cat(parts, 2)

    return attend


def flex(pattern: Pattern, length: int, device: torch.device | str = "cpu") -> Attention:
    """Compiled FlexAttention with its block mask; compiles at the first call. No backward on a CPU."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Any:
        return pattern.sees(head, query, key)

    mask = create_block_mask(visible, None, None, length, length, device=str(device))
    compiled = torch.compile(flex_attention)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = compiled(q, k, v, block_mask=mask, enable_gqa=q.shape[1] != k.shape[1])
        return out

    return attend


def flash(pattern: Pattern, length: int, device: torch.device | str = "cuda") -> Attention:
    """FlashAttention-2's window by torch's own operator, on CUDA in half precision."""
    (band,) = pattern.lowered.bands
    assert band.left is not None and band.right is not None and band.dilations == (1,), "a limited window"
    reach = (band.left, band.right)

    class Flash(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            q, k, v = (x.transpose(1, 2) for x in (q, k, v))
            out, lse, seed, unused, _ = torch.ops.aten._flash_attention_forward(
                q,
                k,
                v,
                None,
                None,
                q.shape[1],
                k.shape[1],
                0.0,
                False,
                False,
                window_size_left=reach[0],
                window_size_right=reach[1],
            )
            ctx.save_for_backward(q, k, v, out, lse, seed, unused)
            return out.transpose(1, 2)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Any:
            q, k, v, out, lse, seed, unused = ctx.saved_tensors
            grads = torch.ops.aten._flash_attention_backward(
                grad.transpose(1, 2),
                q,
                k,
                v,
                out,
                lse,
                None,
                None,
                q.shape[1],
                k.shape[1],
                0.0,
                False,
                seed,
                unused,
                window_size_left=reach[0],
                window_size_right=reach[1],
            )
            return tuple(x.transpose(1, 2) for x in grads)

    return Flash.apply


def xformers(pattern: Pattern, length: int, device: torch.device | str = "cuda") -> Attention:
    """xformers' memory-efficient attention with its own bias for a window, on CUDA in half precision."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        fmha: Any = importlib.import_module("xformers.ops.fmha")
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        batch, length, heads, dims = q.shape
        shared = heads // k.shape[2]
        if shared > 1:  # [B, N, Hkv, H / Hkv, D], of keys by a stride of 0
            q = q.reshape(batch, length, -1, shared, dims)
            k, v = (x[:, :, :, None].expand(-1, -1, -1, shared, -1) for x in (k, v))
        out: Tensor = fmha.memory_efficient_attention(q, k, v, attn_bias=pattern.to_xformers_bias())
        return out.reshape(batch, length, heads, dims).transpose(1, 2)

    return attend
