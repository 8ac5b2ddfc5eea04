"""The proof of a conversion: on inputs that both models see whole, they give the same."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lf_huggingface.errors import ConversionError

_LENGTHS = (1, 17, 64, 512)


def difference(short: nn.Module, long: nn.Module) -> float:
    """The largest difference of the first output, over its largest value, on seeded inputs.

    They are of several lengths, as long as the old model and half a window of the new one allow, and one of
    two examples is padded.
    """
    config: Any = short.config
    most = min(_window(long.config) // 2 + 1, getattr(config, "max_position_embeddings", _LENGTHS[-1]) - 2)
    lengths = sorted({max(1, min(length, most)) for length in (*_LENGTHS, most)})
    return max(_difference(short, long, length) for length in lengths)


def _difference(short: nn.Module, long: nn.Module, length: int) -> float:
    config: Any = short.config
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, config.vocab_size, (2, length), generator=generator)
    device = next(short.parameters()).device
    padding = config.pad_token_id or 0
    ids = ids.masked_fill(ids == config.pad_token_id, padding + 1).to(device)
    mask = torch.ones_like(ids)
    mask[1, length - length // 4 :] = 0
    batch = {"input_ids": ids.masked_fill(mask == 0, padding), "attention_mask": mask}
    added = {}
    if hasattr(long.config, "attention_window"):
        added["global_attention_mask"] = torch.zeros_like(ids)
    found = []
    for model, arguments in ((short, batch), (long, {**batch, **added})):
        was_training = model.training
        with torch.no_grad():
            found.append(model.eval()(**arguments)[0].float())
        model.train(was_training)
    if found[0].shape[:2] == mask.shape and not getattr(config, "is_encoder_decoder", False):
        found = [x[mask == 1] for x in found]  # what padding comes to differs between models
    return float((found[0] - found[1]).abs().max() / found[0].abs().max())


def check(short: nn.Module, long: nn.Module) -> float:
    """`difference`, which must be that of rounding.

    Raises:
        ConversionError: it is not.
    """
    found = difference(short, long)
    dtype = next(short.parameters()).dtype
    allowed = 4096 * torch.finfo(dtype).eps  # rounding through the layers, of a result of size 1
    if not found <= allowed:
        raise ConversionError(f"difference on short inputs <= {allowed:.1g} wanted, got {found:.1g}")
    return found


def _window(config: Any) -> int:
    """The smallest window of the new model, in total."""
    if hasattr(config, "attention_window"):
        return int(min(config.attention_window))
    return int(2 * config.lf_attention["left"])
