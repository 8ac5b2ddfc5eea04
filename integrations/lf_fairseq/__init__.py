"""fairseq: sparse attention by configuration, as a `--user-dir`, and by patching.

This package is the `--user-dir` itself; `python -m lf_fairseq` prints where it is.

    fairseq-train DATA --user-dir $(python -m lf_fairseq) --task language_modeling --arch transformer_lm_lf \\
        --attention-pattern "window(255, 0) | global(0)" ...

and `fairseq-eval-lm`, `fairseq-generate` and the others need `--user-dir` alone: the pattern is in the
checkpoint. Models of stock fairseq, hub interfaces too, are patched:

    import lf_backend as lf

    lf.patch(model, "window(256, 256) | global(0)")

Importing this package does not import fairseq. The architectures are registered when fairseq is imported,
before or after.

Of patched models outputs, loss and gradients are those of fairseq under the pattern's mask, to rounding.
What differs, all of it:

- The attention of padding is 0, where fairseq's is that of any token; nothing reads it.
- In float16 and bfloat16 scores and softmax are float32.
- Dropout draws other random numbers, with the same probability.
- Quantisation noise reaches the projections of self-attention in every call, where fairseq's fast path
  leaves it out.
- Incremental decoding keeps what the pattern reaches, and no more.
"""

from __future__ import annotations

from lf_fairseq.patch.adapter import Fairseq
from lf_fairseq.patch.global_projections import add_global_projections
from lf_fairseq.patch.global_tokens import set_global_tokens
from lf_fairseq.register import check_name, register, when_fairseq_is_imported

check_name(__name__, __path__[0])
adapter = Fairseq()
when_fairseq_is_imported()

__all__ = ["Fairseq", "adapter", "add_global_projections", "register", "set_global_tokens"]
