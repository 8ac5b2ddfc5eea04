"""Encoders from a folder: short ones are converted, and all run sparse.

Longformer and LED are patched. What attends through transformers' interface (ModernBERT, or whatever has
`lf_attention` in its config) is configured. RoBERTa, BERT and BART become Longformers and LEDs first.
"""

from __future__ import annotations

import contextlib
import inspect
import json
from pathlib import Path
from typing import Any

import transformers

import lf_backend as lf
import lf_huggingface
from lf_backend.errors import LFError, PatchError
from lf_huggingface.errors import RecipeError

LONG = ("longformer", "led", "big_bird")
CONVERTED = ("roberta", "xlm-roberta", "camembert", "bert", "distilbert", "electra", "bart")


def long_folder(source: Path, target: Path, max_length: int, attention_window: int) -> Path:
    """The folder of a long checkpoint: the source, or what it was converted to.

    Args:
        source: a checkpoint with its tokenizer.
        target: where a conversion is written, once.

    Raises:
        RecipeError: no checkpoint, no tokenizer, or a model that is no encoder for long inputs.
        ConversionError: a short model that cannot become a long one, and why.
    """
    config = _config(source)
    if config.model_type not in CONVERTED or getattr(config, "lf_attention", None) is not None:
        return source
    if (target / "config.json").exists():
        return target
    names = list(config.architectures or [])
    if len(names) != 1 or not hasattr(transformers, names[0]):
        raise RecipeError(f"--model: one class of transformers in {source}/config.json wanted, got {names}")
    name = names[0].replace("ForPreTraining", "ForMaskedLM")
    short = getattr(transformers, name).from_pretrained(source)
    tokenizer = load_tokenizer(source)
    long: Any = lf_huggingface.convert(short, max_length, attention_window, tokenizer=tokenizer)
    tokenizer.save_pretrained(target)
    long.save_pretrained(target)
    return target


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a checkpoint, a fast one.

    Raises:
        RecipeError: there is none, or it cannot say which characters a token comes from.
    """
    try:
        found = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise RecipeError(
            f"--model: a checkpoint with a tokenizer wanted, {folder} has none: {error}"
        ) from None
    if not found.is_fast or len(found) < 8:
        raise RecipeError(
            f"--model: a fast tokenizer with a vocabulary wanted, got {type(found).__name__} in {folder}"
        )
    return found


def load(kind: Any, folder: Path, *, optional: tuple[str, ...] = (), **settings: Any) -> Any:
    """A model of an Auto class from a long checkpoint, sparse.

    Args:
        kind: e.g. transformers.AutoModel.
        optional: how names of tensors begin that may be missing, and start anew.
        settings: of from_pretrained.

    Raises:
        RecipeError: tensors that the model needs are missing.
    """
    how = attention(_config(folder))
    model, info = kind.from_pretrained(
        folder, output_loading_info=True, local_files_only=True, **how, **settings
    )
    if missing := sorted(name for name in info["missing_keys"] if not name.startswith(optional)):
        raise RecipeError(
            f"--model: a checkpoint of {type(model).__name__} wanted, {folder} lacks {missing[:3]}"
        )
    return sparse(model)


def attention(config: Any) -> dict[str, str]:
    """Settings of from_pretrained and from_config for a model of this config."""
    return {} if config.model_type in LONG else {"attn_implementation": "lf"}


def takes_packed_rows(folder: Path) -> bool:
    """Whether the model of a long checkpoint tells the documents of a row apart: what is configured does."""
    return bool(attention(_config(folder)))


def sparse(model: Any, *, unpad: bool = False) -> Any:
    """A model that is patched where its config does not configure it: the one place where recipes do.

    Args:
        unpad: run the encoder without padding.

    Raises:
        PatchError: `unpad` of a model that cannot do without, and why.
    """
    if model.config.model_type in LONG:
        with contextlib.suppress(PatchError):  # it has no patch
            lf.Patch.of(model).undo()
        lf.patch(model, unpad=unpad)
    elif unpad:
        lf_huggingface.unpadded(model)
    return model


def check_takes_globals(model: Any) -> None:
    """Raise RecipeError for a model that drops a `global_attention_mask`."""
    parameters = inspect.signature(model.forward).parameters
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    if "global_attention_mask" not in parameters and not takes_any:
        raise RecipeError(
            f"--model: one that takes a global_attention_mask wanted, {type(model).__name__} passes none on"
        )


def _config(folder: Path) -> Any:
    path = folder / "config.json"
    if not path.is_file():
        raise RecipeError(f"--model: a folder with config.json wanted, got {folder}")
    try:
        json.loads(path.read_text("utf8"))
        return transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    except (ValueError, KeyError, LFError) as error:
        raise RecipeError(f"--model: a config.json that transformers reads wanted, {path}: {error}") from None
