"""Hugging Face transformers: Longformer and the encoder of LED, through `lf_backend.patch`.

    import lf_backend as lf

    lf.patch(model)  # what the model's config says, with Longformer's own answers
    lf.patch(model, "window(256, 256, dilation=2)")  # or another pattern

Importing this package does not import transformers; meeting one of its models does.
"""

from lf_huggingface.plan import HuggingFace

adapter = HuggingFace()

__all__ = ["HuggingFace", "adapter"]
