"""Every foreign window, drawn: what a number means elsewhere, to be seen at a glance."""

import pytest

from lf_backend import PatternError, conventions, draw

TWO_ON_EACH_SIDE = """
 # # # . . . .
 # # # # . . .
 # # # # # . .
 . # # # # # .
 . . # # # # #
 . . . # # # #
 . . . . # # #
"""
FOUR_KEYS_WITH_SELF = """
 # . . . . . .
 # # . . . . .
 # # # . . . .
 # # # # . . .
 . # # # # . .
 . . # # # # .
 . . . # # # #
"""
FIVE_KEYS_WITH_SELF = """
 # . . . . . .
 # # . . . . .
 # # # . . . .
 # # # # . . .
 # # # # # . .
 . # # # # # .
 . . # # # # #
"""
EVERYTHING = "\n" + 7 * (7 * " #" + "\n")
PAST = "\n" + "".join(row * " #" + (7 - row) * " ." + "\n" for row in range(1, 8))
EVERY_OTHER = """
 # . . . . . .
 . # . . . . .
 # . # . . . .
 . # . # . . .
 # . # . # . .
 . # . # . # .
 . . # . # . #
"""


@pytest.mark.parametrize(
    ("window", "drawn"),
    [
        (conventions.huggingface(4), TWO_ON_EACH_SIDE),
        (conventions.allenai(2), TWO_ON_EACH_SIDE),
        (conventions.allenai(4, autoregressive=True), FIVE_KEYS_WITH_SELF),
        (conventions.flash_attn((2, 2)), TWO_ON_EACH_SIDE),
        (conventions.flash_attn((3, 0)), FOUR_KEYS_WITH_SELF),
        (conventions.flash_attn((3, 2), causal=True), FOUR_KEYS_WITH_SELF),
        (conventions.flash_attn((-1, -1)), EVERYTHING),
        (conventions.flash_attn((-1, 0)), PAST),
        (conventions.mistral(4), FOUR_KEYS_WITH_SELF),
        (conventions.mistral(None), PAST),
        (conventions.modernbert(4), TWO_ON_EACH_SIDE),
        (conventions.modernbert(5), TWO_ON_EACH_SIDE),
        (conventions.attention_gym(4), FIVE_KEYS_WITH_SELF),
        (conventions.natten(4, is_causal=True), FOUR_KEYS_WITH_SELF),
        (conventions.natten(3, 2, is_causal=True), EVERY_OTHER),
        (conventions.allenai(2, attention_dilation=2, autoregressive=True), EVERY_OTHER),
    ],
)
def test_drawn(window, drawn):
    rows = draw(window, 7).text(ascii=True).splitlines()[2:-1]
    assert "\n" + "\n".join(rows) + "\n" == drawn


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: conventions.huggingface(511), r"attention_window: an even number .* wanted, got 511"),
        (lambda: conventions.huggingface(0), r"attention_window >= 2 wanted, got 0"),
        (lambda: conventions.huggingface([512]), r"attention_window: an int wanted, got \[512\]"),
        (lambda: conventions.allenai(0), r"attention_window >= 1 wanted, got 0"),
        (lambda: conventions.flash_attn((-2, 0)), r"window_size >= -1 wanted, got -2"),
        (lambda: conventions.flash_attn(256), r"window_size: \(left, right\) wanted, got 256"),
        (lambda: conventions.mistral(0), r"sliding_window >= 1 wanted, got 0"),
        (lambda: conventions.modernbert(0), r"local_attention >= 1 wanted, got 0"),
        (lambda: conventions.attention_gym(-1), r"window_size >= 0 wanted, got -1"),
        (lambda: conventions.natten(7, is_causal=False), r"is_causal: True wanted, got False: NATTEN shifts"),
        (lambda: conventions.natten(1, is_causal=True), r"kernel_size >= 2 wanted, got 1"),
    ],
)
def test_errors(make, message):
    with pytest.raises(PatternError, match=message):
        make()
