"""`convert`: a checkpoint for short inputs becomes one for long inputs, and answers short ones as before.

The recipe is Longformer's own (Beltagy et al. 2020, section 5): learned positions are copied again and
again, which keeps what attention knows of near ones, and the projections of global tokens start as copies
of the local ones. A few thousand steps of training then let it use the length.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from lf_backend import conventions
from lf_backend.pattern.notation import to_dict
from lf_huggingface.conversion.mappings import FAMILIES, UNMAPPED, Family
from lf_huggingface.conversion.positions import LENGTH, tables, tiled
from lf_huggingface.errors import ConversionError
from lf_huggingface.interface.mask_function import NOT_ROUTED


def convert(
    model: nn.Module,
    max_length: int = 4096,
    attention_window: int = 512,
    *,
    keep_class: bool = False,
    tokenizer: Any = None,
) -> nn.Module:
    """A long model from a short one: RoBERTa, XLM-R, CamemBERT, BERT, DistilBERT, ELECTRA, BART.

    The model itself stays as it is. The new one shares its tensors, but for positions, the projections of
    global tokens, and the bias of a language model's head (which transformers copies when it ties weights).

    Args:
        model: a model of transformers, of a class that maps exactly (`mappings`).
        max_length: positions of the new model, at least those of the old one.
        attention_window: keys of a window without self, half on each side; even.
        keep_class: the same class with attn_implementation="lf" and its window in `config.lf_attention`,
            for these models and for decoders; positions that are not learned are left alone.
        tokenizer: its `model_max_length` is set. Question answering needs it where the config does not
            say which token separates.

    Returns:
        A Longformer or LED; with `keep_class` a model of the same class. In evaluation mode.

    Raises:
        ConversionError: a class that does not map, and why; a model that is long already; a shorter length.
        PatternError: a window that is odd or below 2.
    """
    window = conventions.huggingface(attention_window)
    if isinstance(max_length, bool) or not isinstance(max_length, int):
        raise ConversionError(f"max_length: an int wanted, got {max_length!r}")
    config: Any = getattr(model, "config", None)
    _check_short(model, config)
    if keep_class:
        new = _same_class(model, config, max_length, to_dict(window))
    else:
        new = _longformer(model, config, max_length, attention_window, tokenizer)
    if getattr(model, "generation_config", None) is not None:  # it writes what its source writes
        new.generation_config = copy.deepcopy(model.generation_config)
    if tokenizer is not None:
        tokenizer.model_max_length = max_length
    return new.train(False)


def _check_short(model: Any, config: Any) -> None:
    name = type(model).__name__
    if not isinstance(model, transformers.PreTrainedModel):
        raise ConversionError(f"model: a model of transformers wanted, got {name}")
    if config.model_type in NOT_ROUTED or getattr(config, "lf_attention", None) is not None:
        raise ConversionError(f"model: one for short inputs wanted, {name} is long already")


def _longformer(model: Any, config: Any, max_length: int, attention_window: int, tokenizer: Any) -> nn.Module:
    name = type(model).__name__
    family = FAMILIES.get(config.model_type)
    target = family.targets.get(name) if family else None
    if family is None or target is None:
        known = sorted(name for family in FAMILIES.values() for name in family.targets)
        reason = UNMAPPED.get(name, f"one of {known} wanted")
        raise ConversionError(f"model: {name} cannot become a Longformer exactly: {reason}; see keep_class")
    _check_exact(config, name)
    made_config = _config(config, family, max_length, attention_window, target.name, tokenizer)
    tensors = {target.rename(key): x for key, x in model.state_dict().items()}
    if config.model_type == "bart":
        _bart_positions(tensors, max_length)
    else:
        _bert_positions(tensors, config, family, max_length)
    if (bias := "lm_head.decoder.bias") in tensors:
        tensors["lm_head.bias"] = tensors[bias]  # one tensor with two names, of which some models have one
    for key in list(tensors):
        if re.search(r"\.(query|key|value)\.(weight|bias)$", key):
            local, kind = key.rsplit(".", 1)
            tensors[f"{local}_global.{kind}"] = tensors[key].clone()
    new = _loaded(getattr(transformers, target.name), made_config, tensors)
    _keep_dropout(new, config)
    return new


def _keep_dropout(new: Any, config: Any) -> None:
    """Give a head the source's own probability of dropout, which a config of Longformer has no word for.

    It stays in the config; a model that is loaded again has to be told.
    """
    own = getattr(config, "classifier_dropout", None)
    if own is None or hasattr(new.config, "classifier_dropout"):
        return
    new.config.classifier_dropout = own
    heads = [getattr(module, "dropout", None) for module in (new, getattr(new, "classifier", None))]
    for head in heads:
        if isinstance(head, nn.Dropout):
            head.p = own


def _check_exact(config: Any, name: str) -> None:
    """Raise ConversionError for settings that Longformer and LED do not know."""
    wanted: dict[str, Any] = {"scale_embedding": False, "is_decoder": False, "add_cross_attention": False}
    wanted |= {"sinusoidal_pos_embds": False, "position_embedding_type": "absolute"}
    if name.endswith("ForMaskedLM"):
        wanted |= {"activation" if hasattr(config, "n_heads") else "hidden_act": "gelu"}
    if hasattr(config, "embedding_size"):
        wanted |= {"embedding_size": config.hidden_size}
    if not isinstance(config.pad_token_id, int):
        raise ConversionError(f"pad_token_id: an int in the config wanted, got {config.pad_token_id!r}")
    for key, value in wanted.items():
        if (got := getattr(config, key, value)) not in (value, None):
            raise ConversionError(f"{key}: {value!r} wanted for {name}, got {got!r}")


def _config(
    config: Any, family: Family, max_length: int, attention_window: int, name: str, tokenizer: Any
) -> Any:
    """The config of the new model: what has the same name, what is renamed, what is new."""
    kind = getattr(transformers, name).config_class
    own, defaults = config.to_dict(), kind(attention_window=2).to_dict()
    skipped = {"model_type", "architectures", "transformers_version", "_name_or_path", "attention_window"}
    values = {key: own[key] for key in defaults.keys() & own.keys() - skipped}
    values |= {new: getattr(config, old) for new, old in family.settings.items()}
    values |= {**family.fixed, "attention_window": attention_window}
    if config.model_type == "bart":
        if max_length % attention_window:
            raise ConversionError(
                f"max_length: a multiple of attention_window={attention_window} wanted, LED pads to it, got "
                f"{max_length}"
            )
        return kind(**values, max_encoder_position_embeddings=max_length)
    values[LENGTH] = max_length + config.pad_token_id + 1
    if name.endswith("ForQuestionAnswering"):
        separator = config.eos_token_id if family.has_padding_row else None
        values["sep_token_id"] = separator if tokenizer is None else tokenizer.sep_token_id
        if values["sep_token_id"] is None:
            raise ConversionError("tokenizer: one wanted for question answering, to know the separator")
    return kind(**values)


def _bert_positions(tensors: dict[str, Tensor], config: Any, family: Family, max_length: int) -> None:
    [key] = [key for key in tensors if key.endswith("embeddings.position_embeddings.weight")]
    table, padding = tensors[key], config.pad_token_id + 1
    if not family.has_padding_row:
        table = torch.cat([table.new_zeros(padding, table.shape[1]), table])
    tensors[key] = tiled(table, padding, max_length)
    types = key.replace("position", "token_type")
    tensors.setdefault(types, table.new_zeros(1, table.shape[1]))


def _bart_positions(tensors: dict[str, Tensor], max_length: int) -> None:
    """BART's two tables have two rows that nothing reads, LED's have not."""
    for key in [key for key in tensors if key.endswith("embed_positions.weight")]:
        table = tensors[key][2:]
        tensors[key] = tiled(table, 0, max_length) if "encoder." in key else table.clone()


def _same_class(model: Any, config: Any, max_length: int, pattern: dict[str, Any]) -> nn.Module:
    if not model._can_set_attn_implementation():
        raise ConversionError(
            f"model: one that takes an attn_implementation wanted, got {type(model).__name__}"
        )
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") != "default":
        raise ConversionError(
            f"model: rotary positions that do not depend on the length wanted, got {rope['rope_type']!r}"
        )
    if windows := _windows_of_its_own(config):
        raise ConversionError(
            f"model: one without windows of its own wanted, {type(model).__name__} has {windows}, which one "
            'window for all layers would replace; attn_implementation="lf" runs them as they are'
        )
    own = getattr(config, LENGTH, None)
    if own is None:
        raise ConversionError(f"model: a config with {LENGTH} wanted, got {type(config).__name__}")
    tensors = model.state_dict()
    before = 0
    for path, first in tables(model).items():
        before = first if path.endswith("position_embeddings") else before
        tensors[f"{path}.weight"] = tiled(tensors[f"{path}.weight"], first, max_length)
    if max_length + before < own:
        raise ConversionError(f"max_length >= {own - before} (the model's own) wanted, got {max_length}")
    made_config = copy.deepcopy(config)
    setattr(made_config, LENGTH, max_length + before)
    made_config.lf_attention = pattern
    made_config._attn_implementation = "lf"
    return _loaded(type(model), made_config, tensors)


def _windows_of_its_own(config: Any) -> str:
    """Name the settings of a config that lay windows over some of its layers; none if nothing does."""
    found = {
        name: value
        for name in ("sliding_window", "local_attention", "attention_chunk_size")
        if (value := getattr(config, name, None)) and getattr(config, "use_sliding_window", True)
    }
    if set(getattr(config, "layer_types", None) or ()) - {"full_attention"}:
        found["layer_types"] = sorted(set(config.layer_types))
    return ", ".join(f"{name}={value}" for name, value in found.items())


def _loaded(kind: Any, config: Any, tensors: Mapping[str, Tensor]) -> nn.Module:
    """A model of these tensors, nothing missing and nothing left over."""
    model: nn.Module = kind(config)
    wanted = {key: x.shape for key, x in model.state_dict().items()}
    wrong = {key for key in wanted.keys() & tensors.keys() if wanted[key] != tensors[key].shape}
    wrong |= wanted.keys() ^ tensors.keys()
    if wrong:
        raise ConversionError(f"model: tensors of {kind.__name__} wanted, these do not fit: {sorted(wrong)}")
    model.load_state_dict(tensors, assign=True)
    model.tie_weights()  # type: ignore[operator]
    return model
