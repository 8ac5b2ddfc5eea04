"""Bad input: a clear error that names the argument, what was wanted and what came."""

import inspect

import pytest
import torch

import lf_backend as lf
from lf_backend.backends.reference import Reference
from lf_backend.dispatch import registry

W = lf.Window(4, 4)
GLOBAL = W | lf.Global(0)


def t(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype)


Q = t(2, 4, 10, 8)
OWN = {"global_q": Q, "global_k": Q, "global_v": Q}

BAD = [
    ("q: a tensor wanted, got list", {"q": [1]}),
    ("k: a tensor wanted, got NoneType", {"k": None}),
    ("sinks: a tensor wanted, got list", {"sinks": [1.0]}),
    ("global_v: a tensor wanted, got float", {**OWN, "global_v": 1.0}),
    ("q: [batch, heads, length, head_dim] wanted, got [4, 10, 8]", {"q": t(4, 10, 8)}),
    ("q: [batch, heads, length, head_dim] wanted, got []", {"q": t()}),
    ("q: head_dim >= 1 wanted, got [2, 4, 10, 0]", {x: t(2, 4, 10, 0) for x in "qkv"}),
    ("wanted, got torch.int64", {x: t(2, 4, 10, 8, dtype=torch.int64) for x in "qkv"}),
    ("k: dtype torch.float32 of q wanted, got torch.float64", {"k": Q.double()}),
    ("k: device cpu of q wanted, got meta", {"k": Q.to("meta"), "v": Q.to("meta")}),
    ("v: batch, heads and length of k [2, 4, 10], of any width, wanted, got [2, 4, 9, 8]",
     {"v": t(2, 4, 9, 8)}),
    ("k: batch 2 and head_dim 8 of q wanted, got [3, 4, 10, 8]", {"k": t(3, 4, 10, 8), "v": t(3, 4, 10, 8)}),
    ("k: a number of heads that divides q's 4 wanted, got 3", {"k": t(2, 3, 10, 8), "v": t(2, 3, 10, 8)}),
    ("q: at most as many queries as keys (9) wanted, got 10", {"k": t(2, 4, 9, 8), "v": t(2, 4, 9, 8)}),
    ("key_padding: a bool tensor wanted, got list", {"key_padding": [True]}),
    ("key_padding: dtype torch.bool (True = padded) wanted, got torch.float32", {"key_padding": t(2, 10)}),
    ("key_padding: shape [batch, keys] = [2, 10] wanted, got [2, 9]",
     {"key_padding": t(2, 9, dtype=torch.bool)}),
    ("global_mask: dtype torch.bool (True = global) wanted, got torch.int64",
     {"global_mask": t(2, 10, dtype=torch.int64)}),
    ("global_mask: shape [batch, keys] = [2, 10] wanted, got [10]",
     {"global_mask": t(10, dtype=torch.bool)}),
    ("global_q, global_k, global_v: all or none wanted, missing ['global_k', 'global_v']", {"global_q": Q}),
    ("global_v: shape [2, 4, 10, 8] wanted, got [2, 4, 9, 8]",
     {**OWN, "global_v": t(2, 4, 9, 8), "pattern": GLOBAL}),
    ("a pattern with global tokens, a global_mask or global_positions wanted, got window(4, 4)", OWN),
    ("sinks: shape [4] wanted, got [3]", {"sinks": t(3)}),
    ("sinks: a floating dtype wanted, got torch.int64", {"sinks": t(4, dtype=torch.int64)}),
    ("band_bias: shape [1 or 2, 4, 10, 9] wanted, got [1, 4, 10, 8]", {"band_bias": t(1, 4, 10, 8)}),
    ("band_bias: a pattern with exactly one limited window wanted, got causal()",
     {"band_bias": t(1, 4, 10, 9), "pattern": lf.Causal()}),
    ("dropout_p: a probability in [0, 1) wanted, got 1.0", {"dropout_p": 1.0}),
    ("dropout_p: a probability in [0, 1) wanted, got -0.1", {"dropout_p": -0.1}),
    ("scale: a finite number wanted, got nan", {"scale": float("nan")}),
    ("scale: a float wanted, got 'half'", {"scale": "half"}),
    ("dropout_p: a float wanted, got [0.1]", {"dropout_p": [0.1]}),
    ("softcap: a finite number > 0 or None wanted, got 0.0", {"softcap": 0.0}),
    ("pattern: a lf_backend pattern or its string wanted, got 7", {"pattern": 7}),
    ("dilation: one int per head wanted, 4 heads, got 3 values", {"pattern": lf.Window(1, 1, (1, 2, 3))}),
    ("global position < 10 (the number of keys) wanted, got 10", {"pattern": W | lf.Global(10)}),
    ("'reference'] wanted, got 'nonsense'", {"backend": "nonsense"}),
]  # fmt: skip


@pytest.mark.parametrize("text, changed", BAD, ids=[text[:40] for text, _ in BAD])
@pytest.mark.parametrize("function", [lf.attention, lf.explain])
def test_bad_input(function, text: str, changed: dict) -> None:
    given = {"q": Q, "k": Q, "v": Q, "pattern": W, **changed}
    with pytest.raises(lf.LFError) as error:
        function(**given)
    assert text in str(error.value)
    if "backend" not in changed:
        assert isinstance(error.value, ValueError)


def test_no_option_is_accepted_and_ignored() -> None:
    with pytest.raises(TypeError, match="attn_mask"):
        lf.attention(Q, Q, Q, W, attn_mask=None)


class Plain(Reference):
    """A backend that takes windows and nothing else."""

    name = "plain"
    priority = -1
    capabilities = lf.Capabilities(features=frozenset())


def test_forced_backend_that_cannot_says_all_its_reasons() -> None:
    pattern = lf.Predicate(lambda head, query, key: key <= query)
    lf.register(Plain)
    try:
        with pytest.raises(lf.UnsupportedError, match="'plain' cannot run this call") as error:
            lf.attention(Q, Q, Q, pattern, softcap=1.0, backend="plain")
    finally:
        registry.unregister("plain")
    assert "plain       cannot: predicate is not supported; softcap is not supported" in str(error.value)
    assert error.value.selection.chosen is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"causal": True},
            r"attention: there is no argument 'causal'; write the pattern as .*lf.Causal",
        ),
        ({"key_paddin": None}, r"there is no argument 'key_paddin'; did you mean key_padding\?"),
        ({"zzz": 1}, r"there is no argument 'zzz'; known are .*return_lse.*key_padding"),
    ],
)
def test_an_unknown_argument_says_what_to_write(options: dict, message: str) -> None:
    q = torch.randn(1, 1, 4, 4)
    with pytest.raises(lf.ArgumentError, match=message):
        lf.attention(q, q, q, lf.Window(1, 1), **options)


def test_a_mask_of_hugging_face_is_the_reverse() -> None:
    q = torch.randn(1, 1, 4, 4)
    with pytest.raises(lf.ShapeError, match=r"torch.int64; Hugging Face's attention_mask is the reverse"):
        lf.attention(q, q, q, lf.Window(1, 1), key_padding=torch.ones(1, 4, dtype=torch.int64))


def test_signatures_show_every_option() -> None:
    for function in (lf.attention, lf.explain, lf.probabilities):
        shown = inspect.signature(function).parameters
        assert {"key_padding", "global_mask", "scale", "dropout_p", "backend"} <= shown.keys()
        assert all(p.kind is not p.VAR_KEYWORD for p in shown.values())
