"""Hugging Face transformers: Longformer and the encoder of LED, through `lf_backend.patch`.

    import lf_backend as lf

    lf.patch(model)  # what the model's config says, with Longformer's own answers
    lf.patch(model, "window(256, 256, dilation=2)")  # or another pattern

Importing this package does not import transformers; meeting one of its models does.

Outputs, loss and gradients are upstream's, to rounding. What differs, all of it:

- Any length and any mixture of windows runs, without padding; `global_attentions` therefore cover the
  length that was given, where upstream's cover the padded one.
- In float64 the softmax is float64, where upstream's is float32.
- Dropout draws other random numbers, with the same probability.
- A compiled graph, and another device than a CPU, does not look into masks: a `global_attention_mask`
  that was given counts as marking tokens. In a graph so does an integer `attention_mask`, which may
  carry 2 for "global"; a bool one may not, and saves the global projections.

Otherwise, as in upstream, the `*_global` parameters of a batch without any global token take no part and
get no gradient, which DistributedDataParallel must be told (`find_unused_parameters=True`).
"""

from lf_huggingface.plan import HuggingFace

adapter = HuggingFace()

__all__ = ["HuggingFace", "adapter"]
