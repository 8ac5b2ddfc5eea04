"""Hugging Face transformers: models by configuration, Longformer and LED by patching.

    import lf_huggingface

    config.lf_attention = "window(256, 256) | global(0)"  # or leave the model its own window
    model = AutoModel.from_config(config, attn_implementation="lf")

is for models that attend through transformers' attention interface; see `routed` and `configured`. Those
that do not are patched:

    import lf_backend as lf

    lf.patch(model)  # what the model's config says, with Longformer's own answers
    lf.patch(model, "window(256, 256, dilation=2)")  # or another pattern

Importing this package does not import transformers; meeting one of its models does, and "lf" is registered
with transformers when its models are loaded, before or after.

Of patched models outputs, loss and gradients are upstream's, to rounding. What differs, all of it:

- Any length and any mixture of windows runs, without padding; `global_attentions` therefore cover the
  length that was given, where upstream's cover the padded one.
- In float64 the softmax is float64, where upstream's is float32.
- Dropout draws other random numbers, with the same probability.
- A compiled graph does not look into masks, which eager mode reads once for all layers: a
  `global_attention_mask` that was given counts as marking tokens, and so does an integer
  `attention_mask`, which may carry 2 for "global"; a bool one may not, and saves the global projections.

As in upstream, the `*_global` parameters of a batch without any global token take no part and get no
gradient; where several processes train they get one of 0, which DistributedDataParallel waits for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lf_huggingface.interface.register import register, unregister, when_transformers_is_imported
from lf_huggingface.patch.adapter import HuggingFace

if TYPE_CHECKING:
    from lf_huggingface.cache.window import WindowCache
    from lf_huggingface.conversion.convert import convert
    from lf_huggingface.interface.receipt import report
    from lf_huggingface.onnx_file import export
    from lf_huggingface.packing import collate_packed, pack
    from lf_huggingface.parallel.context import context_parallel
    from lf_huggingface.parallel.trainer import ContextParallelMixin, ContextParallelTrainer
    from lf_huggingface.patch.auto import auto_patch
    from lf_huggingface.unpadding import unpadded

adapter = HuggingFace()
when_transformers_is_imported()

__all__ = [
    "ContextParallelMixin",
    "ContextParallelTrainer",
    "HuggingFace",
    "WindowCache",
    "adapter",
    "auto_patch",
    "collate_packed",
    "context_parallel",
    "convert",
    "export",
    "pack",
    "register",
    "report",
    "unpadded",
    "unregister",
]

_HOMES = {
    "export": "lf_huggingface.onnx_file",
    "WindowCache": "lf_huggingface.cache.window",
    "auto_patch": "lf_huggingface.patch.auto",
    "collate_packed": "lf_huggingface.packing",
    "ContextParallelMixin": "lf_huggingface.parallel.trainer",
    "ContextParallelTrainer": "lf_huggingface.parallel.trainer",
    "context_parallel": "lf_huggingface.parallel.context",
    "convert": "lf_huggingface.conversion.convert",
    "pack": "lf_huggingface.packing",
    "report": "lf_huggingface.interface.receipt",
    "unpadded": "lf_huggingface.unpadding",
}


def __getattr__(name: str) -> Any:
    """Load what needs transformers itself when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
