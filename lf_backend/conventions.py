"""Other systems' window sizes as patterns. The same number means a different window nearly everywhere.

Each function is named after a system and takes its argument under that system's own name:

    lf.conventions.huggingface(512)      # Longformer, LED: 512 in total, 256 on each side, and self
    lf.conventions.allenai(256)          # the same window in the paper's own code: one side
    lf.conventions.flash_attn((256, 0))  # left and right, -1 for no limit
    lf.conventions.mistral(4096)         # 4,096 keys, self included, and nothing ahead
    lf.conventions.modernbert(128)       # 128 in total, 64 on each side, and self
    lf.conventions.attention_gym(1024)   # 1,024 keys back *and* self: one more than `mistral`
    lf.conventions.natten(7, is_causal=True)

All of them drop keys beyond the ends of the sequence, as `Window` does, except NATTEN without `is_causal`,
which shifts the window there and is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lf_backend._integers import integer
from lf_backend.errors import PatternError
from lf_backend.pattern.terms import Causal, Pattern, Window


def huggingface(attention_window: int) -> Window:
    """Longformer and LED in transformers: `attention_window` counts both sides, half on each, self apart.

    Args:
        attention_window: even, at least 2, for one layer; a configuration may hold one per layer.

    Raises:
        PatternError: an odd number, which transformers refuses as well, or one below 2.
    """
    size = integer("attention_window", attention_window, 2)
    if size % 2:
        raise PatternError(f"attention_window: an even number (half on each side) wanted, got {size}")
    return Window(size // 2, size // 2)


def allenai(
    attention_window: int, attention_dilation: int | Sequence[int] = 1, autoregressive: bool = False
) -> Pattern:
    """The authors' code (allenai/longformer): `attention_window` is one side, in dilated steps.

    Args:
        attention_window: at least 1, for one layer.
        attention_dilation: an int or one per head.
        autoregressive: nothing ahead, for global tokens as well. The released code takes this option and
            ignores it.
    """
    size = integer("attention_window", attention_window, 1)
    window = Window(size, size, attention_dilation)  # type: ignore[arg-type]
    return window & Causal() if autoregressive else window


def flash_attn(window_size: tuple[int, int], causal: bool = False) -> Window:
    """flash-attn, and what follows it: (left, right), self apart, -1 for no limit.

    With more keys than queries the queries are the last positions, there as here.

    Args:
        window_size: two ints >= -1.
        causal: nothing ahead, whatever `right` says.
    """
    if not isinstance(window_size, list | tuple) or len(window_size) != 2:
        raise PatternError(f"window_size: (left, right) wanted, got {window_size!r}")
    left, right = (None if _unlimited(side) else side for side in window_size)
    return Window(left, 0 if causal else right)


def _unlimited(side: Any) -> bool:
    return integer("window_size", side, -1) == -1


def mistral(sliding_window: int | None) -> Window:
    """Mistral, Qwen2, Gemma, GPT-OSS in transformers: the last `sliding_window` keys, self included.

    Args:
        sliding_window: at least 1, or None for no limit, as in their configurations.
    """
    if sliding_window is None:
        return Window(None, 0)
    return Window.causal(integer("sliding_window", sliding_window, 1))


def modernbert(local_attention: int) -> Window:
    """ModernBERT: `local_attention` counts both sides, half (rounded down) on each, self apart.

    Its layers with global attention see everything: `Window(None, None)`.

    Args:
        local_attention: at least 1.
    """
    half = integer("local_attention", local_attention, 1) // 2
    return Window(half, half)


def attention_gym(window_size: int) -> Window:
    """`generate_sliding_window` of attention-gym: causal, and `q_idx - kv_idx <= window_size`.

    So `window_size` keys back and self, one key more than the same number means in `mistral`.

    Args:
        window_size: at least 0.
    """
    return Window(integer("window_size", window_size, 0), 0)


def natten(kernel_size: int, dilation: int = 1, *, is_causal: bool) -> Window:
    """NATTEN in one dimension, causal: the last `kernel_size` keys, self included, in dilated steps.

    Args:
        kernel_size: at least 2.
        dilation: step between keys.
        is_causal: must be True. Otherwise NATTEN moves the window inwards at both ends, so that every
            query sees exactly `kernel_size` keys; a `Window` drops keys instead, and would differ there.

    Raises:
        PatternError: `is_causal` is False.
    """
    if not is_causal:
        raise PatternError(
            "is_causal: True wanted, got False: NATTEN shifts the window at the ends of the sequence, a "
            "Window does not; elsewhere an odd kernel_size is that with kernel_size // 2 on each side"
        )
    return Window.causal(integer("kernel_size", kernel_size, 2), dilation)
