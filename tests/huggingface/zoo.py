"""Small random models of every class, batches for them, and the comparison with stock transformers.

Tolerances are budgets, not tables: against stock in float64, the patched model may err twice as much as
stock in the same dtype, plus 16 roundings.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
import transformers
from torch import Tensor, nn

VOCABULARY, PAD, SEPARATOR = 50, 1, 2


def longformer(kind: str = "LongformerModel", **changes: Any) -> nn.Module:
    """A seeded model in eval mode; weights are large, so that attention is far from uniform."""
    config: dict[str, Any] = {
        "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 40, "attention_window": 8, "max_position_embeddings": 200, "pad_token_id": PAD,
        "sep_token_id": SEPARATOR, "initializer_range": 0.25, "num_labels": 3,
        "attention_probs_dropout_prob": 0.0, "hidden_dropout_prob": 0.0,
    }  # fmt: skip
    return _built(kind, transformers.LongformerConfig(**{**config, **changes}))


def led(kind: str = "LEDForConditionalGeneration", **changes: Any) -> nn.Module:
    """As `longformer`, an encoder with a decoder."""
    config: dict[str, Any] = {
        "vocab_size": VOCABULARY, "d_model": 32, "encoder_layers": 2, "decoder_layers": 1,
        "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 40,
        "decoder_ffn_dim": 40, "attention_window": 8, "max_encoder_position_embeddings": 200,
        "max_decoder_position_embeddings": 64, "pad_token_id": PAD, "init_std": 0.25, "dropout": 0.0,
        "num_labels": 3,
    }  # fmt: skip
    return _built(kind, transformers.LEDConfig(**{**config, **changes}))


def big_bird(kind: str = "BigBirdModel", **changes: Any) -> nn.Module:
    """As `longformer`, with blocks of 4, two of them random."""
    config: dict[str, Any] = {
        "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 40, "block_size": 4, "num_random_blocks": 2, "max_position_embeddings": 200,
        "pad_token_id": PAD, "sep_token_id": SEPARATOR, "initializer_range": 0.25,
        "attention_type": "block_sparse", "attention_probs_dropout_prob": 0.0, "hidden_dropout_prob": 0.0,
    }  # fmt: skip
    return _built(kind, transformers.BigBirdConfig(**{**config, **changes}))


_SEQ2SEQ: dict[str, Any] = {
    "vocab_size": VOCABULARY, "d_model": 32, "encoder_layers": 2, "decoder_layers": 1,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 40, "decoder_ffn_dim": 40,
    "pad_token_id": PAD, "init_std": 0.25, "dropout": 0.0, "attention_dropout": 0.0,
}  # fmt: skip


def bigbird_pegasus(kind: str = "BigBirdPegasusModel", **changes: Any) -> nn.Module:
    """As `big_bird`, an encoder with a decoder."""
    own = {
        "block_size": 4, "num_random_blocks": 2, "max_position_embeddings": 200,
        "attention_type": "block_sparse",
    }  # fmt: skip
    return _built(kind, transformers.BigBirdPegasusConfig(**{**_SEQ2SEQ, **own, **changes}))


def pegasus_x(kind: str = "PegasusXModel", **changes: Any) -> nn.Module:
    """Blocks of 8, every other layer staggered, three global tokens."""
    own = {"block_size": 8, "num_global_tokens": 3, "stagger_local_blocks": True}
    return _built(kind, transformers.PegasusXConfig(**{**_SEQ2SEQ, **own, **changes}))


def longt5(kind: str = "LongT5Model", **changes: Any) -> nn.Module:
    """A local encoder with windows of 5 on each side."""
    config: dict[str, Any] = {
        "vocab_size": VOCABULARY, "d_model": 32, "d_kv": 8, "num_layers": 2, "num_decoder_layers": 1,
        "num_heads": 4, "d_ff": 40, "local_radius": 5, "dropout_rate": 0.0, "pad_token_id": PAD,
        "encoder_attention_type": "local", "initializer_factor": 1.5, "relative_attention_num_buckets": 8,
        "relative_attention_max_distance": 6,
    }  # fmt: skip
    return _built(kind, transformers.LongT5Config(**{**config, **changes}))


def _built(kind: str, config: Any) -> nn.Module:
    torch.manual_seed(0)
    return getattr(transformers, kind)(config).eval()


def tokens(batch: int, length: int) -> Tensor:
    """Token numbers [batch, length] without special ones."""
    return torch.randint(SEPARATOR + 1, VOCABULARY, (batch, length))


def masks(length: int) -> dict[str, Tensor]:
    """Four examples: two globals; one, and right padding; no global, padding in the middle; all padding."""
    attention_mask = torch.ones(4, length, dtype=torch.long)
    attention_mask[1, length - length // 3 :] = 0
    attention_mask[2, length // 3 : length // 2] = 0
    attention_mask[3] = 0
    global_attention_mask = torch.zeros_like(attention_mask)
    global_attention_mask[0, [0, length // 2]] = 1
    global_attention_mask[1, 1] = 1
    global_attention_mask[3, 0] = 1
    return {"attention_mask": attention_mask, "global_attention_mask": global_attention_mask}


Results = dict[str, Tensor]


def results(model: nn.Module, batch: dict[str, Any], length: int, **asked: bool) -> Results:
    """All outputs, cropped to the length, and all gradients of the loss."""
    model.zero_grad()
    output = model(**batch, **asked)
    found = {name: x for name, value in output.items() for name, x in _named(name, value)}
    loss = found.get("loss")
    if loss is None:
        loss = sum(x.double().square().mean() for name, x in found.items() if "attentions" not in name)
    loss.backward()
    found = {name: _comparable(name, x.detach(), length) for name, x in found.items()}
    grads = {f"grad {name}": x.grad for name, x in model.named_parameters() if x.grad is not None}
    return {**found, **grads}


def _named(name: str, value: Any) -> list[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        return [(name, value)]
    return [(f"{name}.{index}", x) for index, x in enumerate(value or ()) if isinstance(x, Tensor)]


def _comparable(name: str, x: Tensor, length: int) -> Tensor:
    """Without what depends on upstream's padding: the columns of padding, and slots without a global."""
    if "global_attentions" not in name:
        return x
    unused = (x == x[:, :, :1]).all(2, keepdim=True)
    return x.masked_fill(unused, 0)[:, :, :length] * (length > 1)  # with one key all rows are alike


def assert_same(
    patched: nn.Module,
    stock: nn.Module,
    batch: dict[str, Any],
    length: int,
    run: Callable[..., Results] = results,
    **asked: bool,
) -> None:
    """Raise AssertionError unless the patched model is as near to the truth as stock is."""
    truth = _truth(stock, batch, length, run, **asked)
    want, got = run(stock, batch, length, **asked), run(patched, batch, length, **asked)
    assert got.keys() == want.keys() == truth.keys()
    eps = max(torch.finfo(x.dtype).eps for x in want.values())  # autocast keeps gradients in float32
    grads = max(float(x.abs().max()) for name, x in truth.items() if name.startswith("grad"))
    for name, exact in truth.items():
        assert got[name].shape == want[name].shape, name
        assert got[name].dtype == want[name].dtype, name
        scale = grads if name.startswith("grad") else float(exact.abs().max())
        # The order of sums, and so the rounding, depends on how wide the vectors of a processor are.
        allowed = 2 * float((want[name] - exact).abs().max()) + 32 * eps * scale
        error = float((got[name] - exact).abs().max())
        assert error <= allowed, f"{name}: error {error:.2e}, allowed {allowed:.2e}"


def _truth(
    stock: nn.Module, batch: dict[str, Any], length: int, run: Callable[..., Results], **asked: bool
) -> Results:
    """Stock in float64, its softmax included, which upstream keeps in float32: from scores of
    finfo(float64).min that makes NaN, and NaN gradients wherever examples differ in globals."""
    softmax = nn.functional.softmax
    doubled = {
        name: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x
        for name, x in batch.items()
    }
    with (
        mock.patch.object(nn.functional, "softmax", lambda x, dim, dtype=None: softmax(x, dim)),
        mock.patch.object(Tensor, "float", lambda x: x),
    ):
        return run(copy.deepcopy(stock).double(), doubled, length, **asked)
