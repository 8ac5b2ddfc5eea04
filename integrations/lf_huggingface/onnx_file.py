"""`export`: a model as an ONNX file of any batch and length, checked against the model itself.

    lf_huggingface.export(model, "model.onnx")  # a patched Longformer, a configured ModernBERT, ...

The file takes `input_ids` and `attention_mask`, and `global_attention_mask` where the model does, all int64
[batch, length], and gives the model's first output. Attention is the portable form (`lf.portable`), whose
memory is linear in length.
"""

from __future__ import annotations

import inspect
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import lf_backend as lf
from lf_backend._optional import optional
from lf_huggingface.errors import ExportError
from lf_huggingface.patch.adapter import is_known

LENGTHS = ((2, 24), (1, 7), (3, 61), (4, 40), (1, 2))  # batch and length that a file is checked with
_TAKEN = ("input_ids", "attention_mask", "global_attention_mask")


def export(model: nn.Module, path: Path | str) -> float:
    """Write the model as an ONNX file, and compare the two at other lengths than it was exported with.

    Args:
        model: a model of transformers that runs through this library: patched, or configured with
            attn_implementation="lf". A model that `lf.patch` knows is patched while it is exported. Of a
            model with an encoder and a decoder the encoder is exported.
        path: the file to write.

    Returns:
        The largest difference between file and model, over the largest value of the output.

    Raises:
        ExportError: a model that takes no input_ids, or a file that does not agree with the model.
        LFError: onnx, onnxscript or onnxruntime is not installed.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        optional(package, "onnx")
    was_training, stock = model.training, is_known(model)
    patch = lf.patch(model) if stock else None
    try:
        first = _First(_exported(model.eval()))
        _write(first, path)
        return check(first, path)
    finally:
        if patch is not None:
            patch.undo()
        model.train(was_training)


def check(model: nn.Module, path: Path | str) -> float:
    """Return the largest difference of the file to the model, over `LENGTHS`, with padding and globals.

    Raises:
        ExportError: it is more than rounding.
    """
    session = optional("onnxruntime", "onnx").InferenceSession(str(path))
    names = [given.name for given in session.get_inputs()]
    worst = 0.0
    for seed, (batch, length) in enumerate(LENGTHS):
        inputs = {name: x for name, x in _inputs(model, batch, length, seed).items() if name in names}
        with torch.no_grad():
            wanted = model(**inputs)
        found = torch.from_numpy(session.run(None, {name: x.numpy() for name, x in inputs.items()})[0])
        seen = _shown(inputs, wanted)
        worst = max(worst, float((found - wanted)[seen].abs().max() / wanted[seen].abs().max()))
    if not worst <= 1e-4:
        raise ExportError(f"path: a file that agrees with the model wanted, got a difference of {worst:.1e}")
    return worst


class _First(nn.Module):
    """A model that gives its first output, of inputs by name."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        taken = inspect.signature(model.forward).parameters
        self.names = tuple(name for name in _TAKEN if name in taken)
        if self.names[:1] != ("input_ids",):
            raise ExportError(f"model: one that takes input_ids wanted, got {type(model).__name__}")
        self.options = {"use_cache": False} if "use_cache" in taken else {}
        self.vocabulary = int(model.config.vocab_size)
        self.padding = model.config.pad_token_id or 0

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        global_attention_mask: Tensor | None = None,
    ) -> Tensor:
        given = dict(zip(_TAKEN, (input_ids, attention_mask, global_attention_mask), strict=True))
        out: Tensor = self.model(**{name: given[name] for name in self.names}, **self.options)[0]
        return out


def _exported(model: Any) -> Any:
    """The model, or its encoder."""
    config = getattr(model, "config", None)
    return model.get_encoder() if getattr(config, "is_encoder_decoder", False) else model


def _write(model: _First, path: Path | str) -> None:
    inputs = _inputs(model, *LENGTHS[0], 0)
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", min=2)
    with lf.portable(), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of exporter and model, which are not this caller's
        program: Any = torch.onnx.export(
            model,
            (),
            kwargs=inputs,
            dynamo=True,
            verbose=False,
            input_names=list(inputs),
            dynamic_shapes={name: {0: batch, 1: length} for name in inputs},
        )
    program.save(str(path))


def _inputs(model: Any, batch: int, length: int, seed: int) -> dict[str, Tensor]:
    """A batch that a seed draws: the last example is padded on the right, two tokens are global."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, model.vocabulary, (batch, length), generator=generator)
    ids = torch.where(ids == model.padding, (model.padding + 1) % model.vocabulary, ids)
    mask, marked = torch.ones_like(ids), torch.zeros_like(ids)
    mask[-1, length - length // 4 :] = 0
    marked[:, 0] = marked[0, length // 2] = 1
    given = (torch.where(mask == 1, ids, model.padding), mask, marked)
    return {name: x for name, x in zip(_TAKEN, given, strict=True) if name in model.names}


def _shown(inputs: dict[str, Tensor], output: Tensor) -> Tensor:
    """Bool, what of an output is compared: not padded tokens, of which models differ in what they give."""
    mask = inputs.get("attention_mask")
    of_tokens = mask is not None and output.shape[:2] == mask.shape
    return mask == 1 if mask is not None and of_tokens else torch.ones(output.shape[:1], dtype=torch.bool)
