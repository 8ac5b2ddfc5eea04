"""The proof of a conversion: where both models see the same, they give the same.

Three comparisons, on seeded inputs of several lengths, of which one example is padded:

- the new model as it is, on inputs that its narrowest window shows whole,
- the new model with windows that show everything, up to the old one's limit and so beyond every window,
- where both write text, the tokens that they write.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

import lf_backend as lf
from lf_backend.errors import PatchError
from lf_huggingface.conversion.positions import most_positions
from lf_huggingface.errors import ConversionError
from lf_huggingface.interface import config_patterns

_LENGTHS = (1, 17, 64, 512)
_MOST = 2048  # of models whose positions have no limit, or one that no text reaches
_NEW_TOKENS = 8


def difference(short: nn.Module, long: nn.Module) -> float:
    """Return the largest difference of the first output, over its largest value."""
    limit = _limit(short)
    found = [_difference(short, long, length) for length in _lengths(_narrow(long, limit))]
    with _seeing_everything(long, limit) as wide:
        found += [_difference(short, wide, length) for length in _lengths(limit)]
    return max(found)


def check(short: nn.Module, long: nn.Module) -> float:
    """Return the `difference`, which must be that of rounding; both models must write the same text.

    Raises:
        ConversionError: it is not, or the models write different texts.
    """
    found = difference(short, long)
    dtype = next(short.parameters()).dtype
    allowed = 4096 * torch.finfo(dtype).eps  # rounding through the layers, of a result of size 1
    if not found <= allowed:
        raise ConversionError(f"difference on short inputs <= {allowed:.1g} wanted, got {found:.1g}")
    _check_texts(short, long, _narrow(long, _limit(short)))
    return found


def _limit(short: nn.Module) -> int:
    return min(most_positions(short), _MOST)


def _narrow(long: nn.Module, limit: int) -> int:
    """The longest input that the narrowest window shows whole."""
    return min(_reach(long.config) + 1, limit)


def _lengths(most: int) -> list[int]:
    return sorted({max(1, min(length, most)) for length in (*_LENGTHS, most)})


def _difference(short: nn.Module, long: nn.Module, length: int) -> float:
    batch = _batch(short, length)
    found = [_run(model, batch).float() for model in (short, long)]
    mask = batch["attention_mask"]
    if found[0].shape[:2] == mask.shape and not getattr(short.config, "is_encoder_decoder", False):
        found = [x[mask == 1] for x in found]  # what padding comes to differs between models
    return float((found[0] - found[1]).abs().max() / found[0].abs().max())


def _batch(short: nn.Module, length: int) -> dict[str, Tensor]:
    """Two examples, the second padded on the right."""
    config: Any = short.config
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, config.vocab_size, (2, length), generator=generator)
    padding = config.pad_token_id or 0
    ids = ids.masked_fill(ids == config.pad_token_id, padding + 1)
    mask = torch.ones_like(ids)
    mask[1, length - length // 4 :] = 0
    device = next(short.parameters()).device
    return {"input_ids": ids.masked_fill(mask == 0, padding).to(device), "attention_mask": mask.to(device)}


def _given(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """A batch with no global token, where a model would ask for them."""
    if not hasattr(model.config, "attention_window"):
        return batch
    return {**batch, "global_attention_mask": torch.zeros_like(batch["attention_mask"])}


def _run(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    options = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
    with _evaluated(model), torch.no_grad():
        out: Tensor = model(**_given(model, batch), **options)[0]
    return out


def _check_texts(short: Any, long: Any, length: int) -> None:
    """Raise ConversionError if two models that generate do not write the same tokens."""
    generates = getattr(short, "can_generate", None)
    if generates is None or not generates() or next(short.parameters()).dtype.itemsize < 4 or length < 2:
        return  # in half precision, rounding chooses tokens
    batch = _batch(short, max(1, min(length - 1, 16)))
    if not short.config.is_encoder_decoder:
        batch = {name: x[:1] for name, x in batch.items()}
    steps = min(_NEW_TOKENS, max(1, length - batch["input_ids"].shape[1]))
    asked: dict[str, Any] = {"max_new_tokens": steps, "do_sample": False}
    texts = []
    for model in (short, long):
        with _evaluated(model):
            texts.append(model.generate(**_given(model, batch), **asked))
    if not torch.equal(*texts):
        raise ConversionError(f"the text of the source wanted, {texts[0].tolist()}, got {texts[1].tolist()}")


@contextmanager
def _evaluated(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@contextmanager
def _seeing_everything(long: nn.Module, limit: int) -> Iterator[nn.Module]:
    """The model with windows as wide as the inputs; a causal one stays causal."""
    with _unpatched(long) as model, lf.patch(model, lf.Window(limit - 1, limit - 1)):
        yield model


@contextmanager
def _unpatched(model: nn.Module) -> Iterator[nn.Module]:
    try:
        lf.Patch.of(model)
    except PatchError:
        yield model
    else:
        copied = copy.deepcopy(model)
        lf.Patch.of(copied).undo()
        yield copied


def _reach(config: Any) -> int:
    """How far the narrowest window of the new model sees, on one side."""
    if hasattr(config, "attention_window"):
        return int(min(config.attention_window)) // 2
    return min(int(pattern.lowered.reach or _MOST) for pattern in config_patterns.layers(config))
